"""The launchers on a real Slurm: dependencies, plain sbatch, sweeps, and a Slurm that refuses or is away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clusters import Slurm, wait_event, wait_for

from env.cluster import daemons, processes
from jobs import events
from jobs.run_directory import Run

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config", "tests/configs/tiny.py", "--cpus-per-gpu", "1")


class Launcher:
    """The launchers as a user of the cluster types them, with runs of their own."""

    def __init__(self, slurm: Slurm, folder: Path, data: Path) -> None:
        self.slurm = slurm
        self.runs = folder / "runs"
        self.data = data
        self.environment = {
            key: value for key, value in slurm.environment.items() if not key.startswith("BATON")
        } | {"BATON_RUNS": str(self.runs), "OMP_NUM_THREADS": "1"}

    def start(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, f"launch/{script}.py", *map(str, arguments)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, script: str, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Runs a launcher to its end: (stdout, stderr). Fails the test unless it ends with `code`."""
        process = self.start(script, *arguments)
        out, error = process.communicate(timeout=300)
        assert process.returncode == code, f"ended with {process.returncode}: {out}{error}"
        return out, error

    def train(self, *arguments: object) -> dict[str, str]:
        """Submits a tiny training; returns the job ids."""
        out, _ = self("train", *TINY, "--data-root", self.data, "--json", *arguments)
        jobs: dict[str, str] = json.loads(out.splitlines()[0])["jobs"]
        return jobs


@pytest.fixture
def launch(cluster: Slurm, tmp_path: Path, voc_small: Path) -> Launcher:
    return Launcher(cluster, tmp_path, voc_small)


def of_run(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in events.iterate(run / "events.jsonl") if event["event"] == name]


def queue(slurm: Slurm) -> set[str]:
    """Ids of the jobs that wait or run."""
    return set(slurm.run("squeue", "--noheader", "--format=%i").split())


def test_two_nodes_with_two_gpus_train_over_four_ranks_and_are_evaluated_once(launch: Launcher) -> None:
    arguments = ["--nodes", 2, "--gpus", 2, "--run", "four", "--wait", "--data-root", launch.data]
    out, _ = launch("train", *TINY, *arguments)
    run = launch.runs / "four"
    started = of_run(run, "started")
    assert [one["world_size"] for one in started if one["stage"] == "train"] == [4]
    assert len(set(started[0]["hosts"])) == 2
    assert len(of_run(run, "evaluated")) == 1
    assert re.search(r"mIoU \d", out)
    logs = sorted(path.name.partition("_")[2] for path in (run / "job").glob("*_?_log.out"))
    assert logs == ["0_log.out", "0_log.out", "1_log.out", "2_log.out", "3_log.out"]


def test_a_training_waits_for_the_preparation_and_is_not_left_behind_by_its_failure(
    cluster: Slurm, tmp_path: Path, voc_archives: Path
) -> None:
    launch = Launcher(cluster, tmp_path, tmp_path / "data")
    prepare = ["--data-root", launch.data, "--archives", voc_archives, "--json", "--sbatch", "hold=true"]
    out, _ = launch("prepare", *prepare)
    preparation = json.loads(out)["jobs"]["prepare"]
    assert "gpu" not in cluster.run("scontrol", "show", "job", preparation)
    jobs = launch.train("--run", "behind")
    assert cluster.job(jobs["train"])["Dependency"].startswith(f"afterok:{preparation}")
    _, error = launch("prepare", *prepare[:4], code=2)
    assert "is being prepared by prepare-1" in error

    cluster.run("scancel", preparation)
    assert cluster.wait_ended(jobs["train"]) == "CANCELLED"
    assert cluster.wait_ended(jobs["evaluate"]) == "CANCELLED"

    out, _ = launch("prepare", *prepare)
    preparation = json.loads(out)["jobs"]["prepare"]
    out, _ = launch("train", "--resume", "behind", "--json")
    jobs = json.loads(out)["jobs"]
    cluster.run("scontrol", "release", preparation)
    cluster.wait_state(jobs["train"], "RUNNING", "COMPLETED")
    assert cluster.state(preparation) == "COMPLETED"
    assert (launch.data / "VOCdevkit" / "manifest.json").exists()
    cluster.run("scancel", jobs["train"])


