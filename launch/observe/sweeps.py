"""Finds the runs of a sweep."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobs.run import story
from jobs.run.directory import Run
from launch.submit import runs


def of(run: Run) -> str:
    """The name of the sweep that a run belongs to; "" if there is none."""
    if not (stem := stem_of(run.name)):
        return ""
    try:
        text = run.request_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    # Not parsed as YAML, because hundreds are read at a time.
    if re.search(rf"^sweep: ['\"]?{re.escape(stem)}['\"]?$", text, re.MULTILINE):
        return stem
    # For a run of an earlier version, only the event of its submission tells.
    return stem if story.read(run.events).element else ""


def stem_of(name: str) -> str:
    """The name of the sweep that a run of this name could belong to; "" if it cannot be one's element."""
    found = re.fullmatch(r"(.+)-[0-9]+", name)
    return found[1] if found else ""


def members(sweep: str) -> list[Run]:
    """The runs of a sweep, in the order of its elements; [] if there is none, or a run of that name."""
    if runs.is_taken(sweep):
        return []
    named = [run for run in runs.all_runs() if stem_of(run.name) == sweep]
    found = [run for run in named if of(run) == sweep]
    return sorted(found, key=lambda run: int(run.name.rpartition("-")[2]))


def find(names: Iterable[str]) -> list[Run]:
    """The runs of these names; a sweep's name means all of its runs. Raises UserError as `runs.find` does."""
    found: dict[str, Run] = {}
    for name in names:
        for run in members(name) or [runs.find(name)]:
            found.setdefault(str(run.path), run)
    return list(found.values())
