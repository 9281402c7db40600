"""Tables for people: coloured and no wider than the terminal, or plain columns in a pipe."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any, TextIO

from launch.observe import wording

GREEN, YELLOW, CYAN, MAGENTA, DIM, BOLD_GREEN, BOLD_RED = "32", "33", "36", "35", "2", "1;32", "1;31"
COLOURS = {
    "running": GREEN,
    "starting": CYAN,
    "queued": YELLOW,
    "waiting": YELLOW,
    "requeueing": YELLOW,
    "suspended": YELLOW,
    "evaluating": CYAN,
    "finished": BOLD_GREEN,
    "cancelled": DIM,
    "stopped": BOLD_RED,
    "failed": BOLD_RED,
    "stuck": BOLD_RED,
    "unreadable": BOLD_RED,
    "unknown": MAGENTA,
}
"""State -> the parameter of the terminal's colour sequence (SGR)."""

GAP = "  "
NARROWEST = 24
"""Minimum width of the second column, the one with prose, in characters."""


class Unwritable(Exception):
    """Standard output cannot be written (a full disk, a terminal that is gone); the message says why."""


class Guarded:
    """Standard output or error for text of any origin (events, host names, errors, file names): escapes
    whatever a terminal would obey. Control sequences meant for it go through `control`.

    If it cannot be written, standard output raises Unwritable, or BrokenPipeError if its reader has gone;
    standard error is then discarded, since no command depends on it."""

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self.unguarded = stream
        self.needed = needed

    def write(self, text: str) -> int:
        self.put(wording.safe(text))
        return len(text)

    def put(self, text: str) -> None:
        """Writes the text unchanged."""
        try:
            self.unguarded.write(text)
        except OSError as error:
            self._lost(error)

    def flush(self) -> None:
        try:
            self.unguarded.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        # Discard what is still buffered, too: Python would try to write it again at exit, and fail.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.unguarded.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError) and self.needed:
            raise error
        if self.needed:
            raise Unwritable(error.strerror)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def guard() -> None:
    """Makes whatever this command prints from here on safe for a terminal."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Guarded):
            setattr(sys, name, Guarded(stream, needed=name == "stdout"))


def control(text: str) -> None:
    """Prints control sequences for the terminal; everything else in `text` must be safe."""
    getattr(sys.stdout, "put", sys.stdout.write)(text)
    sys.stdout.flush()


def show(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    states: Sequence[str] = (),
    spare: Collection[str] = (),
    one_line: bool = False,
) -> None:
    """Prints a table. `states` colours each row's second column; columns that begin with > are numbers.

    On a terminal, empty columns are left out, then those in `spare` in their order until the rest fits, and
    the second column is wrapped or, with `one_line`, cut. Its cells are always cut to wording.WIDEST.
    """
    rows = [[wording.safe(" ".join(cell.split())) for cell in row] for row in rows]
    rows = [[row[0], wording.cut(row[1]), *row[2:]] for row in rows]
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        control(terminal(columns, rows, states, spare, width, one_line) + "\n")
    else:
        print(plain(columns, rows))


def terminal(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    states: Sequence[str],
    spare: Collection[str],
    width: int,
    one_line: bool = False,
) -> str:
    """The table for a terminal of `width` characters."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else [0] * len(columns)
    kept = [at for at in range(len(columns)) if widths[at] or at < 2]
    widths = [max(known, len(_head(columns[at]))) for at, known in enumerate(widths)]

    def room() -> int:
        """The width left for the second column."""
        return width - sum(widths[at] for at in kept if at != 1) - len(GAP) * (len(kept) - 1)

    for name in spare:
        if room() >= min(widths[1], NARROWEST):
            break
        kept = [at for at in kept if columns[at] != name]
    widths[1] = min(widths[1], max(NARROWEST, room()))
    coloured = not os.environ.get("NO_COLOR")
    lines = [GAP.join(_fit(_head(columns[at]), columns[at], widths[at]) for at in kept)]
    lines[0] = paint(lines[0].rstrip(), "1", coloured)
    for index, row in enumerate(rows):
        broken = [row[1]]
        if len(row[1]) > widths[1]:
            broken = [wording.cut(row[1], widths[1])] if one_line else textwrap.wrap(row[1], widths[1])
        colour = COLOURS.get(states[index], "") if states else ""
        for number, part in enumerate(broken):
            cells = []
            for at in kept:
                text = part if at == 1 else "" if number else row[at]
                cell = _fit(text, columns[at], widths[at])
                cells.append(paint(cell, colour, coloured) if at == 1 else cell)
            lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as plain text: columns padded with spaces, without trailing ones."""
    lines = [[_head(column) for column in columns], *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "\n".join(GAP.join(map(_fit, line, columns, widths)).rstrip() for line in lines)


def _head(column: str) -> str:
    return column.removeprefix(">").upper()


def _fit(cell: str, column: str, width: int) -> str:
    return cell.rjust(width) if column.startswith(">") else cell.ljust(width)


def paint(text: str, colour: str, coloured: bool) -> str:
    return f"\033[{colour}m{text}\033[0m" if colour and coloured else text
