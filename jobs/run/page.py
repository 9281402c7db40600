"""`python -m jobs.run.page docs/run-directory.md` writes the tables there: files, from files.py, and events,
from kinds.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec

from jobs.run import files, kinds

FIRST_OF_SECTION = {
    kinds.Submitted: "The launcher",
    kinds.Started: "A start",
    kinds.Epoch: "Progress",
    kinds.Signal: "Endings",
    kinds.Evaluated: "The other stages",
}


def of_files(section: str) -> str:
    """The table of the files of a section, `run` or `job`."""
    columns = ["path", "content", "written by"] if section == "run" else ["path", "content"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for file in files.of(section):
        name = re.sub(r"[{}]", "", file.pattern) + ("/" if file in files.FOLDERS else "")
        writer = f" {file.writer} |" if section == "run" else ""
        lines.append(f"| `{name}` | {file.meaning} |{writer}")
    return "\n".join(lines)


def of_every_event() -> str:
    """The table of the fields that every event has."""
    told = dict(_fields(kinds.Submitted, common=True))
    lines = ["| field | meaning |", "|---|---|"]
    for name in ("time", "event", "stage", "job", "start"):
        lines.append(f"| `{name}` | {told.get(name, 'its name, one of those below')} |")
    return "\n".join(lines)


def of_events() -> str:
    """A table for each section of events."""
    lines: list[str] = []
    for kind in get_args(kinds.Event):
        if title := FIRST_OF_SECTION.get(kind):
            lines += ["", f"### {title}", "", "| event | field | meaning |", "|---|---|---|"]
        meaning = " ".join((kind.__doc__ or "").split()).removesuffix(".")
        lines.append(f"| `{kind.__struct_config__.tag}` | | {meaning[:1].lower()}{meaning[1:]} |")
        optional = {field.name for field in msgspec.structs.fields(kind) if not field.required}
        for name, text in _fields(kind, common=False):
            lines.append(f"| | {f'*`{name}`*' if name in optional else f'`{name}`'} | {text} |")
    return "\n".join(lines[1:])


def _fields(kind: type, common: bool) -> Iterator[tuple[str, str]]:
    """(name, meaning) of the fields that a kind shares with all others (`common`), or of its own."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if (name in kinds.COMMON) is common:
            yield name, hint.__metadata__[0]


def written(page: str) -> str:
    """A page with the text between its markers regenerated."""
    made = {
        "files of run": of_files("run"),
        "files of job": of_files("job"),
        "every event": of_every_event(),
        "events": of_events(),
    }
    for name, text in made.items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        head, _, rest = page.partition(begin)
        page = head + begin + text + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text()))
