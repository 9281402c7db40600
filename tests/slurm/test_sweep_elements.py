"""What is done to one element of a sweep is done to no other.

The last element of an array has the array's own number: whatever is asked of Slurm by that number is done to
all its elements. So it is the last one to which everything happens here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launcher import HELD, TINY, Launcher, of_run
from test_supervision import make, submit

from jobs.run.directory import Run
from tests.stages import of
from tests.support.slurm import Slurm, wait_event, wait_for

SIZE = 3


def make_array(folder: Path, *options: str, last: dict[str, Any], **plan: Any) -> list[Run]:
    """Runs run0, run1, run2 and one script for all of them, run0's; `last` is the plan of run2."""
    runs = [
        make(folder / f"run{n}", *options, **plan, **(last if n == SIZE - 1 else {})) for n in range(SIZE)
    ]
    script = runs[0].job / "train.sbatch"
    text = script.read_text().replace(f"run={runs[0].path}\n", f"run={folder}/run$SLURM_ARRAY_TASK_ID\n")
    script.write_text(text.replace("job=$SLURM_JOB_ID\n", "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n"))
    return runs


def shown(cluster: Slurm, job: str) -> dict[str, str]:
    text = cluster.run("scontrol", "show", "job", "-o", job)
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def others_are_untouched(cluster: Slurm, job: str, runs: list[Run]) -> None:
    for number in range(SIZE - 1):
        fields = shown(cluster, f"{job}_{number}")
        assert (fields["JobState"], fields["Restarts"], fields["ExcNodeList"]) == ("RUNNING", "0", "(null)")
        assert fields["Requeue"] == "1"
        assert len(of(runs[number], "started")) == 1


def last_has_the_arrays_number(cluster: Slurm, job: str) -> None:
    assert shown(cluster, f"{job}_{SIZE - 1}")["JobId"] == job, "another Slurm: choose another element"


def test_a_node_is_excluded_and_a_requeue_done_for_one_element(cluster: Slurm, tmp_path: Path) -> None:
    faults = [{"start": start, "rank": 0, "step": step, "do": "kill"} for start, step in ((1, 3), (2, 4))]
    options = ("--partition=low", "--requeue", "--ntasks=1")
    runs = make_array(tmp_path, *options, last={"faults": faults}, steps=100000)
    job = submit(cluster, runs[0], f"--array=0-{SIZE - 1}")
    requeued = wait_event(runs[-1].path, "requeued")
    bad = of(runs[-1], "failed")[-1]["host"]
    assert (requeued["job"], requeued["exclude"]) == (f"{job}_{SIZE - 1}", [bad])
    wait_event(runs[-1].path, "started", start=3)
    last_has_the_arrays_number(cluster, job)
    fields = shown(cluster, f"{job}_{SIZE - 1}")
    assert (fields["ExcNodeList"], fields["Restarts"]) == (bad, "1")
    assert of(runs[-1], "started")[-1]["hosts"] != [bad]
    others_are_untouched(cluster, job, runs)
    cluster.run("scancel", job)


def test_one_element_is_preempted_and_its_successor_is_alone(cluster: Slurm, tmp_path: Path) -> None:
    """Where requeueing is refused."""
    runs = make_array(tmp_path, "--partition=low", "--no-requeue", "--ntasks=1", last={}, steps=100000)
    job = submit(cluster, runs[0], f"--array=0-{SIZE - 1}")
    for run in runs:
        wait_event(run.path, "checkpoint")
    last_has_the_arrays_number(cluster, job)
    cluster.run("scancel", "--signal=USR2", f"{job}_{SIZE - 1}")
    requeued = wait_event(runs[-1].path, "requeued")
    assert requeued["how"] == "successor"
    successor = requeued["successor"]
    assert successor.endswith(f"_{SIZE - 1}")
    wait_event(runs[-1].path, "started", start=2)
    array = successor.partition("_")[0]
    assert cluster.run("squeue", "-h", "--array", "-j", array, "-o", "%i").split() == [successor]
    for number in range(SIZE - 1):
        assert shown(cluster, f"{job}_{number}")["JobState"] == "RUNNING"
        assert len(of(runs[number], "started")) == 1
    cluster.run("scancel", job, successor)


