"""What --dry-run prints, and the tracked scripts, under plain sbatch."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from launcher import HELD, ROOT, TINY, Launcher, of_run, requeue_held

from jobs.run.directory import Run
from tests.support.slurm import Slurm


def test_plain_sbatch_does_what_the_launcher_does(launch: Launcher, tmp_path: Path) -> None:
    """Submitted by the launcher and left alone; by `--dry-run | sbatch` and by the tracked script, and
    requeued: the same weights."""
    from tests.support.tiny import differences, final_state

    launch.environment["PYTHONPATH"] = str(ROOT)
    same = ["--data-root", str(launch.data), "--seed", "5"]
    jobs = {"launched": launch.train("--run", "launched", "--no-evaluation", *same[2:])["train"]}

    held = [*same, "--set", *HELD]
    script, told = launch("train", *TINY, *held, "--run", "dry", "--cluster", "slurm", "--dry-run")
    assert "nothing submitted" in told
    assert not (launch.runs / "dry").exists()
    jobs["dry"] = launch.slurm.run(
        "sbatch", "--parsable", input=script, cwd=tmp_path, env=launch.environment
    ).strip()

    output = f"--output={tmp_path}/by-hand.out"
    resources = [output, "--cpus-per-task=1", "--gpus-per-node=1"]
    jobs["hand"] = launch.slurm.run(
        *("sbatch", "--parsable", *resources, "jobs/train.sbatch", "hand", *TINY[:2], *held),
        cwd=ROOT,
        env=launch.environment | {"BATON_PYTHON": sys.executable},
    ).strip()

    for name in ("dry", "hand"):
        requeue_held(launch, name)
    for name, job in jobs.items():
        assert launch.slurm.wait_ended(job) == "COMPLETED", name
    reference = final_state(Run(launch.runs / "launched"))
    for name in ("dry", "hand"):
        run = launch.runs / name
        assert differences(reference, final_state(Run(run))) == []
        assert len(of_run(run, "started")) == 2
        assert [e["step"] for e in of_run(run, "resumed")] == [e["step"] for e in of_run(run, "preempted")]


SUBMIT = "exec sbatch --parsable"
WHERE = {
    "srun": ["srun", "--cpu-bind=mask_cpu:0x1", "sh", "-c", f"SLURM_MPI_TYPE=none_such {SUBMIT}"],
    "export none": [*SUBMIT.split()[1:], "--export=NONE"],
    "salloc": ["salloc", "-n1", "--mem-per-cpu=60", "sh", "-c", SUBMIT],
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("meant", [True, False], ids=["as printed", "without what it unsets"])
def test_a_dry_run_is_the_same_job_wherever_it_is_submitted(
    launch: Launcher, tmp_path: Path, where: str, meant: bool
) -> None:
    """Inside srun or salloc, or without the environment, sbatch takes over, or makes, what srun fails of:
    that the script without its `unset` lines does fail shows that there is something to it."""
    (tmp_path / "plan.json").write_text(json.dumps({"steps": 3, "seconds": 0.01, "save_every": 10}))
    words = ["--worker", "tests/stand_in_worker.py", "--run", "dry", "--nodes", 1, "--gpus", 1]
    words += ["--cpus-per-gpu", 1, "--memory", "60M", "--cluster", "slurm", "--data-root", tmp_path]
    script, _ = launch("train", *words, "--dry-run", "--", tmp_path / "plan.json")
    if not meant:
        script = re.sub(r"^ *unset SLURM_.*$", ":", script, flags=re.MULTILINE)
    told = launch.slurm.run(*WHERE[where], input=script, cwd=tmp_path, env=launch.environment)
    job = re.findall(r"^\d+$", told, re.MULTILINE)[-1]
    ended = launch.slurm.wait_ended(job)
    run = launch.runs / "dry"
    if meant:
        assert ended == "COMPLETED"
        assert len(of_run(run, "finished")) == 1
    else:
        assert not (run / "events.jsonl").exists() or not of_run(run, "started")


def test_the_script_of_a_preparation_prepares(cluster: Slurm, tmp_path: Path, voc_archives: Path) -> None:
    launch = Launcher(cluster, tmp_path, tmp_path / "data")
    arguments = ["--data-root", launch.data, "--archives", voc_archives, "--no-weights"]
    script, _ = launch("prepare", "--cluster", "slurm", *arguments, "--dry-run")
    assert not (launch.runs / "prepare").exists()
    # From a shell that knows nothing of the place of the runs.
    job = cluster.run("sbatch", "--parsable", input=script, cwd="/").strip()
    assert cluster.wait_ended(job) == "COMPLETED"
    assert (launch.data / "VOCdevkit" / "manifest.json").exists()
    (prepared,) = of_run(launch.runs / "prepare" / "prepare-1", "prepared")
    assert prepared["job"] == job


def test_the_scripts_of_a_sweep_in_a_checkout_of_any_name(launch: Launcher, tmp_path: Path) -> None:
    """Each element makes its run; the evaluation of each follows, by what the dry run says to type."""
    checkout = tmp_path / "a b'c;d#é"
    for folder in ("jobs", "launch", "configs", "tests/support/configs"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    launch.checkout = checkout
    del launch.environment["BATON_RUNS"]
    arguments = [*TINY, "--cluster", "slurm", "--data-root", launch.data, "--run", "s"]
    arguments += ["--sweep", "optim_wrapper.optimizer.lr=0.01,0.02"]
    options: list[str] = []
    for which in ("train", "evaluate"):
        script, _ = launch("train", *arguments, f"--dry-run={which}")
        job = launch.slurm.run("sbatch", "--parsable", *options, input=script, cwd=tmp_path).strip()
        options = [f"--dependency=aftercorr:{job}", "--kill-on-invalid-dep=yes"]
    for number, rate in enumerate((0.01, 0.02)):
        assert launch.slurm.wait_ended(f"{job}_{number}") == "COMPLETED"
        run = checkout / "logs" / "runs" / f"s-{number}"
        assert Run(run).request().set == {"optim_wrapper.optimizer.lr": rate}
        assert len(of_run(run, "evaluated")) == 1


def test_a_run_made_by_hand_is_submitted_by_hand(launch: Launcher) -> None:
    arguments = [*TINY, "--data-root", launch.data, "--run", "s", "--no-submit"]
    _, told = launch("train", *arguments, "--sweep", "optim_wrapper.optimizer.lr=0.01,0.02")
    assert f"sbatch {launch.runs}/s-0/job/train.sbatch" in told
    assert sorted(path.name for path in launch.runs.iterdir()) == ["s-0", "s-1"]
    launch.slurm.run("sbatch", "--test-only", f"{launch.runs}/s-0/job/train.sbatch")
    assert "s-0" not in launch.slurm.run("squeue", "--noheader", "--format=%j")
