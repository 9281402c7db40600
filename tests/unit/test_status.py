"""What status says of a run in every state, and that what nobody knows is unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run_directory import Run
from launch import history, slurm_queries, states
from launch.slurm_queries import Answer, Job
from tests.unit.made_runs import (
    T0,
    common,
    interrupted_run,
    made_run,
    started,
    submitted,
    write,
    write_progress,
)

ROOT = Path(__file__).resolve().parents[2]


def judge(run: Run, *jobs: Job, now: float = 0) -> states.State:
    past = history.read(run)
    answer = Answer(jobs={job.id: job for job in jobs})
    return states.judge(run, past, answer, history.progress(run), T0 + now)


def test_queued(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    pending = Job(id="12", state="PENDING", reason="Priority", ahead=3, start=T0 + 3600)
    state = judge(run, pending)
    assert state.code == "queued"
    assert state.words.startswith("queued behind 3 jobs, expected start ")


def test_waiting_for_the_preparation(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write(run, 0, "submitted", stage="train", job="12", executor="slurm", after="11")
    waiting = Job(id="12", state="PENDING", reason="Dependency", dependency="afterok:11(unfulfilled)")
    assert judge(run, waiting).words == "waits for job 11"
    never = Job(id="12", state="PENDING", reason="DependencyNeverSatisfied")
    assert judge(run, never).code == "stuck"


def test_running_starting_and_silent(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    running = Job(id="12", state="RUNNING")
    assert judge(run, running).code == "starting"
    started(run, 10, 1)
    write_progress(run, 100, start=1, step=80, epoch=0, phase="validate")
    assert judge(run, running, now=110).words == "running, validating"
    assert "silent for 50 min" in judge(run, running, now=3100).words


def test_waiting_for_requeue(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    write(run, 50, "preempted", step=30, epoch=0, **common(1))
    write(run, 50, "requeued", stage="train", job="12", how="slurm")
    assert judge(run, Job(id="12", state="PENDING", reason="BeginTime")).words == "waiting for requeue"
    assert judge(run, Job(id="12", state="COMPLETING")).code == "requeueing"
    behind = Job(id="12", state="PENDING", reason="Priority", ahead=1)
    assert judge(run, behind).words == "waiting for requeue, queued behind 1 job"


def test_unknown_is_never_success(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    assert judge(run, now=60).code == "unknown"
    # Slurm says COMPLETED, but the run never said that it finished.
    assert judge(run, Job(id="12", state="COMPLETED")).code == "failed"


def test_a_successor_is_the_job_that_counts(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    write(run, 50, "preempted", step=30, epoch=0, **common(1))
    write(run, 50, "requeued", stage="train", job="12", how="successor", successor="19")
    jobs = (Job(id="12", state="PREEMPTED"), Job(id="19", state="PENDING", reason="Priority"))
    assert judge(run, *jobs).code == "requeueing"
    assert states.jobs_to_ask(history.read(run)) == ["19"]


def test_ended(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    assert judge(run).words == "finished"
    write(run, 582, "submitted", stage="evaluate", job="14", executor="slurm", after="12")
    assert judge(run, Job(id="14", state="PENDING")).code == "evaluating"
    assert judge(run, Job(id="14", state="FAILED")).code == "failed"
    write(
        run, 600, "evaluated", stage="evaluate", job="14", checkpoint="x", metrics={"mIoU": 56}, path="eval/1"
    )
    assert judge(run).words == "finished, evaluated"


def test_stopped_failed_and_cancelled(tmp_path: Path) -> None:
    stopped = made_run(tmp_path / "stopped")
    submitted(stopped)
    write(stopped, 9, "stopped", stage="train", job="12", reason="3 starts in a row without a new checkpoint")
    assert judge(stopped).words == "stopped: 3 starts in a row without a new checkpoint"
    failed = made_run(tmp_path / "failed")
    submitted(failed)
    started(failed, 1, 1)
    write(failed, 9, "failed", reason="rank 1 died", error="KeyError: 'a'", rank=1, **common(1))
    assert judge(failed, Job(id="12", state="FAILED")).words == "failed: KeyError: 'a'"
    assert judge(failed, Job(id="12", state="RUNNING")).code == "starting"
    cancelled = made_run(tmp_path / "cancelled")
    submitted(cancelled)
    write(cancelled, 9, "cancelled", by="me")
    assert judge(cancelled).code == "cancelled"


def test_a_reused_pid_is_not_the_chain(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run, job="local-1", executor="local")
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    (run.job / "local.json").write_text(json.dumps({"pid": os.getpid(), "start_time": int(fields[19])}))
    assert judge(run).code == "starting"
    (run.job / "local.json").write_text(json.dumps({"pid": os.getpid(), "start_time": int(fields[19]) + 1}))
    assert judge(run).code == "failed"


SQUEUE = (
    "7|7|N/A|PENDING|gpu|900|ann|N/A|2026-11-24T00:00:00||(null)|Priority\n"
    "8|8|N/A|PENDING|gpu|900|bob|N/A|2026-11-24T00:00:00||(null)|Resources\n"
    "9|9|N/A|PENDING|gpu|999|bob|N/A|2026-11-24T00:00:00||afterok:3(unfulfilled)|Dependency\n"
    "10|10|N/A|PENDING|gpu|500|me|2026-11-24T09:00:00|2026-11-24T00:00:00||(null)|Priority\n"
    "12|11|3|RUNNING|cpu|1|me|2026-11-24T00:10:00|2026-11-24T00:00:00|n1|(null)|None\n"
)


def test_squeue_is_read() -> None:
    jobs = slurm_queries.parse_squeue(SQUEUE)
    assert jobs["10"].ahead == 2  # not the one that waits for a dependency
    assert jobs["8"].ahead == 1
    assert jobs["11_3"].state == "RUNNING"
    assert jobs["11_3"].nodes == "n1"
    assert jobs["10"].start is not None


def test_without_slurm_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    answer = slurm_queries.ask(["12", "local-5"])
    assert answer.calls == 0
    assert answer.job("12").state == "UNKNOWN"
    assert slurm_queries.ask(["local-5"]).problems == []


@pytest.fixture
def command(tmp_path: Path):  # type: ignore[no-untyped-def]
    def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/nonexistent", "BATON_RUNS": str(tmp_path), "HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / script), *arguments],
            capture_output=True, text=True, timeout=60, env=environment,
        )  # fmt: skip

    return call


def test_the_command(tmp_path: Path, command) -> None:  # type: ignore[no-untyped-def]
    interrupted_run(tmp_path / "one")
    waiting = made_run(tmp_path / "two")
    submitted(waiting)
    done = command("status.py")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "Slurm says nothing of job 12" in done.stdout
    assert "\033" not in done.stdout
    found = json.loads(command("status.py", "--json").stdout)["runs"]
    assert {one["name"]: one["state"] for one in found} == {"one": "finished", "two": "unknown"}
    one = command("status.py", "one").stdout
    for part in (
        "killed without a word",
        "saved at step 150",
        "efficiency (ETTR)",
        "50 steps done again",
        "next:",
    ):
        assert part in one
    wrong = command("status.py", "ome")
    assert wrong.returncode == 2
    assert "did you mean one" in wrong.stderr
    assert command("cancel.py", "one").stdout == "one: nothing of it was queued or running\n"
