"""The prepare job killed, signalled, started twice, and on disks that refuse."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.catalog.readiness import state
from jobs.prepare import verify
from jobs.run import events
from jobs.run.exit_codes import RESUME
from tests.conftest import run_module
from tests.stages import wait_until
from tests.support.cluster import processes
from tests.support.datasets import contents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images that a preparation can be hit in its middle."""
    out = tmp_path_factory.mktemp("larger")
    arguments = ["--train", "700", "--val", "100", "--size", "120", "--pool", "20"]
    run_module("jobs.prepare.synthetic", out, *arguments)
    return out


@pytest.fixture(scope="module")
def reference(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """(the content of an undisturbed preparation, its seconds)."""
    made, seconds = [], 0.0
    for attempt in ("first", "second"):  # the second is not slowed by cold files
        root = tmp_path_factory.mktemp(attempt)
        began = time.monotonic()
        assert start(root, archives).wait(120) == 0
        seconds = time.monotonic() - began
        made.append(contents(root / "VOCdevkit"))
    assert made[0] == made[1]
    return made[0], seconds


def start(root: Path, archives: Path, *more: str | Path, output: int | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.prepare", "--data-root", root, "--archives", archives]
    return subprocess.Popen(
        [*map(str, command), "--processes", "2", *map(str, more)],
        cwd=ROOT,
        stdout=output,
        stderr=output,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def test_kill_9_twenty_times_then_complete_and_equal(
    archives: Path, reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, seconds = reference
    root = tmp_path / "data"
    generator = random.Random(5)
    finished = met = 0
    for _ in range(20):
        began = time.monotonic()
        process = start(root, archives)
        workers = []
        try:
            # A third of them early, when little was done; the others anywhere.
            process.wait(generator.uniform(0.15, 1.1) * seconds)
            # The machine may have been busier when the reference was made.
            seconds = min(seconds, time.monotonic() - began)
        except subprocess.TimeoutExpired:
            workers = processes.children(process.pid)
            met += len(workers)
            process.kill()
            process.wait()
        wait_until(lambda: not any(map(processes.alive, workers)))  # noqa: B023 (called at once)
        # What is published is whole, at every moment.
        if (root / "VOCdevkit").exists():
            assert verify.deep(root / "VOCdevkit", processes=1) == []
            finished += 1
            shutil.rmtree(root)
    assert finished < 15, "too few were hit"
    assert met, "no worker was met"
    assert start(root, archives).wait(120) == 0
    assert contents(root / "VOCdevkit") == expected
    assert verify.deep(root / "VOCdevkit", processes=1) == []
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_preempted_leaves_at_once_and_goes_on(
    archives: Path, reference: tuple[dict[str, str], float], tmp_path: Path, number: signal.Signals
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    run.mkdir()
    process = start(root, archives, "--run", run)
    wait_for(root / ".prepare/VOCdevkit/VOC2012/SegmentationClassAug", process)
    assert state(root).kind == "in progress"
    # To the whole group, as Slurm does, twice.
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)
    assert process.wait(20) == RESUME
    assert state(root).kind == "missing"
    assert start(root, archives, "--run", run).wait(120) == 0
    assert contents(root / "VOCdevkit") == reference[0]
    assert state(root).ready
    recorded = events.read(run / "events.jsonl")
    assert [event["event"] for event in recorded] == ["started", "signal", "started", "prepared"]
    assert recorded[1]["signal"] == number.name
    assert recorded[3]["images"] == 800


def test_restart_does_not_write_again_what_is_there(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    process = start(root, archives)
    images = root / ".prepare/VOCdevkit/VOC2012/JPEGImages"
    wait_for(root / ".prepare/VOCdevkit/VOC2012/JPEGImages/2007_000100.jpg", process)
    process.kill()
    process.wait()
    before = {path.name: path.stat().st_ino for path in images.iterdir()}
    assert before
    assert start(root, archives).wait(120) == 0
    after = {path.name: path.stat().st_ino for path in (root / "VOCdevkit/VOC2012/JPEGImages").iterdir()}
    same = sum(after[name] == inode for name, inode in before.items())
    # All but those that were torn in the middle.
    assert same >= len(before) - 2


def test_two_at_once_one_works_the_other_waits(
    archives: Path, reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    both = [start(root, archives, output=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert contents(root / "VOCdevkit") == reference[0]
    worked = [output for output in outputs if "preparing" in output]
    assert len(worked) == 1
    (waited,) = (output for output in outputs if output not in worked)
    assert "is being prepared by process" in waited
    assert "was ready" in waited


def test_two_nodes_at_once(archives: Path, reference: tuple[dict[str, str], float], tmp_path: Path) -> None:
    """The second process has another host name and sees no process of the first: only the shared folder."""
    isolate = [
        "unshare",
        "--uts",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        'hostname other && exec "$@"',
        "-",
    ]
    probe = subprocess.run([*isolate, "true"], capture_output=True)
    if probe.returncode:
        skip_without_root(f"no new namespaces here: {probe.stderr.decode().strip()}")
    root = tmp_path / "data"
    first = start(root, archives)
    wait_for(root / ".prepare.lock", first)
    command = [sys.executable, "-m", "jobs.prepare", "--data-root", str(root), "--archives", str(archives)]
    first.send_signal(
        signal.SIGSTOP
    )  # or it is done before the second has begun; its lock counts for a minute
    quick = subprocess.run(
        [*isolate, *command, "--no-wait"], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    first.send_signal(signal.SIGCONT)
    patient = subprocess.run([*isolate, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert first.wait(120) == 0
    assert quick.returncode == 2
    assert f"is being prepared by process {first.pid} on" in quick.stderr
    assert patient.returncode == 0, patient.stderr
    assert contents(root / "VOCdevkit") == reference[0]


def skip_without_root(why: str) -> None:
    """An ordinary user may not do these things; where root may not either, nobody would notice a skip."""
    assert os.geteuid() != 0, why
    pytest.skip(why)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        skip_without_root(f"cannot mount here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 20)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def grow(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize(
    ("small", "large"), [("size=600k", "size=50m"), ("size=50m,nr_inodes=300", "size=50m,nr_inodes=5000")]
)
def test_full_disk_then_room(
    archives: Path, reference: tuple[dict[str, str], float], tmp_path: Path, small: str, large: str
) -> None:
    with mounted(tmp_path / "disk", small) as disk:
        root = disk / "data"
        process = start(root, archives, output=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "Traceback" not in errors
        assert "make room" in errors
        assert state(root).kind == "missing"
        grow(disk, large)
        assert start(root, archives).wait(60) == 0
        assert contents(root / "VOCdevkit") == reference[0]
        assert verify.deep(root / "VOCdevkit", processes=1) == []


def test_disk_that_fills_while_writing(
    archives: Path, reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """The free space looked sufficient and then was gone: 0-byte and short files lie about at the restart."""
    with mounted(tmp_path / "disk", "size=12m") as disk:
        root = disk / "data"
        process = start(root, archives, output=subprocess.PIPE)
        wait_for(root / ".prepare/VOCdevkit/VOC2012/JPEGImages/2007_000000.jpg", process)
        ballast = disk / "ballast"
        fill(ballast)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2, errors
        assert "no space left" in errors or "make room" in errors
        assert "Traceback" not in errors
        ballast.unlink()
        assert start(root, archives).wait(60) == 0
        assert contents(root / "VOCdevkit") == reference[0]
        assert verify.deep(root / "VOCdevkit", processes=1) == []


def test_read_only_target(archives: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=50m") as disk:
        root = disk / "data"
        root.mkdir()
        grow(disk, "ro")
        process = start(root, archives, output=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert os.strerror(errno.EROFS) in errors
        assert "Traceback" not in errors
        # A data set that is there is used, though nothing can be written.
        grow(disk, "rw")
        assert start(root, archives).wait(60) == 0
        grow(disk, "ro")
        assert start(root, archives).wait(60) == 0
