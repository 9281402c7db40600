"""benchmarks/chaos.py: its plans have all kinds and none is hopeless; it sees what a start has lost."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import chaos


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_every_kind_and_can_be_lived_through(seed: int) -> None:
    faults = chaos.plan(seed, 50)
    kinds = Counter(fault.kind for fault in faults)
    assert set(kinds) == {*chaos.OUTSIDE, *chaos.INSIDE}
    assert {f.detail for f in faults if f.kind == "killed during a save"} <= set(chaos.PHASES)
    assert faults == chaos.plan(seed, 50)
    assert faults != chaos.plan(seed + 1, 50)
    # Every fault has its place before the end, validations and saves included.
    assert faults[-1].step < chaos.PER_EPOCH * (chaos.epochs(faults) - 2)
    # Of three failures in a row the second or third comes after a validated epoch that the first did not see.
    for row in zip(faults, faults[1:], faults[2:], strict=False):
        if all(fault.kind in chaos.COUNTED for fault in row):
            validated = [(fault.step - 1) // chaos.VALIDATED for fault in row]
            first, later = validated[0], validated[1:]
            assert any(at > first and f.place != "start" for at, f in zip(later, row[1:], strict=True))


def at(start: int, event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "start": start, **fields}


def fault(start: int, kind: str, newest: int, place: str = "step") -> dict[str, Any]:
    return {"start": start, "kind": kind, "newest": newest, "place": place, "touched": [], "detail": ""}


STORY = [
    at(1, "first_step", step=1),
    at(1, "checkpoint", step=6),
    at(1, "checkpoint", step=9),
    at(1, "preempted", step=9),
    at(2, "resumed", step=9),
    at(2, "checkpoint", step=12),
    at(3, "resumed", step=12),
]


@pytest.mark.parametrize(
    ("start", "step", "words"),
    [
        (2, 6, "start 2 went on from 6, not from 9"),  # saved on leaving, and lost
        (3, 9, "start 3 went on from 9, not from 12"),  # told as saved, and lost
        (3, 12, ""),
    ],
)
def test_a_lost_checkpoint_is_seen(start: int, step: int, words: str) -> None:
    story = [
        one | {"step": step} if (one["event"], one["start"]) == ("resumed", start) else one for one in STORY
    ]
    struck = [fault(1, "user signal", 6), fault(2, "a rank is killed", 9)]
    found = chaos.lost(SimpleNamespace(struck=struck), story)  # type: ignore[arg-type]
    assert [one.partition(":")[0] for one in found] == ([words] if words else [])


def test_a_start_that_was_told_and_did_not_leave_is_seen() -> None:
    story = [one for one in STORY if one["event"] != "preempted"]
    scene = SimpleNamespace(struck=[fault(1, "user signal", 6)])
    (found,) = chaos.lost(scene, story)  # type: ignore[arg-type]
    assert "was told to leave" in found


def test_only_what_was_damaged_may_be_found_damaged() -> None:
    broken = fault(4, "the newest checkpoint is damaged", 12) | {"touched": ["iter_9.pth"]}
    scene: Any = SimpleNamespace(struck=[broken])
    assert chaos.expected(scene, at(5, "checkpoint_damaged", path="iter_9.pth"))
    assert not chaos.expected(scene, at(5, "checkpoint_damaged", path="iter_12.pth"))
    assert not chaos.expected(scene, at(9, "checkpoint_damaged", path="iter_9.pth"))
