"""What follows on srun's end, as far as no Slurm is needed; else see tests/slurm/test_supervision.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import events
from jobs.exit_codes import FAILED, RESUME, SUPERSEDED, USER_ERROR
from jobs.run_directory import Run
from jobs.train import afterwards
from jobs.train.afterwards import AGAIN_HERE, after_srun


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BATON_JOB", "local-1")
    run = Run(tmp_path)
    run.job.mkdir()
    say(run, "submitted", executor="local")
    return run


def say(run: Run, event: str, **fields: object) -> None:
    events.append(run.events, event, stage="train", job="local-1", **fields)


def start(run: Run, number: int) -> None:
    say(run, "started", start=number, hosts=["n1"], world_size=1)


def names(run: Run) -> list[str]:
    return [record["event"] for record in events.read(run.events)]


def test_finished(run: Run) -> None:
    assert after_srun(run, 0).code == 0


def test_saved_and_left(run: Run) -> None:
    start(run, 1)
    assert after_srun(run, RESUME).code == RESUME


def test_a_failure_starts_again_here(run: Run) -> None:
    start(run, 1)
    say(run, "failed", start=1, reason="x", error="x", exit_code=1, rank=0, host="n1")
    assert after_srun(run, FAILED).code == AGAIN_HERE
    assert names(run) == ["submitted", "started", "failed"]


def test_a_failure_that_nobody_could_note_is_noted(run: Run) -> None:
    for number in (1, 2):
        start(run, number)
        assert after_srun(run, 137).code == AGAIN_HERE
    start(run, 3)
    assert after_srun(run, 137).code == 137
    assert names(run)[-2:] == ["failed", "stopped"]
    failed = [record for record in events.read(run.events) if record["event"] == "failed"]
    assert [record["start"] for record in failed] == [1, 2, 3]
    assert "signal 9" in failed[0]["reason"]


def test_srun_itself_failing_for_ever_is_stopped(run: Run) -> None:
    """No start ever comes to be: the nodes cannot be reached, say."""
    codes = [after_srun(run, 1).code for _ in range(3)]
    assert codes == [AGAIN_HERE, AGAIN_HERE, 1]


def test_the_users_mistake_is_not_tried_again(run: Run) -> None:
    start(run, 1)
    say(run, "failed", start=1, reason="rank 0: no such model", error="no such model", exit_code=2)
    assert after_srun(run, USER_ERROR).code == USER_ERROR
    stopped = events.read(run.events)[-1]
    assert (stopped["event"], stopped["reason"]) == ("stopped", "no such model")


def test_a_stop_is_said_once(run: Run) -> None:
    say(run, "stopped", start=1, reason="three starts")
    assert after_srun(run, FAILED).code == FAILED
    assert names(run).count("stopped") == 1


@pytest.mark.parametrize("how", ["event", "file"])
@pytest.mark.parametrize("code", [RESUME, FAILED])
def test_a_cancelled_run_is_left_alone(run: Run, how: str, code: int) -> None:
    start(run, 1)
    if how == "event":
        say(run, "cancelled", by="somebody")
    else:
        (run.job / "cancelled").touch()
    assert after_srun(run, code).code == code
    assert "requeued" not in names(run)


def mark(run: Run, number: int, job: str, restart: int = 0) -> None:
    (run.job / f"start-{number}").write_text(json.dumps({"job": job, "restart": restart}))


@pytest.mark.parametrize(
    ("code", "end"), [(SUPERSEDED, SUPERSEDED), (RESUME, SUPERSEDED), (FAILED, FAILED), (0, 0)]
)
def test_a_start_that_another_job_has_superseded_is_not_repeated(run: Run, code: int, end: int) -> None:
    start(run, 1)
    mark(run, 1, "local-1")
    mark(run, 2, "local-2")
    mark(run, 3, "local-2", restart=1)
    outcome = after_srun(run, code)
    assert outcome.code == end
    assert ("(job local-2) goes on" in outcome.words) == (code != 0)
    assert names(run) == ["submitted", "started"]


def test_only_a_start_that_came_later_supersedes(run: Run) -> None:
    mark(run, 1, "local-9")  # of another job, long ago; this one's srun never came so far
    assert after_srun(run, FAILED).code == AGAIN_HERE
    mark(run, 2, "local-1")
    (run.job / "start-3").touch()  # torn on a full disk
    assert after_srun(run, FAILED).code == AGAIN_HERE


def test_a_job_that_missed_its_own_requeue_is_superseded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    mark(run, 1, "local-1")
    mark(run, 2, "local-1", restart=1)
    assert afterwards._later_start(run, "local-1") is None
    mark(run, 3, "local-1", restart=2)
    assert afterwards._later_start(run, "local-1") is not None


def test_submitting_again_takes_a_cancellation_back(run: Run) -> None:
    say(run, "cancelled", by="somebody")
    assert afterwards.cancelled_by(run) == "somebody"
    say(run, "submitted", executor="local")
    assert afterwards.cancelled_by(run) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("afterok:12", "afterok:99"),
        ("afterok:12:13,afterany:12", "afterok:99:13,afterany:99"),
        ("afterok:123", "afterok:123"),
        ("afterok:12_3", "afterok:12_3"),
        ("singleton", "singleton"),
    ],
)
def test_dependencies_are_renamed(before: str, after: str) -> None:
    assert afterwards._rename(before, "12", "99") == after


def test_dependency_on_an_element_is_renamed() -> None:
    assert afterwards._rename("afterok:12_3,afterok:12_31", "12_3", "99_3") == "afterok:99_3,afterok:12_31"


def test_dependency_on_either_job() -> None:
    assert afterwards._either("afterok:12", "12", "99") == "afterok:12?afterok:99"
    assert afterwards._either("afterok:12,singleton", "12", "99") == "afterok:12,singleton"


def test_a_successor_does_not_take_itself_for_this_job() -> None:
    inherited = {
        "SLURM_RESTART_COUNT": "3",
        "SLURM_JOB_ID": "12",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_PARTITION": "x",
        "BATON_JOB": "12",
        "BATON_SCRIPT": "/run/train.sbatch",
        "PATH": "/bin",
    }
    kept = afterwards.clean_environment(inherited)
    assert sorted(kept) == ["BATON_SCRIPT", "PATH", "SLURM_CONF"]
