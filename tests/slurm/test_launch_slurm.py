"""The launchers on a real Slurm: dependencies, sweeps, containers, and a Slurm that refuses or is away."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

from launcher import HELD, ROOT, TINY, Launcher, of_run, requeue_held

from jobs.run.directory import Run
from tests.support.cluster import daemons, processes
from tests.support.slurm import Slurm, wait_event, wait_for


def queue(slurm: Slurm) -> set[str]:
    """Ids of the jobs that wait or run."""
    return set(slurm.run("squeue", "--noheader", "--format=%i").split())


def test_four_ranks_on_two_nodes_are_requeued_once_and_evaluated_once(launch: Launcher) -> None:
    arguments = ["--nodes", 2, "--gpus", 2, "--run", "four", "--wait", "--data-root", launch.data]
    launch.environment["PYTHONPATH"] = str(ROOT)
    process = launch.start("train", *TINY, *arguments, "--set", *HELD)
    requeue_held(launch, "four")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    run = launch.runs / "four"
    started = of_run(run, "started")
    assert [one["world_size"] for one in started if one["stage"] == "train"] == [4, 4]
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

    # The same with a preparation that is running, and goes on when the file `go` is there.
    profile, go = tmp_path / "site.yaml", tmp_path / "go"
    profile.write_text(f"prepare: {{setup: ['until [ -e {go} ]; do sleep 0.1; done']}}\n")
    out, _ = launch("prepare", *prepare[:-2], "--cluster", profile)
    preparation = json.loads(out)["jobs"]["prepare"]
    cluster.wait_state(preparation, "RUNNING")
    out, _ = launch("train", "--resume", "behind", "--json")
    jobs = json.loads(out)["jobs"]
    assert cluster.job(jobs["train"])["Dependency"].startswith(f"afterok:{preparation}")
    go.touch()
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
    assert "NoSuchNet" in error
    jobs = json.loads(out)["jobs"]
    assert launch.slurm.wait_ended(jobs["train"]) == "FAILED"
    assert launch.slurm.wait_ended(jobs["evaluate"]) == "CANCELLED"
    assert not of_run(launch.runs / "wrong", "evaluated")


def test_a_sweep_is_one_array_with_an_evaluation_for_each_element(launch: Launcher, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    sbatch = shutil.which("sbatch", path=launch.environment["PATH"])
    launch.program(tmp_path / "bin", "sbatch", f'echo "${{@: -1}}" >> {calls}\nexec {sbatch} "$@"')
    arguments = ["--run", "sweep", "--data-root", launch.data, "--json"]
    out, _ = launch("train", *TINY, *arguments, "--sweep", "optim_wrapper.optimizer.type=SGD,NoSuch")
    first, second = json.loads(out)
    assert [Path(call).name for call in calls.read_text().splitlines()] == ["train.sbatch", "evaluate.sbatch"]
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


def test_two_runs_share_their_nodes(launch: Launcher, tmp_path: Path) -> None:
    """Both of two nodes have one rank of each run, at the same time: no port is anybody's in advance."""
    a, b = tmp_path / "a", tmp_path / "b"
    jobs = {}
    for mine, other in ((a, b), (b, a)):
        profile = tmp_path / f"{mine.name}.yaml"
        profile.write_text(f"setup: ['touch {mine}', 'until [ -e {other} ]; do sleep 0.1; done']\n")
        more = ["--nodes", 2, "--gpus", 1, "--sbatch", "nodelist=n1,n2", "--no-evaluation"]
        jobs[mine.name] = launch.train("--run", mine.name, "--cluster", profile, *more)["train"]
    for name, job in jobs.items():
        assert launch.slurm.wait_ended(job) == "COMPLETED"
        (started,) = of_run(launch.runs / name, "started")
        assert (started["world_size"], sorted(started["hosts"])) == (2, ["n1", "n2"])


def test_a_container_is_what_the_tasks_and_nothing_else_run_in(launch: Launcher, tmp_path: Path) -> None:
    """A stand-in of apptainer that runs what it was given, and writes down with which flags."""
    calls, profile = tmp_path / "calls", tmp_path / "site.yaml"
    launch.program(
        tmp_path / "bin",
        "apptainer",
        f'echo "$@" >> {calls}\nuntil [ "$1" = "/images/our own.sif" ]; do shift; done; shift; exec "$@"',
    )
    box = "{kind: apptainer, image: /images/our own.sif, mounts: [/scratch], options: [--cleanenv]}"
    profile.write_text(f"container: {box}\n")
    job = launch.train("--run", "boxed", "--cluster", profile, "--no-evaluation")["train"]
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    (call,) = calls.read_text().splitlines()
    run = launch.runs / "boxed"
    assert call.startswith(f"exec --nv --bind {run} --bind {launch.data} --bind /scratch --pwd {run}/code")
    assert call.endswith(f"--cleanenv /images/our own.sif {sys.executable} -u -m jobs.train {run}")


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
        said = ""
        for line in process.stderr:  # until it has said that it has been trying for half a minute
            said += line
            if "since 30 s" in line:
                break
    finally:
        daemons.start(slurm.cluster, "slurmctld")
    slurm.wait_nodes()
    assert said.count("controller does not answer") >= 3, said
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    jobs = json.loads(out)["jobs"]
    assert slurm.job(jobs["train"])["JobName"] == "patient"
    slurm.run("scancel", *jobs.values())


def test_resumed_by_several_commands_at_once_a_run_has_one_job(launch: Launcher) -> None:
    later = ("--sbatch", "begin=now+1hour", "--no-evaluation")
    launch.train("--run", "one", *later)
    launch("cancel", "one")
    asked = [launch.start("train", "--resume", "one", *later) for _ in range(3)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in asked]
    assert sorted(code for _, code in ended) == [0, 2, 2], ended
    (job,) = launch.slurm.run("squeue", "-h", "-n", "one", "-o", "%i").split()
    for said in (error for error, code in ended if code == 2):
        waited, why = said.splitlines()[:-1], said.splitlines()[-1]
        assert (
            why
            == f"error: one is already queued or running as job {job}: python launch/cancel.py one ends it"
        )
        assert all(line.startswith("one: waiting for another command") for line in waited)
    launch("cancel", "one")
