"""Trainings whose packed dataset is copied to the node's own disk while they run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.prepare.packed import convert
from jobs.run import packed, staged
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.exit_codes import FINISHED, RESUME
from jobs.supervise import copier
from tests.stages import end_of, of, start_ranks, wait_until
from tests.support import tiny

FOLDER = "VOCdevkit"
INTERRUPTIBLE = {
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}, {"type": "RecordDraws"}],
    "log_level": "WARNING",
}


@pytest.fixture(scope="module")
def packed_data(voc_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("packed")
    shutil.copytree(voc_small / FOLDER, data / FOLDER)
    convert.pack(data, FOLDER)
    return data


def make(path: Path, data: Path, stage: str = "", **settings: Any) -> Run:
    run = tiny.make_run(path, data, **(INTERRUPTIBLE | settings))
    request = run.request()
    request.cluster.stage = stage
    run.write_request(request)
    return run


@contextlib.contextmanager
def held(stage: Path) -> Iterator[None]:
    """While the block runs, whoever would copy waits for another that seems to."""
    folder = staged.folder(stage)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def copies(stage: Path) -> list[Path]:
    return sorted(path for path in staged.folder(stage).iterdir() if path.name != "lock")


def reads(run: Run, copy: Path) -> int:
    """How many processes of the run have the copy open."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"BATON_RUN={run.path}\0".encode() in (process / "environ").read_bytes():
                found += any(os.path.realpath(fd) == str(copy) for fd in (process / "fd").iterdir())
    return found


def copier_of(data: Path) -> int:
    """The pid of the one copier at work on a dataset."""
    wanted = [b"jobs.supervise.copier", str(data / FOLDER / packed.NAME).encode()]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().split(b"\0")[2:4] == wanted:
                found.append(int(process.name))
    (pid,) = found
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_goes_over_to_the_copy_in_its_midst_without_a_change(
    voc_small: Path, packed_data: Path, tmp_path: Path, workers: int
) -> None:
    """Two ranks, one copy; persistent workers that were forked before it was there; preempted after that, and
    resumed where the copy still is."""
    loaders: dict[str, Any] = {"train_dataloader__batch_size": 2, "train_dataloader__num_workers": workers}
    if workers:
        loaders["train_dataloader__persistent_workers"] = True
    whole = make(tmp_path / "whole", voc_small, **loaders)
    assert tiny.start(whole, 2) == [0, 0]

    stage, pause = tmp_path / "local", tmp_path / "pause"
    stage.mkdir()
    run = make(tmp_path / "run", packed_data, str(stage), **loaders)
    plan = [
        {"at": "step", "step": [2, 12], "rank": 0, "pause": str(pause)},
        {"at": "step", "step": 13, "signal": "SIGUSR2"},
    ]
    with held(stage):
        ranks = start_ranks(run, 2, real=True, INTERRUPT=json.dumps(plan), OMP_NUM_THREADS="1")
        wait_until(pause.exists, 90)
        since = time.monotonic()
        assert copies(stage) == []
        assert not of(run, "staged")
    wait_until(lambda: of(run, "staged"))
    (copy,) = copies(stage)
    assert reads(run, copy) == 0
    wait_until(lambda: time.monotonic() > since + packed.LOOK_SECONDS)
    pause.unlink()
    wait_until(pause.exists, 90)
    assert reads(run, copy) >= 2 * max(1, workers)
    pause.unlink()
    assert end_of(ranks, 120) == [RESUME] * 2
    first = copy.stat().st_ino

    assert end_of(start_ranks(run, 2, real=True, OMP_NUM_THREADS="1"), 120) == [FINISHED] * 2
    told = of(run, "staged")
    assert [(one["start"], one.get("found")) for one in told] == [(1, None), (2, True)]
    assert told[0]["copy"] == str(copy)
    assert told[0]["bytes"] == copy.stat().st_size
    assert copies(stage) == [copy]
    assert copy.stat().st_ino == first
    assert not of(run, "not_staged")
    assert tiny.differences(tiny.final_state(run), tiny.final_state(whole)) == []


