"""The pages of docs/ against the code: the keys of a profile, and the files that they send to."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.run.settings import Container, Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "clusters.md").read_text()


def test_every_key_of_a_profile_is_explained() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    explained = {key for row in rows for key in re.findall(r"`(\w+)`", row[1])}
    assert explained == {"executor", *Settings.__struct_fields__}


def test_every_key_of_a_container_is_shown() -> None:
    section = PAGE.partition("## Containers")[2].partition("\n## ")[0]
    shown = set(re.findall(r"^      (\w+):", section, re.MULTILINE))
    assert shown == set(Container.__struct_fields__)


def test_a_preemption_is_followed_in_at_most_five_files() -> None:
    """Those that docs/surviving.md names, with what to look for in each."""
    section = (DOCS / "surviving.md").read_text().partition("read these five")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d\. \[[^]]+\]\(([^)]+)\), ([^:]+):", section, re.MULTILINE)
    assert len(steps) == 5
    for file, names in steps:
        text = (DOCS / file).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), f"{file} has no {name}"


def test_the_files_that_contributing_sends_to_are_there() -> None:
    """And hold what it says they do."""
    page = (DOCS / "contributing.md").read_text()
    named = re.findall(r"`([A-Z]\w+)`[^`\n]* in \[[^]]+\]\(([^)]+)\)", page)
    assert {name for name, _ in named} == {"RECIPES", "Event", "COMMANDS", "BACKENDS"}
    for name, file in named:
        assert re.search(rf"^{name}\b", (DOCS / file).read_text(), re.MULTILINE), name


def steps_of(page: str) -> list[tuple[list[list[str]], set[str]]]:
    """Of each row and each point of a page, in order: the commands and names of each cell; the numbers."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith(("| ", "- "))]
    return [
        (
            [re.findall(r"`([^`]+)`", cell) for cell in row],
            set(re.findall(r"\d[\d,.]*\d|\d", re.sub(r"`[^`]+`", "", "|".join(row)))),
        )
        for row in rows
    ]


def test_the_guides_page_says_the_same_in_both_languages() -> None:
    english, chinese = (steps_of((DOCS / f"from-the-guide{of}.md").read_text()) for of in ("", ".zh"))
    assert len(english) > 18
    for number, (one, other) in enumerate(zip(english, chinese, strict=True)):
        assert one == other, f"row or point {number}"
