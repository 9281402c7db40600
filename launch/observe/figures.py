"""A run's main figure, in tables of runs whose main metrics may differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from jobs.run.metrics import USUAL, Figure
from launch.observe import wording
from launch.observe.states import Status


def shared(figures: Iterable[Figure | None]) -> str | None:
    """The metric that all of them share (the default one if there are none); None if they differ."""
    names = {one.metric for one in figures if one is not None} or {USUAL}
    return names.pop() if len(names) == 1 else None


def heads(found: Iterable[Status]) -> tuple[str, str]:
    """The heads of the columns for the best validations and the evaluations, safe for a terminal."""
    found = list(found)
    best, told = shared(one.best for one in found), [one.evaluated for one in found if one.evaluated]
    evaluated = shared(told) if told else best
    best, evaluated = (
        one and wording.cut(wording.safe(" ".join(one.split())), 24) for one in (best, evaluated)
    )
    return f"best {best}" if best else "best", evaluated or "evaluated"


def cell(one: Figure | None, head: str) -> str:
    """The value, with the metric's name if the column's head does not say it."""
    if one is None:
        return ""
    return str(one) if head.removeprefix("best ") == one.metric else f"{one.metric} {one}"


def best_of(figures: Iterable[Figure | None]) -> Figure | None:
    """The best of them; None if there are none or their metrics differ."""
    known = [one for one in figures if one is not None]
    if not known or shared(known) is None:
        return None
    return (min if known[0].less else max)(known, key=lambda one: one.value)


def as_json(one: Status) -> dict[str, Any]:
    """A run for --json: `best` and `evaluated` name their metrics; the default ones also have own keys."""
    usual = {f"best_{USUAL}": one.best, USUAL: one.evaluated}
    values = {key: it.value if it is not None and it.metric == USUAL else None for key, it in usual.items()}
    found: dict[str, Any] = msgspec.to_builtins(one)
    return found | values
