"""What status says of a run in every state, and that what nobody knows is unknown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.run.directory import Run
from jobs.slurm import queries as slurm_queries
from jobs.slurm.queries import Answer, Job
from launch.observe import history, local_jobs, overview, states, tables, timeline
from tests.support import terminal
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
    assert judge(run, Job(id="12", state="PENDING", reason="Resources")).words == "queued, next in line"
    # Held for its priority: not the next one, although no job of its own partition stands before it.
    assert judge(run, Job(id="12", state="PENDING", reason="Priority")).words == "queued, others go first"


def test_waiting_for_the_preparation(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write(run, 0, "submitted", stage="train", job="12", executor="slurm", after="11")
    waiting = Job(id="12", state="PENDING", reason="Dependency", dependency="afterok:11(unfulfilled)")
    assert judge(run, waiting).words == "waits for job 11"
    never = Job(id="12", state="PENDING", reason="DependencyNeverSatisfied")
    assert judge(run, never).code == "stuck"


def test_held(tmp_path: Path) -> None:
    """Whatever the job's stage; and who may release it."""
    run = made_run(tmp_path / "run")
    submitted(run)
    admins = judge(run, Job(id="12", state="PENDING", reason="JobHeldAdmin"))
    assert (admins.code, admins.words) == ("stuck", "held by an administrator, who alone can release job 12")
    run = made_run(tmp_path / "prepare")
    write(run, 0, "submitted", stage="prepare", job="11", executor="slurm")
    own = judge(run, Job(id="11", state="PENDING", reason="JobHeldUser"))
    assert (own.code, own.words) == ("stuck", "held (JobHeldUser); scontrol release 11 lets it go on")


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


