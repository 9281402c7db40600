"""What a run of the tests found, as a table; and its place in docs/gpu-options.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