@pytest.mark.slow
def test_an_element_is_cancelled_and_resumed_alone(launch: Launcher) -> None:
    """By the launchers: cancel.py, `train.py --resume`, and its evaluation."""
    launch.environment["PYTHONPATH"] = str(launch.checkout)
    out, _ = launch(
        "train", *TINY, "--run", "s", "--data-root", launch.data, "--json", "--partition", "low",
        "--set", *HELD, "--seeds", "0,1,2",
    )  # fmt: skip
    told = json.loads(out)
    runs = [launch.runs / one["run"] for one in told]
    for run in runs:
        wait_for((run / "job" / "held-0").exists, f"{run.name} is held")
    array = told[0]["jobs"]["train"].partition("_")[0]
    last_has_the_arrays_number(launch.slurm, array)
    said, _ = launch("cancel", runs[-1].name)
    assert f"{array}_2" in said
    for number in (0, 1):
        assert shown(launch.slurm, f"{array}_{number}")["JobState"] == "RUNNING"
        assert not of_run(runs[number], "cancelled")
    out, _ = launch("train", "--resume", runs[-1].name, "--json")
    again = json.loads(out.splitlines()[0])["jobs"]
    assert "_" not in again["train"]
    assert launch.slurm.wait_ended(again["train"]) == "COMPLETED"
    wait_event(runs[-1], "evaluated")
    (left,) = of_run(runs[-1], "preempted")
    assert [event["step"] for event in of_run(runs[-1], "resumed")] == [left["step"]]
    for number in (0, 1):
        assert len(of_run(runs[number], "started")) == 1
        assert not of_run(runs[number], "finished")
    state = json.loads(launch("status", "--json")[0])["runs"]
    assert {one["name"]: one["state"] for one in state} == {
        runs[0].name: "running", runs[1].name: "running", runs[2].name: "finished",
    }  # fmt: skip
    launch("cancel", runs[0].name)
    launch("cancel", runs[1].name)


@pytest.mark.slow
def test_an_element_that_failed_is_resumed_alone(launch: Launcher) -> None:
    """And its evaluation is withdrawn alone; the others' wait as before."""
    launch.environment["PYTHONPATH"] = str(launch.checkout)
    plans = [{"step": 4, "do": "hold"}, {"step": 5, "do": "hold"}, {"step": 9, "do": "mistake"}]
    hooks = ",".join(f"[{{'type':'Fault','plan':[{plan}]}}]" for plan in plans)
    out, _ = launch(
        "train", *TINY, "--run", "f", "--data-root", launch.data, "--json", "--partition", "low",
        "--set", HELD[0], "--set", "baton.save_seconds=0", "--sweep", f"custom_hooks={hooks}",
    )  # fmt: skip
    told = json.loads(out)
    runs = [launch.runs / one["run"] for one in told]
    array, evaluations = (told[0]["jobs"][stage].partition("_")[0] for stage in ("train", "evaluate"))
    assert "a bad mask" in wait_event(runs[-1], "stopped")["reason"]
    assert launch.slurm.wait_ended(f"{array}_2") == "FAILED"
    assert launch.slurm.wait_ended(f"{evaluations}_2") == "CANCELLED"
    out, _ = launch("train", "--resume", runs[-1].name, "--json")
    again = json.loads(out.splitlines()[0])["jobs"]
    assert "_" not in again["train"]
    assert launch.slurm.wait_ended(again["train"]) == "COMPLETED"
    wait_event(runs[-1], "evaluated")
    assert [event["step"] for event in of_run(runs[-1], "resumed")] == [6]
    for number in (0, 1):
        assert shown(launch.slurm, f"{array}_{number}")["JobState"] == "RUNNING"
        assert shown(launch.slurm, f"{evaluations}_{number}")["JobState"] == "PENDING"
        assert len(of_run(runs[number], "started")) == 1
    launch("cancel", runs[0].name)
    launch("cancel", runs[1].name)
