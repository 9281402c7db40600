"""A disk that is full for a while costs a checkpoint, not the training; a really full one never a lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.engine import checkpoints
from jobs.mmseg import compat
from jobs.run import events
from jobs.run.directory import Run
from jobs.run.exit_codes import FAILED, FINISHED, RESUME
from tests.stages import end_of, make_run, of, start_ranks, wait_until
from tests.support import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
]

SETTINGS = {
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}],
    "val_dataloader__num_workers": 0,
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, some five checkpoints."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk: Path, name: str = "filling", block: int = 4096) -> Path:
    path = disk / name
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(b"\n" * block):
                pass
        except OSError:
            return path
    raise AssertionError("the disk does not get full")


def at(here: Path, run: Run) -> None:
    """Waits until the training pauses."""
    end = time.monotonic() + 60
    while not here.exists():
        assert not list(run.job.glob("error-*")), tiny.log_of(run, 1)
        assert time.monotonic() < end, tiny.log_of(run, 1)
        time.sleep(0.02)


def paused(run: Run, here: Path, steps: list[int], *then: Callable[[], object]) -> list[int]:
    """Trains once, with a call of one of `then` before each of `steps`. Returns the exit codes."""
    plan = {"at": "step", "step": steps, "pause": str(here), "rank": 0}
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(tiny.start, run, 2, plan)
        for call in then:
            at(here, run)
            call()
            here.unlink()
        return started.result()


def named(run: Run, name: str) -> list[int]:
    return [event["step"] for event in events.read(run.events) if event["event"] == name]


def test_full_for_a_while(disk: Path, tmp_path: Path) -> None:
    data = tiny.make_data(tmp_path / "data")
    run = tiny.make_run(disk / "run", data, train_dataloader__batch_size=2, **SETTINGS)
    free = (disk / "filling").unlink
    # Epochs end after 6, 12 and 18 steps.
    assert paused(run, tmp_path / "here", [8, 15], lambda: fill(disk), free) == [FINISHED] * 2
    assert named(run, "checkpoint_failed") == [12]
    assert named(run, "checkpoint") == [6, 18]
    assert named(run, "finished") == [18]
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 18
    assert not list(run.checkpoints.glob("*.damaged")) + list(run.checkpoints.glob(".*.tmp"))
    assert ("val", 18) in tiny.metrics(run)


def test_full_at_the_end(disk: Path, tmp_path: Path) -> None:
    """Not finished: the last epoch is not on disk. The next start makes it so."""
    data = tiny.make_data(tmp_path / "data")
    run = tiny.make_run(disk / "run", data, train_dataloader__batch_size=2, **SETTINGS)
    assert FAILED in paused(run, tmp_path / "here", [15], lambda: fill(disk))
    (disk / "filling").unlink()
    assert named(run, "finished") == []
    assert tiny.start(run, 2) == [FINISHED] * 2
    assert named(run, "finished") == [18]


def test_a_signal_is_heeded_while_the_disk_is_full(disk: Path) -> None:
    """By the supervisor, whose own events cannot be written either."""
    run = make_run(disk / "run", steps=100000)
    ranks = start_ranks(run, 1)
    wait_until(lambda: of(run, "checkpoint"))
    filling = fill(disk)
    fill(run.path, run.events.name, 1)  # to the end of its last page
    ranks[0].send_signal(signal.SIGTERM)
    assert end_of(ranks) == [RESUME]
    filling.unlink()
    assert not of(run, "failed")


def test_a_start_waits_for_room(disk: Path) -> None:
    run = make_run(disk / "run")
    filling = fill(disk)
    ranks = start_ranks(run, 2)
    wait_until((run.job / "start-1").exists)
    filling.unlink()
    assert end_of(ranks) == [FINISHED] * 2
    assert [e["start"] for e in of(run, "started")] == [1]


def test_tensorboard_goes_on(disk: Path) -> None:
    """Writes of TensorBoard fail while the disk is full, silently but for one line, and work again after."""
    code = """
import sys
from pathlib import Path
from jobs.mmseg import compat
compat.prepare()
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend
from jobs.mmseg.runner import guard
disk = Path(sys.argv[1])
backends = [TensorboardVisBackend(save_dir=str(disk / "tb")), LocalVisBackend(save_dir=str(disk / "local"))]
for backend in backends:
    guard(backend)
def write(begin, end):
    for step in range(begin, end):
        for backend in backends:
            backend.add_scalars({"loss": 1.0, "lr": 0.1}, step=step)
write(0, 10)
from tests.local.test_full_disk import fill
filling = fill(disk)
write(10, 2000)
filling.unlink()
write(2000, 2010)
for backend in backends:
    backend.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(disk)], cwd=tiny.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not write") == 2
    assert "Traceback" not in done.stderr
    compat.prepare()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    newest = max((disk / "tb").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    accumulator = EventAccumulator(str(newest))
    accumulator.Reload()
    assert accumulator.Scalars("loss")[-1].step == 2009
    assert '"step": 2009' in (disk / "local" / "scalars.json").read_text().splitlines()[-1]
