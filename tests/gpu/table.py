"""What a run of the tests found, as a table; and its place in docs/gpu-options.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from jobs.engine import devices
from jobs.run.directory import write_atomically

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->"


def render(outcomes: Mapping[str, str], rows: Sequence[tuple[str, str]]) -> str:
    gpus = devices.count()
    card = devices.name(devices.CPU if not gpus else f"{devices.kind()}:0")
    built = devices.build() or "the CPU"
    lines = [f"{card}{f', {gpus} of them' if gpus > 1 else ''}; torch {torch.__version__} for {built}", ""]
    lines += ["| what | result |", "|---|---|"]
    lines += [f"| {_cell(what)} | {_cell(figure)} |" for what, figure in [*outcomes.items(), *rows]]
    return "\n".join(lines)


def joined(parts: Iterable[Path]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What the parts of a run of the tests have left, in order; a part that was not run has left nothing."""
    outcomes: dict[str, str] = {}
    rows: list[tuple[str, str]] = []
    for part in parts:
        if part.exists():
            its_outcomes, its_rows = json.loads(part.read_text())
            outcomes |= its_outcomes
            rows += [(what, figure) for what, figure in its_rows]
    return outcomes, rows


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write(text: str, page: Path) -> str:
    """Puts the table between the page's two marks. Returns where it is, or why it is not there."""
    try:
        head, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, closed, tail = rest.partition(END)
        if not (found and closed):
            return f"not written: {page} lacks the marks {BEGIN.strip()} and {END}"
        write_atomically(page, f"{head}{BEGIN}{text}\n{END}{tail}".encode())
    except OSError as error:
        return f"not written: {error}"
    return f"written to {page}"
