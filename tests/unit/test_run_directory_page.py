"""The tables of docs/run-directory.md are made from the definitions of files and events."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from jobs.run import page
from jobs.run.kinds import EVENTS, Event

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run-directory.md"


def test_the_tables_are_up_to_date() -> None:
    assert page.written(PAGE.read_text()) == PAGE.read_text(), f"python -m jobs.run.page {PAGE}"


def test_every_event_and_field_is_explained() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.of_events().splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0] not in ("event", "---")]
    assert all(row[2] for row in rows)
    assert [row[0].strip("`") for row in rows if row[0]] == list(EVENTS)
    assert len(rows) == sum(1 + len(required | optional) for required, optional in EVENTS.values())
    assert [kind for kind in get_args(Event) if kind in page.FIRST_OF_SECTION] == [*page.FIRST_OF_SECTION]


@pytest.mark.parametrize(
    "row", ["| | *`loss`* | the latest training loss |\n", "| `stage` | ", "| `events.jsonl` | "]
)
def test_what_is_missing_is_written_again(row: str) -> None:
    text = PAGE.read_text()
    assert text.count(row) == 1
    assert page.written(text.replace(row, "")) == text
