"""Jobs that run from the environment's image on their node, on a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launcher import HELD, ROOT, Launcher, of_run

from jobs.run import image, staged
from tests.imaging import FELL_BACK, NOT_MOUNTED, STARTED, copies, make, pack
from tests.support.slurm import wait_event, wait_for


@pytest.mark.parametrize("kind", [staged.ENVIRONMENT, staged.SQUASHED])
def test_all_jobs_of_a_run_run_from_the_image(
    kind: str, launch: Launcher, tmp_path: Path, voc_archives: Path
) -> None:
    """Its preparation; the training, preempted and started again there; its evaluation; an inference; and
    one in a container."""
    if kind == staged.SQUASHED and NOT_MOUNTED:
        pytest.skip(NOT_MOUNTED)
    options = ["--squashfs"] * (kind == staged.SQUASHED)
    environment = make(tmp_path / "environment")
    profile, local = tmp_path / "site.yaml", tmp_path / "local"
    local.mkdir()
    profile.write_text(
        f"partition: low\npython: {image.interpreter(environment)}\nenvironment: image\n"
        f"stage: $OWN_DISK/mine\nenv: {{OWN_DISK: {local}, PYTHONPATH: {ROOT}}}\n"
        f"sbatch: {{nodelist: {launch.slurm.cluster.nodes[0]}}}\n"
    )
    arguments = ["--run", "imaged", "--cluster", profile, "--nodes", 1, "--gpus", 2, "--set", *HELD]
    _, error = launch(
        "train", "--config", "tests/support/configs/tiny.py", "--data-root", launch.data, *arguments, code=2
    )
    assert f"env/pack.sh {environment} makes it" in error
    assert not (launch.runs / "imaged").exists()

    pack(environment, *options)
    prepare = ["--data-root", tmp_path / "data", "--archives", voc_archives, "--no-weights", "--json"]
    told = json.loads(launch("prepare", *prepare, "--cluster", profile)[0])
    places = {launched(launch, told["jobs"]["prepare"], Path(told["path"]), 1)}
    assert len(of_run(Path(told["path"]), "prepared")) == 1

    jobs = launch.train(*arguments)
    run = launch.runs / "imaged"
    wait_for((run / "job" / "held-0").exists, "the run is held")
    launch.slurm.preempt(jobs["train"])
    wait_event(run, "resumed")
    places |= {launched(launch, jobs["train"], run, 2, starts=2), launched(launch, jobs["evaluate"], run, 1)}
    assert len(of_run(run, "finished")) == len(of_run(run, "evaluated")) == 1

    photo = next((launch.data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    said, _ = launch("infer", "imaged", photo, "--out", tmp_path / "masks", "--json")
    places.add(launched(launch, json.loads(said)["jobs"]["infer"], run, 1))
    assert (tmp_path / "masks" / f"{photo.stem}.png").exists()

    # A stand-in of apptainer that runs what it was given, and writes down where it was told to mount what.
    calls, boxed = tmp_path / "calls", tmp_path / "boxed.yaml"
    script = f'echo "$@" >{calls}\nuntil [ "$1" = /images/x.sif ]; do shift; done; shift; exec "$@"'
    launch.program(tmp_path / "bin", "apptainer", script)
    mounts = f"mounts: [{local}, {environment.parent}]"
    boxed.write_text(f"{profile.read_text()}container: {{kind: apptainer, image: /images/x.sif, {mounts}}}\n")
    more = ["--out", tmp_path / "more", "--cluster", boxed, "--json"]
    said, _ = launch("infer", "imaged", photo, *more)
    places.add(launched(launch, json.loads(said)["jobs"]["infer"], run, 1))
    assert f" --bind {local} --bind {environment.parent} " in calls.read_text()
    assert (tmp_path / "more" / f"{photo.stem}.png").exists()

    found = [path.suffix for path in copies(local / "mine")]
    assert found.count(kind) == 1
    assert set(found) - {staged.MOUNT} == {kind, staged.CODE}
    if kind == staged.ENVIRONMENT:
        assert places == {tuple(str(path) for path in copies(local / "mine") if path.suffix == kind)}
    else:
        # Each step had a mount of its own, and cleared what Slurm may have left of the one before.
        assert sorted(len(of_job) for of_job in places) == [1, 1, 1, 1, 2]
        assert found.count(staged.MOUNT) <= 1


@pytest.mark.parametrize("kind", [staged.ENVIRONMENT, staged.SQUASHED])
def test_each_node_has_a_copy_of_its_own(kind: str, launch: Launcher, tmp_path: Path) -> None:
    """Two nodes that do not see each other's disks; preempted once."""
    if kind == staged.SQUASHED and NOT_MOUNTED:
        pytest.skip(NOT_MOUNTED)
    environment = make(tmp_path / "environment")
    pack(environment, *["--squashfs"] * (kind == staged.SQUASHED))
    profile, disks = tmp_path / "site.yaml", tmp_path / "disks"
    for node in launch.slurm.cluster.nodes:
        (disks / node).mkdir(parents=True)
    profile.write_text(
        f"partition: low\npython: {image.interpreter(environment)}\nenvironment: image\n"
        f"stage: $DISKS/$SLURMD_NODENAME\nenv: {{DISKS: {disks}, PYTHONPATH: {ROOT}}}\n"
    )
    jobs = launch.train("--run", "nodes", "--cluster", profile, "--nodes", 2, "--gpus", 1, "--set", *HELD)
    run = launch.runs / "nodes"
    wait_for((run / "job" / "held-0").exists, "the run is held")
    launch.slurm.preempt(jobs["train"])
    wait_event(run, "resumed")
    assert launch.slurm.wait_ended(jobs["evaluate"]) == "COMPLETED"
    assert len(of_run(run, "finished")) == len(of_run(run, "evaluated")) == 1

    logs = [(run / "job" / f"{jobs['train']}_{rank}_log.out").read_text() for rank in (0, 1)]
    assert not [log for log in logs if FELL_BACK.search(log)]
    places = [[Path(place).relative_to(disks).parts[0] for place, _ in STARTED.findall(log)] for log in logs]
    assert len(places[0]) == 2  # starts
    assert all(len({*nodes}) == 2 for nodes in zip(*places, strict=True))
    for node in launch.slurm.cluster.nodes:
        if any((disks / node).iterdir()):
            assert [path.suffix for path in copies(disks / node)].count(kind) == 1


def launched(launch: Launcher, job: str, run: Path, tasks: int, starts: int = 1) -> tuple[str, ...]:
    """From where the tasks of a job ran that is waited for; all of a start from the same place. A mount does
    not outlive it."""
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    launch.slurm.wait_no_processes(job)
    folder = run / "job" if (run / "job" / f"{job}_0_log.out").exists() else ROOT / "logs"
    logs = [(folder / f"{job}_{task}_log.out").read_text() for task in range(tasks)]
    said = [tuple(place for place, _ in STARTED.findall(log)) for log in logs]
    assert len(set(said)) == 1, logs
    assert len(said[0]) == starts, logs
    assert not [log for log in logs if FELL_BACK.search(log)]
    return tuple(dict.fromkeys(said[0]))
