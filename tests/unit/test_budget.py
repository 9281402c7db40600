"""When a run is given up, from events alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobs.run import story
from jobs.run.past import History
from jobs.supervise import budget


class Story:
    """Builds the events of a run."""

    def __init__(self) -> None:
        self.number = 0
        self.records: list[dict[str, Any]] = []
        self.say("submitted", executor="slurm")

    def say(self, event: str, **fields: Any) -> Story:
        time = "2026-01-01T00:00:00.000Z"
        self.records.append({"time": time, "event": event, "stage": "train", "start": self.number} | fields)
        return self

    def start(self) -> Story:
        self.number += 1
        return self.say("started", hosts=["n1", "n2"], world_size=2)

    def fail(self, error: str = "ValueError: x", step: int = 5, host: str = "n1", code: int = 1) -> Story:
        return self.say(
            "failed", reason=f"rank 0: {error}", error=error, step=step, host=host, exit_code=code, rank=0
        )

    def save(self, step: int) -> Story:
        return self.say("checkpoint", step=step, epoch=0, path="", bytes=0, seconds=0.0, why="interval")

    @property
    def told(self) -> History:
        """As it is read from the file that has these lines."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.writelines(json.dumps(record) + "\n" for record in self.records)
            file.flush()
            return story.read(Path(file.name))

    @property
    def verdict(self) -> budget.Verdict:
        return budget.verdict(self.told)


def test_a_first_failure_may_start_again() -> None:
    assert Story().start().fail().verdict == budget.Verdict()


def test_three_starts_without_a_checkpoint_stop() -> None:
    run = Story()
    for step in (1, 2):
        run.start().fail(step=step)
    assert run.verdict.stop is None
    stop = run.start().fail(step=3).verdict.stop
    assert stop is not None
    assert "3 starts in a row" in stop
    assert "ValueError: x" in stop


def test_a_checkpoint_between_them_is_a_fresh_chance_but_an_old_step_is_none() -> None:
    run = Story().start().fail(step=1).start().fail(step=2).start().save(10).fail(step=11)
    assert run.verdict.stop is None
    # These only save again what was there.
    run.start().save(10).fail(step=12).start().save(10).fail(step=13).start().save(10).fail(step=14)
    assert run.verdict.stop is not None


def test_an_epoch_is_progress() -> None:
    run = Story()
    for step in range(1, 6):
        run.start().say("epoch", epoch=step, step=10 * step, seconds=1.0).fail(step=step)
    assert run.verdict.stop is None


def test_preemptions_exhaust_nothing() -> None:
    run = Story()
    for _ in range(20):
        run.start().say("signal", signal="SIGTERM", rank=0, host="n1").say("preempted", step=0, epoch=0)
    assert run.verdict == budget.Verdict()


def test_preemptions_between_failures_do_not_hide_them() -> None:
    run = Story()
    for step in (1, 2, 3):
        run.start().fail(step=step)
        run.start().say("preempted", step=0, epoch=0)
    assert run.verdict.stop is not None


def test_a_start_that_gave_way_to_a_later_one_is_no_failure_nor_is_it_the_later_ones() -> None:
    run = Story().start().start()
    for _ in range(3):
        run.start()
        run.number -= 1
        run.say("superseded", by=run.number + 1)
        run.number += 1
    run.fail()
    (first, *given_way, last) = run.told.starts()
    assert [one.superseded for one in given_way] == [True] * 3
    assert not first.superseded
    assert last.failures
    assert run.verdict == budget.Verdict()


def test_starts_that_end_without_a_word_count() -> None:
    run = Story().start().start()
    assert run.verdict.stop is None
    assert "without saying why" in str(run.start().verdict.stop)


def test_the_same_error_at_the_same_step_stops_at_once() -> None:
    run = Story().start().fail("ValueError: tensor at 0x7f01 is bad", step=7)
    run.start().fail("ValueError: tensor at 0x7f99 is bad", step=7)
    assert "same error twice in a row at step 7" in str(run.verdict.stop)


