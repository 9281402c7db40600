"""Supervision on the real cluster, with the batch script that users get and a stand-in for the training.

What becomes of weights is test_acceptance.py's subject; here it is jobs: which come back, as which, who
follows them, and what is left on the nodes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events
from jobs.run.directory import Run
from jobs.supervise import budget
from launch.submit import batch_script as script
from launch.submit import programs
from tests.stages import ROOT, make_run, of
from tests.support.slurm import Slurm, wait_event, wait_for

HEADER = """#!/bin/bash
#SBATCH --job-name=train
#SBATCH --open-mode=append
#SBATCH --output={job}/%j_log.out
#SBATCH --time=10
#SBATCH --cpus-per-task=1
{options}
trap : USR2 TERM
run={run}
python={python} host_python=$python
job=$SLURM_JOB_ID
logs="$run/job/$job"
"""


def make(path: Path, *options: str, presubmit: bool = False, **plan: Any) -> Run:
    """A run whose snapshot trains with the stand-in, and its batch script."""
    run = make_run(path, **{"steps": 400, "seconds": 0.05, "save_every": 10} | plan)
    shutil.copytree(ROOT / "jobs", run.code / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/stand_in_worker.py", run.code)
    request = run.request()
    request.worker = ["stand_in_worker.py", str(run.path)]
    run.write_request(request)
    head = HEADER.format(
        job=run.job,
        run=run.path,
        python=ROOT / ".venv/bin/python",
        options="\n".join(f"#SBATCH {option}" for option in options),
    )
    after = programs.AFTER_TRAINING
    body = script.TRAIN.format(
        cd='cd "$run/code" || exit 2',
        srun=script.SRUN,
        python='"$python"',
        presubmit=script.PRESUBMIT.format(after=after) if presubmit else "",
        after=after,
    )
    (run.job / "train.sbatch").write_text(head + body)
    return run


def submit(slurm: Slurm, run: Run, *options: str) -> str:
    job = slurm.run("sbatch", "--parsable", *options, str(run.job / "train.sbatch")).strip()
    events.append(run.events, "submitted", stage="train", job=job, executor="slurm")
    return job


def follow(slurm: Slurm, run: Run, job: str) -> str:
    """A job that depends on the training as its evaluation does."""
    options = [f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", "--output=/dev/null", "-N1"]
    return slurm.run("sbatch", "--parsable", *options, "--wrap", f"date >>{run.path}/evaluated").strip()


def at_work(run: Run) -> None:
    wait_event(run.path, "checkpoint")


TWO_NODES = ("--nodes=2", "--ntasks-per-node=2")


@pytest.mark.parametrize(("do", "code"), [("kill", 137), ("raise", 1), ("segv", 139), ("exit 0", 1)])
def test_a_dead_rank_ends_all_and_the_training_goes_on_here(
    cluster: Slurm, tmp_path: Path, do: str, code: int
) -> None:
    faults = [
        {"start": 1, "rank": "*", "step": 2, "do": "fork"},
        {"start": 1, "rank": 3, "step": 12, "do": do},
    ]
    run = make(tmp_path / "run", *TWO_NODES, steps=30, faults=faults)
    job = submit(cluster, run)
    assert cluster.wait_ended(job) == "COMPLETED"
    (failed,) = of(run, "failed")
    assert (failed["rank"], failed["exit_code"], failed["log"]) == (3, code, f"job/{job}_3_log.out")
    assert failed["host"] == of(run, "started")[0]["hosts"][1]
    assert [e["step"] for e in of(run, "resumed")] == [10]
    assert cluster.job(job)["Restarts"] == "0"
    # From its death until no process of that start is left on any node, and the next has begun.
    died = (run.job / "died-1-3").stat().st_mtime
    again = of(run, "started")[1]
    assert 0 < events.seconds_of(again["time"]) - died < 15.0
    assert [file.read_text() for file in sorted(run.job.glob("left-2-*"))] == [""] * 4
    cluster.wait_no_processes(job)


def test_an_evaluation_follows_the_successor(cluster: Slurm, tmp_path: Path) -> None:
    """Where requeueing is forbidden. It is as its job was: an edited script, submitted with options."""
    run = make(tmp_path / "run", "--partition=gpu", "--no-requeue", "--exclude=n1", *TWO_NODES)
    script = run.job / "train.sbatch"
    text = script.read_text().replace("job=$SLURM_JOB_ID\n", "job=$SLURM_JOB_ID\necho >>$run/edited\n")
    slurm = cluster
    job = slurm.run(
        "sbatch", "--parsable", "--partition=low", "--time=8", "--exclude=n4", input=text, cwd=tmp_path,
        env={"SBATCH_ACCOUNT": "root"},
    ).strip()  # fmt: skip
    after = follow(slurm, run, job)
    at_work(run)
    slurm.run("scancel", "--signal=USR2", job)
    requeued = wait_event(run.path, "requeued")
    assert (requeued["how"], requeued["job"]) == ("successor", job)
    assert slurm.wait_ended(job) == "FAILED"
    successor = requeued["successor"]
    first, second = slurm.job(job), slurm.job(successor)
    for field in (
        "Partition",
        "Account",
        "QOS",
        "TimeLimit",
        "ExcNodeList",
        "NumNodes",
        "NumTasks",
        "WorkDir",
    ):
        assert re.sub(r"^(\d+)-\d+$", r"\1", second[field]) == first[field], field  # nodes: a range at first
    assert (second["Partition"], second["TimeLimit"], second["ExcNodeList"]) == ("low", "00:08:00", "n4")
    assert slurm.wait_ended(successor) == "COMPLETED"
    assert slurm.wait_ended(after) == "COMPLETED"
    assert len((run.path / "evaluated").read_text().splitlines()) == 1
    assert [e["step"] for e in of(run, "resumed")] == [e["step"] for e in of(run, "preempted")]
    assert len((run.path / "edited").read_text().splitlines()) == 2
    assert of(run, "started")[-1]["job"] == successor
    assert of(run, "started")[-1]["restart"] == 0


def test_a_partition_that_cancels(cluster: Slurm, tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--partition=lowcan", "--requeue")
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    at_work(run)
    cluster.preempt(job)
    requeued = wait_event(run.path, "requeued")
    assert requeued["how"] in ("successor", "scontrol")
    assert cluster.wait_ended(after, seconds=240) == "COMPLETED"
    assert [e["step"] for e in of(run, "resumed")] == [e["step"] for e in of(run, "preempted")]


def test_a_job_killed_without_any_notice_has_a_successor_waiting(cluster: Slurm, tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--partition=lowcan", "--no-requeue", presubmit=True)
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    at_work(run)

    cluster.kill_processes_of(job)
    assert cluster.wait_ended(job) == "FAILED"
    wait_event(run.path, "finished")
    (last,) = {e["job"] for e in of(run, "finished")}
    assert last != job
    assert cluster.wait_ended(last) == "COMPLETED"
    assert cluster.wait_ended(after) == "COMPLETED"
    # The successor's own successor is not wanted any more.
    wait_for(lambda: not cluster.run("squeue", "-h", "-n", "train", "-o", "%i").split(), "no job is left")
    assert len(of(run, "started")) == 2
    assert [(e["job"], e["how"], e["successor"]) for e in of(run, "requeued")] == [(job, "successor", last)]


def test_a_successor_in_advance_is_withdrawn_when_the_job_comes_back_itself(
    cluster: Slurm, tmp_path: Path
) -> None:
    run = make(tmp_path / "run", "--partition=low", "--requeue", presubmit=True)
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    at_work(run)
    waiting = (run.job / f"presubmitted-{job}").read_text()
    cluster.run("scancel", "--signal=USR2", job)
    assert wait_event(run.path, "requeued")["how"] == "scontrol"
    assert cluster.wait_ended(job) == "COMPLETED"
    assert cluster.wait_ended(waiting) == "CANCELLED"
    assert cluster.wait_ended(after) == "COMPLETED"
    assert {e["job"] for e in of(run, "started")} == {job}
    wait_for(lambda: not cluster.run("squeue", "-h", "-n", "train", "-o", "%i").split(), "no job is left")


def test_submitted_twice_the_evaluation_follows_the_job_that_goes_on(cluster: Slurm, tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--partition=low", "--requeue")
    first = submit(cluster, run)
    after = follow(cluster, run, first)
    at_work(run)
    second = cluster.run("sbatch", "--parsable", str(run.job / "train.sbatch")).strip()
    assert cluster.wait_ended(first) == "FAILED"
    assert cluster.wait_ended(second) == "COMPLETED"
    assert cluster.wait_ended(after) == "COMPLETED"
    assert [(e["start"], e["by"]) for e in of(run, "superseded")] == [(1, 2)]
    assert [e["job"] for e in of(run, "started")] == [first, second]
    assert not of(run, "failed")


@pytest.mark.versions
@pytest.mark.parametrize(
    ("partition", "options"), [("low", "--requeue"), ("low", "--no-requeue"), ("lowcan", "--requeue")]
)
def test_a_preemption_without_grace_time_is_no_cancellation(
    variant: Callable[..., Slurm], tmp_path: Path, partition: str, options: str
) -> None:
    """The job is COMPLETING at once, as after a scancel."""
    cluster = variant("--kill-wait", "60", "--grace", "0", "--no-accounting")
    run = make(tmp_path / "run", f"--partition={partition}", options)
    job = submit(cluster, run)
    at_work(run)
    cluster.preempt(job)
    requeued = wait_event(run.path, "requeued")
    assert not of(run, "cancelled")
    assert cluster.wait_ended(requeued.get("successor", job)) == "COMPLETED"


@pytest.mark.versions
@pytest.mark.parametrize("how", ["scancel", "event"])
def test_a_cancelled_job_does_not_come_back(variant: Callable[..., Slurm], tmp_path: Path, how: str) -> None:
    # Where Slurm kills late, so that it is not what keeps the batch script from a requeue.
    cluster = variant("--kill-wait", "60", "--no-accounting")
    run = make(tmp_path / "run", "--partition=low", "--requeue", *TWO_NODES)
    job = submit(cluster, run)
    at_work(run)
    if how == "event":
        events.append(run.events, "cancelled", by="a test")
        cluster.run("scancel", "--signal=TERM", job)
    else:
        cluster.run("scancel", job)
    assert cluster.wait_ended(job) == ("FAILED" if how == "event" else "CANCELLED")
    assert of(run, "cancelled")[-1]["by"] == ("a test" if how == "event" else "scancel")
    cluster.wait_no_processes(job)
    assert not of(run, "requeued")
    assert cluster.run("squeue", "-h", "-n", "train", "-o", "%i") == ""
    if how == "scancel":
        assert cluster.wait_ended(submit(cluster, run)) == "FAILED", "only train.py --resume takes it back"
        assert len(of(run, "started")) == 1


def test_only_the_element_of_an_array_comes_back(cluster: Slurm, tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--partition=low", "--requeue")
    other = make(tmp_path / "other", steps=5)
    text = (run.job / "train.sbatch").read_text()
    text = text.replace(
        f"run={run.path}\n", f"run={tmp_path}/$([ $SLURM_ARRAY_TASK_ID = 1 ] && echo run || echo other)\n"
    )
    text = text.replace("job=$SLURM_JOB_ID\n", "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n")
    (run.job / "train.sbatch").write_text(text)
    job = submit(cluster, run, "--array=0-1")
    at_work(run)
    wait_event(other.path, "finished")
    cluster.run("scancel", "--signal=USR2", f"{job}_1")
    requeued = wait_event(run.path, "requeued")
    assert (requeued["job"], requeued["how"]) == (f"{job}_1", "scontrol")
    wait_event(run.path, "finished")
    assert of(run, "started")[-1]["restart"] == 1
    assert len(of(other, "started")) == 1


def test_each_element_of_a_sweep_is_evaluated_also_one_with_a_successor(
    cluster: Slurm, tmp_path: Path
) -> None:
    runs = [make(tmp_path / f"run{n}", "--partition=low", "--no-requeue", steps=200) for n in (0, 1)]
    script = runs[0].job / "train.sbatch"
    text = script.read_text().replace(f"run={runs[0].path}\n", f"run={tmp_path}/run$SLURM_ARRAY_TASK_ID\n")
    text = text.replace("job=$SLURM_JOB_ID\n", "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n")
    script.write_text(text)
    job = submit(cluster, runs[0], "--array=0-1")
    options = [f"--dependency=aftercorr:{job}", "--kill-on-invalid-dep=yes", "--array=0-1"]
    wrapped = f"date >>{tmp_path}/run$SLURM_ARRAY_TASK_ID/evaluated"
    after = cluster.run("sbatch", "--parsable", *options, "--output=/dev/null", "--wrap", wrapped).strip()
    at_work(runs[1])
    cluster.run("scancel", "--signal=USR2", f"{job}_1")
    requeued = wait_event(runs[1].path, "requeued")
    assert (requeued["how"], requeued["job"]) == ("successor", f"{job}_1")
    assert requeued["successor"].endswith("_1")
    for element in (0, 1):
        assert cluster.wait_ended(f"{after}_{element}") == "COMPLETED"
        assert len((runs[element].path / "evaluated").read_text().splitlines()) == 1
        assert len(of(runs[element], "finished")) == 1
    assert [len(of(run, "started")) for run in runs] == [1, 2]


def test_a_node_that_fails_twice_is_left(cluster: Slurm, tmp_path: Path) -> None:
    faults = [{"start": start, "rank": 1, "step": step, "do": "kill"} for start, step in ((1, 3), (2, 4))]
    run = make(tmp_path / "run", "--nodes=2", "--ntasks-per-node=1", "--requeue", steps=40, faults=faults)
    job = submit(cluster, run)
    requeued = wait_event(run.path, "requeued")
    bad = of(run, "failed")[-1]["host"]
    assert requeued["exclude"] == [bad]
    assert cluster.wait_ended(job) == "COMPLETED"
    assert bad not in of(run, "started")[-1]["hosts"]
    assert of(run, "started")[-1]["restart"] == 1


@pytest.mark.parametrize("how", ["assert", "abort", "cublas"])
def test_wrong_data_on_a_gpu_is_no_node_s_fault(how: str, cluster: Slurm, tmp_path: Path) -> None:
    """A label that is no class: the kernel's own check ends the process wherever it runs, as torch's error,
    as HIP's abort, or as another library's error behind what the kernel wrote."""
    faults = [{"start": "*", "rank": 1, "step": 2, "do": how}]
    run = make(tmp_path / "run", *TWO_NODES, "--requeue", faults=faults)
    job = submit(cluster, run)
    assert cluster.wait_ended(job) == "FAILED"
    (first, second) = of(run, "failed")
    assert budget.DATA.search(first["error"])
    assert first["host"] == second["host"]
    assert not any(event.get("exclude") for event in of(run, "requeued"))
    assert "the same error twice in a row at step 2" in of(run, "stopped")[0]["reason"]


def test_a_hopeless_training_ends_and_its_evaluation_is_withdrawn(cluster: Slurm, tmp_path: Path) -> None:
    faults = [{"start": "*", "rank": 1, "step": 2, "do": "raise"}]
    run = make(tmp_path / "run", *TWO_NODES, faults=faults)
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    assert cluster.wait_ended(job) == "FAILED"
    assert "same error twice" in of(run, "stopped")[0]["reason"]
    assert cluster.wait_ended(after) == "CANCELLED"
    assert len(of(run, "started")) == 2


@pytest.mark.parametrize("do", ["exit 2", "segv"])
def test_a_finished_training_is_evaluated_whatever_becomes_of_a_rank_on_the_way_out(
    cluster: Slurm, tmp_path: Path, do: str
) -> None:
    run = make(tmp_path / "run", steps=20, faults=[{"start": 1, "rank": 0, "step": 20, "do": do}])
    job = submit(cluster, run)
    after = follow(cluster, run, job)
    assert cluster.wait_ended(job) == "COMPLETED"
    assert len(of(run, "failed")) == 1
    assert "after that a rank failed" in (run.job / f"{job}_log.out").read_text()
    assert cluster.wait_ended(after) == "COMPLETED"


def test_a_killed_supervisor_leaves_nothing_behind(cluster: Slurm, tmp_path: Path) -> None:
    run = make(tmp_path / "run", *TWO_NODES, "--requeue", steps=60)
    job = submit(cluster, run)
    at_work(run)
    victim = int(of(run, "started")[0]["pid"])
    os.kill(victim, signal.SIGKILL)
    assert cluster.wait_ended(job) == "COMPLETED"
    assert "supervisor was killed" in of(run, "failed")[0]["error"]
    assert len(of(run, "started")) == 2
    cluster.wait_no_processes(job)