def test_two_runs_share_one_copy(packed_data: Path, tmp_path: Path) -> None:
    """Whose copiers wait for the same lock."""
    stage, pauses = tmp_path / "local", [tmp_path / "pause-a", tmp_path / "pause-b"]
    stage.mkdir()
    runs = [make(tmp_path / name, packed_data, str(stage), train_cfg__max_epochs=1) for name in "ab"]
    with held(stage):
        plans = [{"at": "step", "step": 2, "pause": str(pause)} for pause in pauses]
        ranks = [
            start_ranks(run, 1, real=True, INTERRUPT=json.dumps(plan))
            for run, plan in zip(runs, plans, strict=True)
        ]
        wait_until(lambda: all(pause.exists() for pause in pauses), 120)
    wait_until(lambda: all(of(run, "staged") for run in runs))
    (copy,) = copies(stage)
    told = [of(run, "staged") for run in runs]
    assert sorted(bool(one.get("found")) for (one,) in told) == [False, True]
    assert {one["copy"] for (one,) in told} == {str(copy)}
    for pause in pauses:
        pause.unlink()
    assert [end_of(one, 120) for one in ranks] == [[FINISHED], [FINISHED]]


@pytest.mark.parametrize("what", ["killed", "full"])
def test_a_copier_that_fails_harms_no_run_and_the_next_start_tries_again(
    packed_data: Path, tmp_path: Path, what: str
) -> None:
    stage, pause = tmp_path / "local", tmp_path / "pause"
    stage.mkdir()
    run = make(tmp_path / "run", packed_data, str(stage), train_cfg__max_epochs=1)
    plan = {"at": "step", "step": 2, "pause": str(pause), "signal": "SIGUSR2"}
    with held(stage):
        ranks = start_ranks(run, 1, real=True, INTERRUPT=json.dumps(plan))
        wait_until(pause.exists, 90)
        pid = copier_of(packed_data)
        if what == "killed":
            os.kill(pid, signal.SIGKILL)
        else:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))
    wait_until(lambda: of(run, "not_staged"))
    (told,) = of(run, "not_staged")
    assert told["reason"] == (
        "the copier was killed, or its error is in the log" if what == "killed" else f"{stage} is full"
    )
    assert told["path"] == str(packed_data / FOLDER / packed.NAME)
    assert copies(stage) == []
    pause.unlink()
    assert end_of(ranks, 120) == [RESUME]
    assert end_of(start_ranks(run, 1, real=True), 120) == [FINISHED]
    assert not of(run, "failed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system, smaller than the dataset."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room_is_said_and_nothing_is_written(packed_data: Path, small_disk: Path) -> None:
    container = packed_data / FOLDER / packed.NAME
    with pytest.raises(UserError, match=r"has room for 0\.0 GB, but 0\.0 GB are needed"):
        copier.copy(container, small_disk)
    assert copies(small_disk) == []


def test_a_disk_that_fills_up_meanwhile_is_left_as_it_was(
    packed_data: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "make_room", lambda *_: None)  # when it looked there was room
    with pytest.raises(OSError, match="No space left"):
        copier.copy(packed_data / FOLDER / packed.NAME, small_disk)
    assert copies(small_disk) == []


@pytest.mark.parametrize(
    ("stage", "reason"), [("$NOWHERE/x", "NOWHERE is not set"), ("/nowhere/at/all", "has no /nowhere/at/all")]
)
def test_a_node_without_the_disk_says_so_and_trains(
    packed_data: Path, tmp_path: Path, stage: str, reason: str
) -> None:
    run = make(tmp_path / "run", packed_data, stage, train_cfg__max_epochs=1)
    assert end_of(start_ranks(run, 1, real=True), 120) == [FINISHED]
    (told,) = of(run, "not_staged")
    assert reason in told["reason"]