def test_a_failed_training_cancels_its_evaluation_also_where_there_is_no_sacct(
    launch: Launcher, tmp_path: Path
) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    for folder in ("/usr/bin", "/usr/local/bin"):
        for tool in os.scandir(folder):
            if tool.name != "sacct" and not (bin / tool.name).exists():
                (bin / tool.name).symlink_to(tool.path)
    launch.environment["PATH"] = str(bin)
    arguments = ["--data-root", launch.data, "--set", "model.backbone.type=NoSuchNet", "--run", "wrong"]
    process = launch.start("train", *TINY, *arguments, "--wait", "--json")
    out, error = process.communicate(timeout=300)
    assert process.returncode in (1, 2), out + error
    assert "NoSuchNet" in out
    jobs = json.loads(out.splitlines()[0])["jobs"]
    assert launch.slurm.wait_ended(jobs["train"]) == "FAILED"
    assert launch.slurm.wait_ended(jobs["evaluate"]) == "CANCELLED"
    assert not of_run(launch.runs / "wrong", "evaluated")


def test_plain_sbatch_does_what_the_launcher_does(launch: Launcher, tmp_path: Path) -> None:
    """Submitted by the launcher, by `--dry-run | sbatch`, and by the tracked script: the same weights."""
    from tests.tiny import differences, final_state

    same = ["--data-root", str(launch.data), "--seed", "5"]
    jobs = {"launched": launch.train("--run", "launched", "--no-evaluation", *same[2:])["train"]}

    script, told = launch("train", *TINY, *same, "--run", "dry", "--cluster", "slurm", "--dry-run")
    assert "nothing submitted" in told
    assert not (launch.runs / "dry").exists()
    jobs["dry"] = launch.slurm.run(
        "sbatch", "--parsable", input=script, cwd=tmp_path, env=launch.environment
    ).strip()

    output = f"--output={tmp_path}/by-hand.out"
    resources = [output, "--cpus-per-task=1", "--gpus-per-node=1"]
    jobs["hand"] = launch.slurm.run(
        *("sbatch", "--parsable", *resources, "jobs/train.sbatch", "hand", *TINY[:2], *same),
        cwd=ROOT,
        env=launch.environment | {"BATON_PYTHON": sys.executable},
    ).strip()

    for name, job in jobs.items():
        assert launch.slurm.wait_ended(job) == "COMPLETED", name
    reference = final_state(Run(launch.runs / "launched"))
    for name in ("dry", "hand"):
        assert differences(reference, final_state(Run(launch.runs / name))) == []


def test_a_sweep_is_one_array_with_an_evaluation_for_each_element(launch: Launcher) -> None:
    arguments = ["--run", "sweep", "--data-root", launch.data, "--json"]
    out, _ = launch("train", *TINY, *arguments, "--sweep", "optim_wrapper.optimizer.type=SGD,NoSuch")
    first, second = json.loads(out)
    assert first["jobs"]["train"].removesuffix("_0") == second["jobs"]["train"].removesuffix("_1")
    for one, value in ((first, "SGD"), (second, "NoSuch")):
        assert Run(Path(one["path"])).request().set == {"optim_wrapper.optimizer.type": value}
    wait_event(Path(first["path"]), "evaluated", 180, job=first["jobs"]["evaluate"])
    assert launch.slurm.wait_ended(second["jobs"]["evaluate"]) == "CANCELLED"
    assert not of_run(Path(second["path"]), "evaluated")
    assert of_run(Path(second["path"]), "stopped")


def test_a_refused_job_shows_slurms_words_and_leaves_nothing(launch: Launcher, tmp_path: Path) -> None:
    before = queue(launch.slurm)
    _, error = launch("train", *TINY, "--data-root", launch.data, "--partition", "nowhere", code=2)
    assert "invalid partition specified: nowhere" in error
    # The training is accepted, its evaluation is not: both go.
    profile = tmp_path / "site.yaml"
    profile.write_text("evaluate: {partition: nowhere}\ntrain: {sbatch: {hold: true}}\n")
    _, error = launch("train", *TINY, "--data-root", launch.data, "--cluster", profile, code=2)
    assert "sbatch refused evaluate.sbatch: " in error
    assert list(launch.runs.iterdir()) == []
    # Jobs of other tests may have left it meanwhile.
    wait_for(lambda: queue(launch.slurm) <= before, "the queue holds nothing new")


def test_a_controller_that_is_away_is_waited_for(launch: Launcher) -> None:
    slurm = launch.slurm
    controller = daemons.running(slurm.layout, "slurmctld")
    assert controller
    processes.kill([controller])
    try:
        process = launch.start(
            *("train", *TINY, "--data-root", launch.data, "--cluster", "slurm", "--run", "patient", "--json")
        )
        assert process.stderr is not None
        said = process.stderr.readline()
    finally:
        daemons.start(slurm.cluster, "slurmctld")
    slurm.wait_nodes()
    assert "controller does not answer" in said
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    jobs = json.loads(out)["jobs"]
    assert slurm.job(jobs["train"])["JobName"] == "patient"
    slurm.run("scancel", *jobs.values())
