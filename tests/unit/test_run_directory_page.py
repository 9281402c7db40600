"""docs/run-directory.md and jobs/run/kinds.py name the same events and fields, the same ones optional."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.run.kinds import COMMON, EVENTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run-directory.md"


def documented() -> tuple[set[str], dict[str, tuple[set[str], set[str]]]]:
    """(common fields, event -> (required, optional fields)), from the page's tables."""
    text = PAGE.read_text()
    head, *sections = re.split(r"^### ", text[text.index("## Events") : text.index("## Metrics")], flags=re.M)
    common = set(re.findall(r"^\| `(\w+)` \|", head, flags=re.M))
    events: dict[str, tuple[set[str], set[str]]] = {}
    for section in sections:
        name = ""
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) < 3 or cells[0] in ("event", "---"):
                continue
            assert cells[2], f"{line!r} explains nothing"
            if found := re.fullmatch(r"`(\w+)`", cells[0]):
                name = found[1]
                events[name] = (set(), set())
            elif found := re.fullmatch(r"(\*?)`(\w+)`\*?", cells[1]):
                events[name][bool(found[1])].add(found[2])
    return common, events


def test_the_page_and_the_schema_agree() -> None:
    common, events = documented()
    assert common == COMMON
    assert events.keys() == EVENTS.keys()
    for name, fields in EVENTS.items():
        assert events[name] == fields, name
