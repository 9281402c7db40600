"""Preempted with a grace time, in every kind of partition: what Slurm makes of the job's end there differs
between its versions. Whichever it is: the job, or a successor, goes on once; a finished training is COMPLETED
in the end, its evaluation runs once, and nothing starts after that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from launcher import HELD, ROOT, Launcher, of_run
from test_supervision import at_work, follow, make, submit

from jobs.run.directory import Run
from tests.stages import of
from tests.support.slurm import Slurm, wait_event, wait_for

pytestmark = pytest.mark.versions


def marks(slurm: Slurm) -> bool:
    """Whether this Slurm takes an end within the grace time for the preemption's, whatever the exit code."""
    return slurm.cluster.version >= (24, 5)


def preempt(slurm: Slurm, run: Run, job: str) -> None:
    slurm.preempt(job)
    wait_event(run.path, "signal")


def jobs_of(run: Run) -> list[str]:
    """The jobs of the training: the first, and those that went on for it."""
    return list(
        dict.fromkeys([e["job"] for e in of(run, "started")] + [e["job"] for e in of(run, "requeued")])
    )


def all_is_well(slurm: Slurm, run: Run, last: str, after: str, starts: int) -> None:
    """The last job of the training is COMPLETED, its evaluation ran once, and none of its jobs is left."""
    assert slurm.wait_ended(last) == "COMPLETED"
    assert slurm.wait_ended(after) == "COMPLETED"
    assert len((run.path / "evaluated").read_text().splitlines()) == 1
    wait_for(lambda: not slurm.run("squeue", "-h", "-n", "train", "-o", "%i").split(), "no job is left")
    assert len(of(run, "started")) == starts
    assert len(of(run, "finished")) == 1
    assert not of(run, "stopped")


@pytest.mark.parametrize("user_signal", [True, False])
def test_a_requeueing_partition_brings_the_job_back_once(
    variant: Callable[..., Slurm], tmp_path: Path, user_signal: bool
) -> None:
    slurm = variant("--user-signal", "--grace", "30") if user_signal else variant("--no-accounting")
    run = make(tmp_path / "run", "--partition=low", "--requeue")
    job = submit(slurm, run)
    after = follow(slurm, run, job)
    at_work(run)
    preempt(slurm, run, job)
    requeued = wait_event(run.path, "requeued")
    assert requeued["how"] == ("slurm" if marks(slurm) else "scontrol")
    all_is_well(slurm, run, job, after, starts=2)
    assert [e["step"] for e in of(run, "resumed")] == [e["step"] for e in of(run, "preempted")]
    assert slurm.job(job)["Restarts"] == "1"
    assert jobs_of(run) == [job]


def test_a_cancelling_partition_has_a_successor_where_the_job_cannot_come_back(
    cluster: Slurm, tmp_path: Path
) -> None:
    run = make(tmp_path / "run", "--partition=lowcan", "--requeue")
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    at_work(run)
    preempt(cluster, run, job)
    requeued = wait_event(run.path, "requeued")
    last = requeued.get("successor", job)
    assert (requeued["how"], last != job) == (("successor", True) if marks(cluster) else ("scontrol", False))
    all_is_well(cluster, run, last, after, starts=2)
    assert [e["step"] for e in of(run, "resumed")] == [e["step"] for e in of(run, "preempted")]
    if marks(cluster):
        assert cluster.state(job) == "PREEMPTED"


@pytest.mark.parametrize("partition", ["low", "lowcan"])
def test_a_training_that_finishes_within_its_grace_time_is_done(
    cluster: Slurm, tmp_path: Path, partition: str
) -> None:
    run = make(tmp_path / "run", f"--partition={partition}", "--requeue", finish_when_asked=True)
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    at_work(run)
    preempt(cluster, run, job)
    wait_event(run.path, "finished")
    last = job
    if marks(cluster):
        last = wait_event(run.path, "requeued").get("successor", job)
    assert (last == job) == (partition == "low" or not marks(cluster))
    all_is_well(cluster, run, last, after, starts=1)
    assert cluster.job(last)["Restarts"] == str(int(marks(cluster) and partition == "low"))


def test_a_save_that_outlasts_the_grace_time(variant: Callable[..., Slurm], tmp_path: Path) -> None:
    """Slurm itself requeues the job then; some of its versions once more when that has finished."""
    slurm = variant("--no-accounting", "--grace", "5")
    faults = [{"start": 1, "rank": 0, "step": 12, "do": "slow"}]
    run = make(tmp_path / "run", "--partition=low", "--requeue", steps=60, save_every=10, faults=faults)
    job = submit(slurm, run)
    after = follow(slurm, run, job)
    at_work(run)
    slurm.preempt(job)
    all_is_well(slurm, run, job, after, starts=2)