def test_a_job_with_which_the_user_goes_on_waits_for_no_requeue(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    write(run, 700, "submitted", stage="train", job="15", executor="slurm")
    waiting = Job(id="15", state="PENDING", reason="Priority", ahead=3)
    assert (judge(run, waiting).code, judge(run, waiting).words) == ("queued", "queued behind 3 jobs")
    started(run, 800, 4, job="15")
    assert judge(run, waiting).code == "requeueing"


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


def evaluated_run(path: Path) -> Run:
    run = interrupted_run(path)
    write(run, 582, "submitted", stage="evaluate", job="14", executor="slurm", after="12")
    write(
        run, 600, "evaluated", stage="evaluate", job="14", checkpoint="x", metrics={"mIoU": 56}, path="eval/1"
    )
    return run


def test_the_newest_evaluation_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated_run(tmp_path / "run")
    write(run, 700, "submitted", stage="evaluate", job="15", executor="slurm")
    assert states.jobs_to_ask(history.read(run)) == ["15"]
    assert (
        judge(run, Job(id="15", state="PENDING", ahead=1)).words == "trained, evaluation queued behind 1 job"
    )
    assert judge(run, Job(id="15", state="RUNNING")).code == "evaluating"
    # It has the evaluation that it goes by: one by hand that failed is not what the run is.
    seen = judge(run, Job(id="15", state="FAILED"))
    assert (seen.code, seen.words) == ("finished", "finished, evaluated; a later evaluation failed")
    write(run, 710, "failed", stage="evaluate", job="15", reason="--pictures: the dataset has no image nil")
    assert judge(run).words == "finished, evaluated; a later evaluation failed"
    timeline.print_one(run, T0 + 800, False, overview.Slurm())
    assert "--pictures: the dataset has" in capsys.readouterr().out
    # Where the one that is there is of another checkpoint, the best one's is missing.
    run.checkpoints.mkdir()
    (run.checkpoints / "epoch_4.pth").write_bytes(b"x")
    (run.checkpoints / "epoch_4.pth.json").write_text(
        json.dumps({"step": 400, "epoch": 4, "bytes": 1, "digest": "a" * 32})
    )
    assert judge(run).words == "trained; the evaluation failed: --pictures: the dataset has no image nil"


def test_a_failed_evaluation_by_hand_of_a_checkpoint_from_elsewhere(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for job, event in (("14", "evaluated"), ("15", "failed")):
        write(run, 1, "submitted", stage="evaluate", job=job, executor="slurm")
        write(run, 2, event, stage="evaluate", job=job, **FIELDS[event])
    assert judge(run).words == "finished, evaluated; a later evaluation failed"


def test_an_inference_under_way_is_seen(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    write(run, 700, "submitted", stage="infer", job="16", executor="slurm")
    assert states.jobs_to_ask(history.read(run)) == ["16"]
    seen = judge(run, Job(id="16", state="RUNNING"))
    assert (seen.words, seen.lives, seen.stage) == ("finished, evaluated; segmenting images", True, "infer")
    write(run, 710, "finished", stage="infer", job="16")
    assert judge(run).words == "finished, evaluated"


def test_an_evaluation_that_was_cancelled_and_the_one_after_it(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    write(run, 582, "submitted", stage="evaluate", job="14", executor="slurm", after="12")
    write(run, 590, "cancelled", by="me")
    assert judge(run).words == "finished; an evaluation was cancelled"
    assert history.read(run).cancelled is None, "the training was not"
    assert judge(run, Job(id="14", state="CANCELLED")).words == "finished; an evaluation was cancelled"
    write(run, 700, "submitted", stage="evaluate", job="15", executor="slurm")
    assert states.jobs_to_ask(history.read(run)) == ["15"]
    assert judge(run, Job(id="15", state="RUNNING")).code == "evaluating"
    write(run, 710, "cancelled", by="me")
    assert history.read(run).jobs["evaluate 15"].state == "cancelled"


def test_a_cancelled_run_that_is_evaluated(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    write(run, 100, "cancelled", by="me")
    write(run, 200, "submitted", stage="evaluate", job="15", executor="slurm")
    assert states.jobs_to_ask(history.read(run)) == ["15"]
    seen = judge(run, Job(id="15", state="RUNNING"))
    assert (seen.words, seen.lives) == ("cancelled; being evaluated", True)
    assert judge(run, Job(id="15", state="COMPLETED")).code == "cancelled"


def test_a_local_evaluation_by_hand_is_seen(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    write(run, 700, "submitted", stage="evaluate", job="local-1", executor="local")
    assert judge(run).words == "finished, evaluated; a later evaluation failed"
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    chain = {"pid": os.getpid(), "start_time": fields[19], "job": "local-1"}
    (run.job / "local-1.json").write_text(json.dumps(chain))
    assert judge(run).words == "trained, being evaluated"
    assert local_jobs.local_chains(run) == {"local-1": os.getpid()}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_a_loss_that_is_none(tmp_path: Path, loss: float | None) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    lr = float("nan") if loss is not None else None
    write(run, 90, "epoch", epoch=1, step=70, seconds=70.0, loss=loss, lr=lr, **common(1))
    write_progress(
        run, 100, start=1, step=80, epoch=1, phase="train", max_steps=100, seconds_per_step=1.0, loss=loss
    )
    running = Job(id="12", state="RUNNING")
    assert judge(run, running, now=110).words == "running, but the loss is nan"
    past = history.read(run)
    assert (past.incarnations[0].epoch, past.incarnations[0].step) == (1, 80)
    assert [mark.step for mark in past.incarnations[0].marks] == [1, 70], "the event with the NaN is lost"
    shown = states.status(run, past, Answer(jobs={"12": running}), T0 + 110)
    assert (shown.loss, shown.step, shown.max_steps) == (None, 80, 100)


def test_a_training_that_finished_without_a_loss_says_so(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "run")
    write(run, 570, "not_finite", step=1380, loss="nan", **common(3))
    assert judge(run).words == "finished, evaluated, but the loss was no number from step 1,380 on"


def test_before_the_first_step_there_is_no_loss_yet(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    write_progress(run, 30, start=1, step=1, epoch=0, phase="train", seconds_per_step=None, loss=None)
    assert judge(run, Job(id="12", state="RUNNING"), now=40).words == "running"


# (events after the submission, what Slurm says of job 12 or 14) -> the command that goes on from there
FINISHED = [("started", "train"), ("finished", "train")]
NEXT = [
    ([], "PENDING", "logs.py run -f · to end it: python launch/cancel.py run"),
    (FINISHED, "", "report.py run · python launch/evaluate.py run"),
    ([*FINISHED, ("evaluated", "evaluate")], "", "report.py run"),
    ([*FINISHED, ("submitted", "evaluate")], "RUNNING", "logs.py run -f · to end it"),
    (
        [*FINISHED, ("submitted", "evaluate"), ("failed", "evaluate")],
        "FAILED",
        "logs.py run --job evaluate, fix it, then python launch/evaluate.py run",
    ),
    ([("started", "train"), ("failed", "train")], "FAILED", "train.py --resume run"),
    ([("stopped", "train")], "", "train.py --resume run"),
    ([("cancelled", "train")], "", "train.py --resume run"),
]
FIELDS: dict[str, dict[str, Any]] = {
    "started": {"hosts": ["n1"], "world_size": 1, "start": 1},
    "failed": {"reason": "x"},
    "stopped": {"reason": "x"},
    "submitted": {"executor": "slurm"},
    "evaluated": {"checkpoint": "x", "metrics": {"mIoU": 5.0}, "path": "x"},
}


@pytest.mark.parametrize(("told", "slurm", "command"), NEXT)
def test_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, str]], slurm: str, command: str
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    run = made_run(tmp_path / "run")
    submitted(run)
    for at, (event, stage) in enumerate(told):
        job = "12" if stage == "train" else "14"
        write(run, at + 1, event, stage=stage, job=job, **FIELDS.get(event, {}))
    answer = Answer(jobs={id: Job(id=id, state=slurm) for id in ("12", "14")} if slurm else {})
    shown = states.status(run, history.read(run), answer, T0 + 100)
    assert command in timeline.next_command(run, shown), shown
    assert ("--resume" in timeline.next_command(run, shown)) == ("--resume" in command)


def test_what_would_not_put_it_right_is_not_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's config is a copy, and what has a checkpoint takes no other one."""
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    run = made_run(tmp_path / "run")
    submitted(run)
    write(run, 1, "stopped", stage="train", job="12", reason="a batch of one sample")
    how = (
        "train.py --resume run "
        "(the config by --set KEY=VALUE or --unset KEY; an edited file is another run's)"
    )

    def advice() -> str:
        past = history.read(run)
        return timeline.next_command(run, states.status(run, past, Answer(jobs={}), T0 + 9))

    assert advice().endswith(how)
    run.checkpoints.mkdir()
    (run.checkpoints / "epoch_1.pth.json").touch()
    assert advice().endswith("train.py --resume run")
    run.code.mkdir(exist_ok=True)
    (run.code / "my_hooks.py").touch()
    assert advice().endswith(f"train.py --resume run (your code in the run's copy of it, {run.code})")


def test_a_local_run_that_was_killed_is_running_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "run")
    submitted(run, job="local-1", executor="local")
    write(run, 0, "submitted", stage="evaluate", job="local-1", executor="local")
    started(run, 1, 1, job="local-1")
    timeline.print_one(run, T0 + 100, False, overview.Slurm())
    shown = capsys.readouterr().out
    assert "run: its local process is gone" in shown
    assert "running" not in shown
    starts, jobs = shown.split("STAGE  ")
    assert "ended without saying why" in starts
    assert re.search(r"train +its local process is gone", jobs)
    assert re.search(r"evaluate +never began", jobs)
    # It begins when the training is finished, without a word of its own; so does one by hand.
    write(run, 50, "finished", stage="train", job="local-1", start=1, step=10, epoch=1)
    write(run, 60, "submitted", stage="evaluate", job="local-2", executor="local")
    timeline.print_one(run, T0 + 100, False, overview.Slurm())
    assert capsys.readouterr().out.count("evaluate  its local process is gone") == 2


@pytest.mark.parametrize(
    ("event", "command"),
    [
        ("prepared", "python launch/train.py --data-root /data"),
        ("failed", "then python launch/prepare.py --archives '/a b'"),
        ("cancelled", "python launch/prepare.py --archives '/a b'"),
    ],
)
def test_the_next_command_after_a_preparation(tmp_path: Path, event: str, command: str) -> None:
    run = made_run(tmp_path / "run", command=["launch/prepare.py", "--archives", "/a b"])
    write(run, 0, "submitted", stage="prepare", job="12", executor="slurm")
    fields = {"prepared": {"data_root": "/data"}, "failed": {"reason": "no space"}}.get(event, {})
    write(run, 1, event, stage="prepare", job="12", **fields)
    shown = states.status(run, history.read(run), Answer(), T0 + 100)
    assert timeline.next_command(run, shown).endswith(command)


def test_a_job_that_could_not_even_begin_its_log(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    failed = Job(id="12", state="FAILED", reason="JobLaunchFailure")
    where = f"job 12 ended as FAILED (JobLaunchFailure) before its log began: do its nodes see {run.path}?"
    assert judge(run, failed).words == where
    (run.job / "12_log.out").touch()
    assert judge(run, failed).words == "job 12 ended as FAILED (JobLaunchFailure) before it began"


def test_a_job_that_was_killed_while_its_successor_waits_is_no_failure(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    write(run, 9, "started", start=1, hosts=["n1"], world_size=1)
    (run.job / "presubmitted-12").write_text("15")
    assert states.jobs_to_ask(history.read(run)) == ["12", "15"]
    timeout = Job(id="12", state="TIMEOUT")
    state = judge(run, timeout, Job(id="15", state="PENDING"))
    assert (state.code, state.words) == ("requeueing", "job 12 ended as TIMEOUT; job 15 goes on")
    assert judge(run, timeout, Job(id="15", state="CANCELLED")).code == "failed"


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
    chain = {"pid": os.getpid(), "start_time": int(fields[19]), "job": "local-1"}
    (run.job / "local.json").write_text(json.dumps(chain))
    assert judge(run).code == "starting"
    (run.job / "local.json").write_text(json.dumps(chain | {"start_time": int(fields[19]) + 1}))
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
        "killed without warning",
        "saved at step 150",
        "efficiency (ETTR)",
        "50 steps done again",
        "next:",
    ):
        assert part in one
    wrong = command("status.py", "ome")
    assert wrong.returncode == 2
    assert "did you mean one" in wrong.stderr


SLURM = """#!/bin/sh
echo "$0" >> "$BATON_CALLS"
case $0 in
*squeue) echo "12|12|N/A|RUNNING|gpu|10|me|2026-01-01T00:00:00|2026-01-01T00:00:00|n1|(null)|None" ;;
*sacct) echo "13|TIMEOUT|0:0|2026-01-01T00:00:00|2026-01-01T00:00:09|2026-01-01T00:00:00|n1|x" ;;
esac
"""


@pytest.fixture
def with_slurm(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs of Slurm: one that runs, one that squeue no longer lists; stand-ins answer and note calls."""
    for name, job in (("alive", "12"), ("gone", "13")):
        run = made_run(tmp_path / "runs" / name)
        submitted(run, job=job)
        started(run, 10, 1, job=job)
    (tmp_path / "bin").mkdir()

    def environment(*programs: str) -> dict[str, str]:
        for program in programs:
            (tmp_path / "bin" / program).write_text(SLURM)
            (tmp_path / "bin" / program).chmod(0o755)
        return {
            "PATH": str(tmp_path / "bin"), "BATON_RUNS": str(tmp_path / "runs"),
            "HOME": str(tmp_path), "BATON_CALLS": str(tmp_path / "calls"), "TERM": "xterm",
        }  # fmt: skip

    return environment


STATUS = [sys.executable, str(ROOT / "launch/status.py")]


def test_slurm_is_called_twice_at_most(tmp_path: Path, with_slurm) -> None:  # type: ignore[no-untyped-def]
    for number in range(20):
        submitted(made_run(tmp_path / "runs" / f"more-{number}"), job=str(100 + number))
    environment = with_slurm("squeue", "sacct")
    done = subprocess.run([*STATUS, "--json"], env=environment, capture_output=True, text=True, timeout=60)
    words = {one["name"]: one["words"] for one in json.loads(done.stdout)["runs"]}
    assert words["alive"].startswith("running")
    assert words["gone"].startswith("job 13 ended as TIMEOUT")
    calls = (tmp_path / "calls").read_text().split()
    assert [Path(call).name for call in calls] == ["squeue", "sacct"]


def test_without_sacct_what_left_the_queue_is_unknown(with_slurm) -> None:  # type: ignore[no-untyped-def]
    done = subprocess.run(STATUS, env=with_slurm("squeue"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "running" in lines["alive"]
    assert "Slurm says nothing of job 13" in lines["gone"]
    assert "sacct is not on PATH" in lines["note:"]


def test_on_a_terminal_it_is_coloured_and_fits(with_slurm) -> None:  # type: ignore[no-untyped-def]
    text = terminal.run(STATUS, with_slurm("squeue", "sacct"), columns=80)
    assert "\033[32mrunning" in text
    lines = terminal.plain(text).splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert any(line.startswith("alive  running") for line in lines)
    assert "MIOU" not in lines[0], "an empty column is shown"


@pytest.mark.parametrize("names", [[], ["alive"]])
def test_watch_looks_again_and_asks_slurm_seldom(tmp_path: Path, with_slurm, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    command = [*STATUS, *names, "--watch", "0.1"]
    with terminal.Terminal(command, with_slurm("squeue", "sacct"), columns=100) as shown:
        shown.until("alive")
        write(Run(tmp_path / "runs/alive"), 50, "epoch", epoch=7777, step=9999, seconds=1.0, **common(1))
        shown.until("7777")
        shown.interrupt()
        assert shown.code() == 130
    assert shown.text.count("\033[2J") > 1
    asked = len((tmp_path / "calls").read_text().split())
    assert asked <= 2 * (1 + (time.monotonic() - began) // overview.ASK)


def test_a_table_gives_up_columns_before_it_breaks_words() -> None:
    columns, row = (
        ("run", "state", ">step", "job"),
        ["a" * 20, "running, validating", "100/200", "local-4711"],
    )
    wide = tables.terminal(columns, [row], ["running"], ("job", ">step"), 100)
    assert "local-4711" in wide
    narrow = tables.terminal(columns, [row], ["running"], ("job", ">step"), 52).splitlines()
    assert "JOB" not in narrow[0]
    assert "100/200" in narrow[1]
    error = "failed: " + "RuntimeError: a long story " * 5
    broken = terminal.plain(tables.terminal(columns, [[row[0], error, "1", ""]], ["failed"], (), 70))
    assert max(map(len, broken.splitlines())) <= 70
    assert " ".join(broken.split()).count("RuntimeError") == 5
    assert "\033[31m" not in tables.terminal(columns, [row], [""], (), 100)
