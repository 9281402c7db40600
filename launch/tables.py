"""Tables for people: rich on a terminal, plain columns in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

COLOURS = {
    "running": "green",
    "starting": "cyan",
    "queued": "yellow",
    "waiting": "yellow",
    "requeueing": "yellow",
    "evaluating": "cyan",
    "finished": "bold green",
    "prepared": "bold green",
    "cancelled": "dim",
    "stopped": "bold red",
    "failed": "bold red",
    "stuck": "bold red",
    "unknown": "magenta",
}


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], states: Sequence[str] = ()) -> None:
    """Prints a table. `states` colours each row's second column; columns that begin with > are numbers."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(table(columns, rows, states))
    else:
        print(plain(columns, rows))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], states: Sequence[str] = ()) -> Any:
    """The same as a rich Table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if number else "left", overflow="fold")
    for index, row in enumerate(rows):
        colour = COLOURS.get(states[index], "") if states else ""
        made.add_row(*(Text(cell, style=colour if at == 1 else "") for at, cell in enumerate(row)))
    return made


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as text: columns padded with spaces, no line longer than it must be."""
    heads = [column.lstrip(">").upper() for column in columns]
    lines = [heads, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    text = []
    for line in lines:
        cells = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)
