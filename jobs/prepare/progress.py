"""Progress display: a bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST, INTERVAL = 3.0, 15.0
"""Seconds until a task's first line in a log, and between lines. Quick tasks print nothing."""

Advance = Callable[[int], None]


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def task(name: str, total: int, unit: str = "", done: int = 0) -> Iterator[Advance]:
    """Yields a function to be called with each increment. `unit` "B" shows bytes."""
    if sys.stdout.isatty():
        from rich import progress

        columns = [progress.TextColumn("{task.description}"), progress.BarColumn()]
        figures = progress.DownloadColumn() if unit == "B" else progress.MofNCompleteColumn()
        with progress.Progress(*columns, figures, progress.TimeRemainingColumn()) as bars:
            bar = bars.add_task(name, total=total, completed=done)
            yield lambda count: bars.advance(bar, count)
        return
    reached, begun = done, time.monotonic()
    due = begun + FIRST

    def advance(count: int) -> None:
        nonlocal reached, due
        reached += count
        now = time.monotonic()
        if now >= due:
            due = now + INTERVAL
            share = f"{reached / total:.0%}" if total else ""
            rate = (reached - done) / (now - begun)
            how = f"{rate / 1e6:,.1f} MB/s" if unit == "B" else f"{rate:,.0f}/s"
            say(f"{name}: {share} ({how})")

    yield advance
