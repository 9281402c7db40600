"""The operating commands on a real Slurm: doctor in many settings, status, logs, cancel while requeueing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events
from jobs.slurm import queries as slurm_queries
from tests.support.slurm import Slurm, wait_event, wait_for

ROOT = Path(__file__).resolve().parents[2]


EYES = {"SQUEUE_PARTITION": "high", "SCANCEL_INTERACTIVE": "true", "SLURM_TIME_FORMAT": "relative"}
"""A user's own, who wants to see Slurm's commands otherwise: nothing here heeds them."""


def call(slurm: Slurm, runs: Path, script: str, *arguments: str, code: int = 0) -> str:
    environment = slurm.environment | EYES | {"BATON_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, f"launch/{script}.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, f"{script} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def doctor(slurm: Slurm, runs: Path, *arguments: str) -> list[dict[str, Any]]:
    return list(json.loads(call(slurm, runs, "doctor", "--json", *arguments))["findings"])


# options of the cluster -> (topic, level, what was found, as a pattern). The first of each is its own: no
# other of these clusters has it.
SETTINGS: dict[tuple[str, ...], list[tuple[str, str, str]]] = {
    ("--user-signal", "--grace", "30"): [
        ("accounting", "good", "^sacct answers"),
        ("signal at preemption", "good", "USR2"),
        ("partition low", "good", "^preempted jobs are requeued, 33 s from the warning"),
        ("partition lowcan", "warning", "cancelled, after 30 s"),
        ("partition gpu", "good", "^a small job with a GPU would start at once"),
        ("GPUs", "good", r"\blow\b.*: 2 a node fake"),
        ("memory", "note", "512 MB a CPU"),
        ("partition gpu", "note", "without --time a job gets 10 min"),
    ],
    ("--grace", "10", "--nodes", "6", "--no-accounting"): [
        ("partition low", "warning", "^13 s from the warning"),
        ("signal at preemption", "note", "only TERM"),
        ("accounting", "note", "disabled"),
    ],
    ("--no-requeue", "--no-accounting"): [("requeue", "warning", "^JobRequeue=0")],
    ("--preempt-mode", "CANCEL", "--no-accounting"): [
        ("partition gpu", "warning", "cancelled, after 0 s"),
        ("partition low", "warning", "cancelled, after 30 s"),
    ],
    ("--grace", "0", "--no-accounting"): [("partition low", "warning", "^3 s from the warning")],
    ("--kill-wait", "60", "--no-accounting"): [
        ("KillWait", "good", "^60 s from TERM"),
        ("partition gpu", "good", "60 s from the warning"),
    ],
    ("--nodes", "1", "--cpus", "2", "--no-accounting"): [
        ("CPUs", "warning", r"\bgpu\b.*: 2 CPUs a node for 2 GPUs"),
        ("KillWait", "note", "^3 s from TERM"),
    ],
    ("--grace", "120", "--no-accounting", "--user-signal"): [
        ("partition low", "good", "^preempted jobs are requeued, 123 s from the warning")
    ],
}


def has(found: list[dict[str, Any]], topic: str, level: str, pattern: str) -> bool:
    return any(
        (one["topic"], one["level"]) == (topic, level) and re.search(pattern, one["found"]) for one in found
    )


@pytest.mark.parametrize("options", SETTINGS, ids=" ".join)
def test_doctor_finds_what_is_special_about_a_cluster(
    options: tuple[str, ...], variant: Callable[..., Slurm], tmp_path: Path
) -> None:
    found = doctor(variant(*options), tmp_path)
    for topic, level, pattern in SETTINGS[options]:
        there = [one for one in found if one["topic"] == topic]
        assert has(found, topic, level, pattern), (topic, pattern, there)
    for other, (own, *_) in SETTINGS.items():
        assert other == options or not has(found, *own), f"it has what is special about {other}"
    for one in found:
        assert one["means"], one
        assert one["fix"] or one["level"] == "good", one


def test_doctor_where_every_partition_is_down(variant: Callable[..., Slurm], tmp_path: Path) -> None:
    slurm = variant("--no-requeue", "--no-accounting")
    names = slurm.run("sinfo", "--noheader", "--format=%R").split()
    for name in names:
        slurm.run("scontrol", "update", f"PartitionName={name}", "State=DOWN")
    try:
        found = doctor(slurm, tmp_path)
        for name in names:
            assert has(found, f"partition {name}", "bad", "not up"), found
        assert has(found, "requeue", "warning", "JobRequeue=0"), "the other findings are hidden"
        call(slurm, tmp_path, "doctor", "--submit-probe", code=2)
    finally:
        for name in names:
            slurm.run("scontrol", "update", f"PartitionName={name}", "State=UP")


def test_doctor_where_the_controller_is_away(cluster: Slurm, tmp_path: Path) -> None:
    config = tmp_path / "slurm.conf"
    text = cluster.layout.slurm_conf.read_text()
    config.write_text(text.replace(f"SlurmctldPort={cluster.cluster.ports.ctld}", "SlurmctldPort=1"))
    environment = cluster.environment | {"SLURM_CONF": str(config), "BATON_RUNS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "launch/doctor.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "its controller does not answer" in done.stdout


@pytest.mark.versions
def test_the_probe_and_a_profile_that_works(cluster: Slurm, tmp_path: Path, voc_small: Path) -> None:
    name = f"test-{os.getpid()}"
    path = ROOT / "configs/clusters" / f"{name}.yaml"
    try:
        found = doctor(
            cluster, tmp_path / "runs", "--submit-probe", "--write-profile", name, "--partition", "gpu"
        )
        levels = {one["topic"]: one["level"] for one in found}
        for topic in ("shared files", "environment", "rendezvous", "gloo"):
            assert levels[topic] == "good", [one for one in found if one["topic"] == topic]
        # The cluster's GPUs are none: whatever torch is installed, it can use no such device.
        assert levels["GPUs on the nodes"] == "bad"
        assert levels["NCCL"] == "warning"
        assert has(found, "probe", "good", "--requeue is honoured")
        assert {"files on the nodes", "the nodes' own disks"} <= set(levels)
        probes = [file.name for file in (tmp_path / "doctor").rglob("block")]
        assert probes == [], "what was written to be measured is left behind"
        call(cluster, tmp_path / "runs", "doctor", "--write-profile", name, code=2)

        # What it wrote works: a training is submitted with it, runs, and finishes.
        call(
            cluster, tmp_path / "runs", "train", "--cluster", name, "--run", "x", "--gpus", "2",
            "--config", "tests/support/configs/tiny.py", "--data-root", str(voc_small), "--no-evaluation",
            "--set", "train_cfg.max_epochs=1",
        )  # fmt: skip
        run = tmp_path / "runs" / "x"
        script = (run / "job/train.sbatch").read_text()
        assert "--partition=gpu" in script
        assert "--gpus-per-node=2" in script
        assert wait_event(run, "finished")["epoch"] == 1
        wait_for(lambda: not cluster.run("squeue", "--noheader", "--name=x"), "its job has left")
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def train(slurm: Slurm, runs: Path, data: Path, name: str, *arguments: str) -> tuple[Path, dict[str, str]]:
    """Submits a tiny training that would take long."""
    out = call(
        slurm, runs, "train", "--config", "tests/support/configs/tiny.py", "--cluster", "slurm",
        "--cpus-per-gpu", "1", "--data-root", str(data), "--run", name, "--json", *arguments,
        "--set", "train_cfg.max_epochs=2000",
    )  # fmt: skip
    return runs / name, json.loads(out.splitlines()[0])["jobs"]


def status(slurm: Slurm, runs: Path, name: str) -> dict[str, Any]:
    return dict(json.loads(call(slurm, runs, "status", name, "--json")))


@pytest.mark.versions
def test_a_run_from_queue_to_cancelled_to_resumed(cluster: Slurm, runs: Path, voc_small: Path) -> None:
    blocker = cluster.submit(
        "#!/bin/bash\nsleep 600\n",
        "-p",
        "high",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        cwd=runs.parent,
    )
    cluster.wait_state(blocker, "RUNNING")
    run, jobs = train(cluster, runs, voc_small, "first", "--partition", "low")
    second, later = train(cluster, runs, voc_small, "second", "--partition", "low", "--no-evaluation")
    seen: list[str] = []

    def behind() -> bool:
        seen.append(status(cluster, runs, "second")["words"])
        return seen[-1].startswith("queued behind 1 job")

    wait_for(behind, f"it is queued behind the first; status said {seen}")
    assert call(cluster, runs, "cancel", "second").startswith(f"second: cancelled {later['train']}")
    assert cluster.wait_ended(later["train"]) == "CANCELLED"
    assert status(cluster, runs, "second")["state"] == "cancelled"
    assert second.exists()

    cluster.run("scancel", blocker)
    wait_event(run, "epoch", epoch=1)
    here = status(cluster, runs, "first")
    assert here["state"] == "running", here
    table = call(cluster, runs, "status")
    assert "/2000" in table
    assert "second  cancelled" in table
    logs = call(cluster, runs, "logs", "first")
    assert f"train {jobs['train']}, rank 0" in logs

    # Requeued this moment: first the job is leaving, then it waits, then it is cancelled for good.
    cluster.run("scontrol", "requeue", jobs["train"])
    wait_event(run, "preempted")
    out = call(cluster, runs, "cancel", "first")
    assert jobs["evaluate"] in out
    assert cluster.wait_ended(jobs["train"]) == "CANCELLED"
    assert cluster.wait_ended(jobs["evaluate"]) == "CANCELLED"
    cluster.wait_no_processes(jobs["train"])
    before = [e for e in events.read(run / "events.jsonl") if e["event"] == "started"]
    saved = [e["step"] for e in events.read(run / "events.jsonl") if e["event"] == "preempted"][-1]

    call(
        cluster, runs, "train", "--resume", "first", "--cluster", "slurm", "--partition", "low",
        "--gpus", "1", "--cpus-per-gpu", "1",
    )  # fmt: skip
    assert not (run / "job/cancelled").exists()
    resumed = wait_event(run, "resumed", start=len(before) + 1)
    assert resumed["step"] == saved
    words = status(cluster, runs, "first")
    assert words["state"] in ("starting", "running")
    assert any("preempted" in one["why"] for one in words["starts"])
    call(cluster, runs, "cancel", "first")
    wait_for(lambda: not cluster.run("squeue", "--noheader", "--name=first"), "no job of it is left")


@pytest.mark.versions
def test_accounting_tells_how_each_start_of_a_job_ended(
    cluster: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    script = "#!/bin/bash\nsleep 600\n"
    job = cluster.submit(script, "--requeue", "--output=/dev/null", cwd=tmp_path)
    cluster.wait_state(job, "RUNNING")
    cluster.run("scontrol", "requeue", job)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1" and cluster.state(job) == "RUNNING", "it is back")
    cluster.run("scancel", job)

    def ends() -> list[str]:
        return [one.state for one in slurm_queries.incarnations([job]).get(job, [])]

    wait_for(lambda: ends() == ["REQUEUED", "CANCELLED"], "accounting has both", 60)


@pytest.mark.versions
def test_cancelling_ends_successors_too(variant: Callable[..., Slurm], runs: Path, voc_small: Path) -> None:
    """Where requeueing is forbidden: one submitted after the preemption, and one submitted in advance."""
    slurm = variant("--no-requeue", "--no-accounting")
    run, jobs = train(slurm, runs, voc_small, "after", "--partition", "low")
    profile = runs.parent / "ahead.yaml"
    profile.write_text(
        "partition: lowcan\nsetup:\n"
        """  - cd "$run/code" && "$python" -m jobs.supervise.afterwards "$run" --presubmit\n"""
    )
    ahead, jobs_ahead = train(slurm, runs, voc_small, "ahead", "--cluster", str(profile), "--gres", "none")
    wait_event(ahead, "epoch", epoch=1)
    (waiting,) = wait_for(
        lambda: [path.read_text() for path in (ahead / "job").glob("presubmitted-*")], "one waits in advance"
    )
    out = call(slurm, runs, "cancel", "ahead")
    for job in (*jobs_ahead.values(), waiting):
        assert job in out
        assert slurm.wait_ended(job) == "CANCELLED"

    wait_event(run, "epoch", epoch=1)
    slurm.preempt(jobs["train"])
    successor = wait_event(run, "requeued", how="successor")["successor"]
    out = call(slurm, runs, "cancel", "after")
    for job in (successor, jobs["evaluate"]):
        assert job in out
        assert slurm.wait_ended(job) == "CANCELLED"
    assert slurm.wait_ended(jobs["train"]) != "COMPLETED"
    assert status(slurm, runs, "after")["state"] == "cancelled"
    wait_for(lambda: not slurm.run("squeue", "--noheader", "--name=after,ahead"), "no job of them is left")