def test_a_job_that_would_be_held_for_too_many_requeues_goes_on(
    variant: Callable[..., Slurm], tmp_path: Path
) -> None:
    slurm = variant("--no-accounting", "--max-requeues", "2", "--user-signal")
    run = make(tmp_path / "run", "--partition=low", "--requeue")
    job = submit(slurm, run)
    after = follow(slurm, run, job)

    def preempt_start(number: int) -> None:
        wait_for(lambda: len(of(run, "started")) == number, f"start {number}")
        wait_for(lambda: any(e["start"] == number for e in of(run, "checkpoint")), "it is at work")
        slurm.preempt(job)
        wait_for(lambda: len(of(run, "requeued")) == number, f"preempted {number} times")

    preempt_start(1)
    preempt_start(2)
    expected = ["slurm", "successor"] if marks(slurm) else ["scontrol"] * 2
    assert [e["how"] for e in of(run, "requeued")] == expected
    last = of(run, "requeued")[-1].get("successor", job)
    all_is_well(slurm, run, last, after, starts=3)


def test_a_superseded_job_does_not_come_back(cluster: Slurm, tmp_path: Path) -> None:
    """It would fence off the job that goes on, which would fence it off in turn."""
    run = make(tmp_path / "run", "--partition=low", "--requeue", "--exclusive")
    first = submit(cluster, run)
    at_work(run)
    cluster.preempt(first)
    wait_event(run.path, "signal")
    # What a later start does.
    (run.job / "start-2").write_text(json.dumps({"job": "another", "restart": 0}))
    assert cluster.wait_ended(first) in ("FAILED", "PREEMPTED")
    assert cluster.job(first)["Restarts"] == "0"
    assert not of(run, "requeued")


def test_a_real_training_is_preempted_and_evaluated_once(launch: Launcher) -> None:
    launch.environment["PYTHONPATH"] = str(ROOT)
    jobs = launch.train("--run", "one", "--partition", "low", "--set", *HELD)
    run = launch.runs / "one"
    wait_for((run / "job" / "held-0").exists, "it is held")
    launch.slurm.preempt(jobs["train"])
    wait_event(run, "preempted")
    assert launch.slurm.wait_ended(jobs["train"], 240) == "COMPLETED"
    assert launch.slurm.wait_ended(jobs["evaluate"]) == "COMPLETED"
    assert [e["step"] for e in of_run(run, "resumed")] == [e["step"] for e in of_run(run, "preempted")]
    assert len([e for e in of_run(run, "started") if e["stage"] == "train"]) == 2
    assert len(of_run(run, "evaluated")) == 1
    assert launch.slurm.job(jobs["train"])["Restarts"] == "1"

    # What the commands that look at it make of that, and of this Slurm's answers.
    told = json.loads(launch("status", "one", "--json")[0])
    assert (told["state"], told["words"], told["preemptions"]) == ("finished", "finished, evaluated", 1)
    first, second = told["starts"]
    assert "preempted" in first["why"]
    assert "finished" in second["why"]
    assert re.search(r"one +finished, evaluated", launch("status")[0])
    logs, _ = launch("logs", "one", "--job", "train", "--lines", 0)
    assert f"train {jobs['train']}, rank 0" in logs
    assert ("preempted: Slurm requeues" if marks(launch.slurm) else "baton: requeued") in logs
    launch("report", "one")
    assert "preempted (SIGUSR2)" in (run / "report.html").read_text()
    assert "none of its jobs was queued or running" in launch("cancel", "one")[0]


# Every interpreter of the job reads this first: it holds a preparation until it is asked to leave.
HOLD = """
import os, sys, time

def hold(event, arguments):
    if event == "open" and "SegmentationClassAug" in str(arguments[0]) and os.path.exists(FOLDER + "/hold"):
        open(FOLDER + "/held", "w").close()
        while os.path.exists(FOLDER + "/hold"):
            time.sleep(0.05)

sys.addaudithook(hold)
"""


@pytest.mark.parametrize("partition", ["low", "lowcan"])
def test_a_preparation_goes_on_and_the_training_behind_it_starts(
    cluster: Slurm, tmp_path: Path, voc_archives: Path, partition: str
) -> None:
    launch = Launcher(cluster, tmp_path, tmp_path / "data")
    hold = tmp_path / "hold"
    hold.touch()
    (tmp_path / "sitecustomize.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{HOLD}")
    profile = tmp_path / "site.yaml"
    profile.write_text(f"prepare: {{env: {{PYTHONPATH: {json.dumps(str(tmp_path))}}}}}\n")
    arguments = ["--data-root", launch.data, "--archives", voc_archives, "--no-weights", "--json"]
    out, _ = launch("prepare", *arguments, "--cluster", profile, "--partition", partition)
    told = json.loads(out)
    job, run = told["jobs"]["prepare"], Path(told["path"])
    training = launch.train("--run", "behind", "--no-evaluation")["train"]
    wait_for((tmp_path / "held").exists, "it converts")
    cluster.preempt(job)
    wait_event(run, "signal")
    hold.unlink()
    wait_event(run, "prepared", 240)
    moved = [event["successor"] for event in of_run(run, "requeued")]
    assert len(moved) == (partition == "lowcan" and marks(cluster))
    assert cluster.wait_ended((moved or [job])[-1]) == "COMPLETED"
    wait_event(launch.runs / "behind", "finished")
    assert cluster.wait_ended(training) == "COMPLETED"