@pytest.mark.parametrize(
    ("error", "code"),
    [("killed by SIGKILL", 137), ("RuntimeError: CUDA error: uncorrectable ECC error", 1)],
)
def test_what_may_pass_is_tried_again(error: str, code: int) -> None:
    run = Story()
    for host in ("n1", "n2"):
        run.start().fail(error, step=7, host=host, code=code)
    assert run.verdict == budget.Verdict()


def test_a_node_that_fails_twice_is_excluded() -> None:
    run = Story().start().fail("killed by SIGKILL", step=7, host="n2", code=137)
    assert run.verdict.exclude == ()
    run.start().fail("killed by SIGKILL", step=9, host="n2", code=137)
    assert run.verdict == budget.Verdict(exclude=("n2",))


def test_the_users_mistake_stops_at_once() -> None:
    assert Story().start().fail("no such model", code=2).verdict.stop == "no such model"
    late = Story().start().save(100).fail("img/7.png cannot be loaded", code=2)
    assert late.verdict.stop == "img/7.png cannot be loaded"
    early = Story().start().fail("no such model", code=2).start().say("preempted", step=0, epoch=0)
    assert early.verdict.stop == "no such model"


def test_submitting_again_is_a_fresh_chance() -> None:
    run = Story()
    for step in (1, 2, 3):
        run.start().fail(step=step)
    assert run.verdict.stop is not None
    run.say("submitted", executor="slurm")
    assert run.verdict == budget.Verdict()


def test_a_start_that_never_came_to_be_counts() -> None:
    run = Story()
    for number in (1, 2, 3):
        run.number = number
        run.say("failed", reason=f"rank 0 waited for rank {number}", error=f"waited for rank {number}")
    assert run.verdict.stop is not None


def test_failures_of_the_evaluation_are_not_the_trainings() -> None:
    run = Story().start().save(5)
    for _ in range(5):
        run.say("failed", stage="evaluate", reason="x")
    assert run.verdict == budget.Verdict()


def test_events_that_lack_a_field_say_nothing() -> None:
    run = Story().start().say("checkpoint").say("epoch", step="5").say("failed")
    assert run.verdict == budget.Verdict()
    assert run.told.last_checkpoint() == (0, 0)
    assert run.save(7).say("checkpoint").told.last_checkpoint() == (7, 0)
    assert History().last_checkpoint() == (0, 0)


def test_unreadable_is_unknown_and_not_none(tmp_path: Path) -> None:
    assert story.attempt(tmp_path / "absent.jsonl") == History()
    assert story.attempt(tmp_path) is None
    assert budget.verdict(None) == budget.Verdict(known=False)


def test_a_kernels_check_of_its_input_is_no_broken_machine() -> None:
    error = "torch.AcceleratorError: CUDA error: device-side assert triggered"
    story = Story().start().fail(error, host="n1")
    stop = story.start().fail(error, host="n1").verdict.stop
    assert stop is not None
    assert "the same error twice in a row" in stop
    other = Story().start().fail(error, step=1, host="n1").start().fail(error, step=2, host="n1")
    assert other.verdict == budget.Verdict()
    hip = "Loss.hip:104: Device-side assertion `t < n_classes' failed. (was aborted (SIGABRT))"
    aborted = Story().start().fail(hip, code=134).start().fail(hip, code=134)
    assert "the same error twice in a row" in str(aborted.verdict.stop)


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        "torch.AcceleratorError: HIP error: unspecified launch failure",
        "RuntimeError: MIOpen Error: miopenStatusUnknownError",
    ],
)
def test_a_broken_machine_is_left(error: str) -> None:
    worn = Story().start().fail(error, host="n1").start().fail(error, host="n1")
    assert worn.verdict == budget.Verdict(exclude=("n1",))
