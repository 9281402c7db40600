"""benchmarks/chaos.py: its plans have all kinds and none is hopeless; it sees what a start has lost."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import chaos
from jobs.run.directory import Run
from tests.support import slurm_faults


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


@pytest.mark.parametrize("seed", [*range(50), 4242])
def test_every_fault_finds_its_place_before_the_end_however_late_those_before_it_come(seed: int) -> None:
    faults = chaos.plan(seed, 24)
    end = chaos.epochs(faults) * chaos.PER_EPOCH
    late = chaos.latest(faults)
    assert all(step < after for step, after in itertools.pairwise(late))
    # Walked through as badly as it can come: a start goes on from where a fault struck, and the validation
    # or save of that step is over.
    step = 0
    for fault, latest in zip(faults, late, strict=True):
        every = {"validation": chaos.VALIDATED, "save": chaos.PER_EPOCH}.get(fault.place, 1)
        reached = max(step, fault.step)
        step = (reached // every + 1) * every if every > 1 else reached + fault.slack + 1
        assert step <= latest
        assert latest + chaos.VALIDATED <= end, fault


class Hooked:
    """A rank's hook in one start after the other, on a run directory without a run."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.monkeypatch = run, monkeypatch
        monkeypatch.setenv("BATON_RUN", str(run.path))
        monkeypatch.setenv("RANK", "0")
        run.job.mkdir(parents=True)

    def start(self, number: int) -> slurm_faults.Chaos:
        self.monkeypatch.setenv("BATON_START", str(number))
        return slurm_faults.Chaos()


def test_a_fault_is_in_place_before_the_start_that_it_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    hooked = Hooked(run, monkeypatch)
    faults = [
        chaos.Fault(number=1, kind="a rank raises", step=5),
        chaos.Fault(number=2, kind="preempted with grace", step=3, place="start"),
        chaos.Fault(number=3, kind="a rank is killed", step=4, place="validation"),
    ]
    chaos.lay(run, faults)
    first = hooked.start(1)
    assert first.asked("step", 4) is None
    assert first.asked("start") is None
    with pytest.raises(ValueError, match="a bad batch"):
        first.before_train_iter(SimpleNamespace(iter=4), 0)
    assert (run.job / "struck-1").read_text() == "1"
    # Nobody has done anything since: the start that follows meets the next one, and not the one that ends.
    assert first.asked("start") is None
    second = hooked.start(2)
    assert (second.asked("start") or {})["number"] == 2
    assert second.asked("validation", 12) is None
    chaos.mark_struck(run, faults[1], 2)
    assert second.asked("validation", 12) is None
    assert (hooked.start(3).asked("validation", 12) or {})["number"] == 3
    assert json.loads((run.job / "faults.json").read_text())[1]["do"] == "wait"


def test_faults_that_the_end_forestalls_are_problems_and_the_rest_is_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.events.write_text('{"time":"2026-01-01T00:00:00.000Z","event":"finished","stage":"train"}\n')
    scene = chaos.Scene(slurm=None, run=run, job="1", dice=None)  # type: ignore[arg-type]
    with pytest.raises(chaos.Ended, match="finished"):
        chaos.reached(scene, lambda: False, chaos.Fault(number=1, kind="x", step=1))
    scene.missed = ["fault 23"]
    monkeypatch.setattr(chaos, "differences", lambda *_: ["a weight"])
    assert chaos.problems(scene, run)[:2] == [
        "never struck: fault 23",
        "differs from a run left alone: a weight",
    ]


def at(start: int, event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "start": start, **fields}


def fault(start: int, kind: str, newest: int) -> dict[str, Any]:
    return {"start": start, "kind": kind, "newest": newest, "place": "step", "touched": [], "detail": ""}


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
    assert chaos.expected(scene, at(5, "checkpoint_damaged", path="iter_9.pth"), [])
    assert not chaos.expected(scene, at(5, "checkpoint_damaged", path="iter_12.pth"), [])
    # Had a start looked in between, it would have found it; one that was told to leave at once has not.
    late = at(9, "checkpoint_damaged", path="iter_9.pth")
    assert not chaos.expected(scene, late, [at(8, "resumed")])
    assert chaos.expected(scene, late, [at(3, "resumed"), at(8, "preempted")])
