"""A run that was interrupted is one curve in TensorBoard: each step once, as it was done last."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run.directory import Run
from jobs.run.exit_codes import RESUME
from tests.support import tiny

pytestmark = pytest.mark.slow

KILLED = [-9]


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) as TensorBoard reads them, times left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = max((run.path / "tensorboard").rglob("events.out.tfevents.*")).parent
    read = EventAccumulator(str(folder))
    read.Reload()
    tags = [tag for tag in read.Tags()["scalars"] if not tag.endswith("time")]
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in tags}


def make(path: Path, data: Path, **settings: object) -> Run:
    imports = {"imports": ["tests.interrupting"], "allow_failed_imports": False}
    settings = {"baton__save_seconds": 0, "log_level": "WARNING", **settings}
    return tiny.make_run(path, data, custom_imports=imports, custom_hooks=[{"type": "Interrupt"}], **settings)


def test_one_curve(data: Path, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", data)
    assert tiny.start(whole) == [0], tiny.log_of(whole, 1)
    run = make(tmp_path / "run", data)
    # 18 steps, a checkpoint and a validation after 6, 12 and 18. Killed: after steps that are done again,
    # within a validation, and after one that is repeated; asked to leave once.
    assert tiny.start(run, plan={"at": "step", "step": 5, "signal": "SIGUSR2"}) == [RESUME]
    assert tiny.start(run, plan={"at": "validate", "step": 6, "signal": "SIGKILL"}) == KILLED
    assert tiny.start(run, plan={"at": "step", "step": 11, "signal": "SIGKILL"}) == KILLED
    assert tiny.start(run) == [0], tiny.log_of(run, 4)
    expected = curves(whole)
    assert [step for step, _ in expected["mIoU"]] == [6, 12, 18]
    assert [step for step, _ in expected["loss"]] == list(range(1, 19))
    assert curves(run) == expected
