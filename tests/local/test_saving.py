"""What a real training does while its checkpoints cannot be written, or somebody else writes them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.engine import checkpoints
from jobs.run import events
from jobs.run.directory import Run
from jobs.run.exit_codes import FINISHED, RESUME, SUPERSEDED, USER_ERROR
from tests.support import tiny

pytestmark = pytest.mark.slow

SETTINGS = {
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}],
    "log_level": "WARNING",
}
# Six steps an epoch; a save, then a validation, at the end of each.


def wait_for(condition: Callable[[], object], run: Run, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, tiny.log_of(run, 1)
        time.sleep(0.02)


def of(run: Run, name: str) -> list[dict]:
    return [event for event in events.read(run.events) if event["event"] == name]


def steps(run: Run, name: str) -> list[int]:
    return [event["step"] for event in of(run, name)]


def digests_fit(run: Run) -> bool:
    listed = checkpoints.listed(run.checkpoints)
    return bool(listed) and all(checkpoints.digest(c.path) == c.manifest["digest"] for c in listed)


@pytest.mark.parametrize("phase", ["synced", "renamed"])
def test_an_orphan_wakes_up_after_the_run_is_finished(data: Path, tmp_path: Path, phase: str) -> None:
    """Start 1 stands still in the middle of a write; start 2 goes on from what there is, to the end."""
    run = tiny.make_run(tmp_path / "run", data, **SETTINGS)
    here = tmp_path / "here"
    save = 1 if phase == "renamed" else 2
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(tiny.start, run, 1, {"at": phase, "step": save, "pause": str(here)})
        wait_for(here.exists, run)
        assert tiny.start(run) == [FINISHED], tiny.log_of(run, 2)
        before = tiny.final_state(run)
        here.unlink()
        assert first.result() == [SUPERSEDED], tiny.log_of(run, 1)
    assert digests_fit(run)
    assert tiny.differences(tiny.final_state(run), before) == []
    # With its name, and without a manifest yet, a checkpoint is worth going on from.
    assert steps(run, "resumed") == [6]
    assert not list(run.checkpoints.glob(".*.tmp"))


def test_a_run_without_a_whole_checkpoint_does_not_begin_again(data: Path, tmp_path: Path) -> None:
    run = tiny.make_run(tmp_path / "run", data, **SETTINGS)
    assert tiny.start(run, 1, {"at": "step", "step": 8, "signal": "SIGUSR2"}) == [RESUME]
    for path in run.checkpoints.glob("*.pth"):
        os.truncate(path, path.stat().st_size // 2)
    for _ in range(2):
        assert tiny.start(run) == [USER_ERROR]
    assert "delete the folder to start from step 0" in tiny.log_of(run, 3)
    assert len(of(run, "first_step")) == 1


def test_what_an_interrupted_start_left_is_in_nobodys_way(data: Path, tmp_path: Path) -> None:
    """Half a checkpoint of a killed writer, a best.json that cannot be read, a map of a deleted file."""
    hooks = [{"type": "Interrupt"}, {"type": "RecordMaps"}, {"type": "EMAHook"}]
    run = tiny.make_run(tmp_path / "run", data, **SETTINGS | {"custom_hooks": hooks})
    assert tiny.start(run, 1, {"at": "step", "step": 3, "signal": "SIGUSR2"}) == [RESUME]
    (run.checkpoints / ".epoch_1.pth.1.99.tmp").touch()
    (run.checkpoints / "best.json").symlink_to("best.json")
    assert tiny.start(run, 1, {"at": "step", "step": 8, "signal": "SIGUSR2"}) == [RESUME]
    assert not list(run.checkpoints.glob(".*.tmp"))
    assert any("best.json" in event["reason"] for event in of(run, "checkpoint_failed"))
    assert steps(run, "validated") == [6]
    (run.checkpoints / "best.json").unlink()
    assert tiny.start(run, 2) == [FINISHED] * 2
    # The files that starts 2 and 3 went on from have been pruned: their room on the disk is free.
    for mapped in ("maps-2-0", "maps-3-0", "maps-3-1"):
        assert (run.job / mapped).read_text() == ""


def test_waiting_for_the_disk_is_no_hang_in_a_step(data: Path, tmp_path: Path) -> None:
    """The save of step 12 waits for that of step 6, which a slow disk holds up."""
    settings = {"val_cfg": None, "val_dataloader": None, "val_evaluator": None}
    run = tiny.make_run(tmp_path / "run", data, **SETTINGS | settings)
    here = tmp_path / "here"
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(tiny.start, run, 1, {"at": "synced", "step": 1, "pause": str(here)})
        wait_for(here.exists, run)
        wait_for(lambda: tiny.beats_of(run, 1)[-1] == ("save", 12), run)
        here.unlink()
        assert first.result() == [FINISHED], tiny.log_of(run, 1)


@pytest.fixture
def read_only() -> Iterator[Callable[[Run, bool], None]]:
    """Makes a run's checkpoints read-only, and writable again."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounted: list[Path] = []

    def change(run: Run, to: bool) -> None:
        if run.checkpoints not in mounted:
            run.checkpoints.mkdir()
            if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", run.checkpoints], check=False).returncode:
                pytest.skip("mounting is not allowed here")
            mounted.append(run.checkpoints)
        mode = "ro" if to else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", run.checkpoints], check=True)

    yield change
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("at", ["step", "validate"])
def test_preempted_while_nothing_can_be_written(
    data: Path, tmp_path: Path, read_only: Callable[[Run, bool], None], at: str, for_good: bool
) -> None:
    """The ranks try as long as there is time, and tell the step that is on the disk, not another."""
    run = tiny.make_run(tmp_path / "run", data, **SETTINGS)
    request = run.request()
    request.cluster.signal_delay = 1 if for_good else 600
    run.write_request(request)
    read_only(run, False)
    here = tmp_path / "here"
    pause = {"at": "step", "step": 8, "pause": str(here)}
    strike = {"at": at, "step": 8 if at == "step" else 12, "signal": "SIGUSR2"}
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(tiny.start, run, 1, [pause, strike])
        wait_for(here.exists, run)
        read_only(run, True)
        here.unlink()
        if not for_good:
            wait_for(lambda: len(of(run, "checkpoint_failed")) > 1, run)
            read_only(run, False)
        assert first.result() == [RESUME], tiny.log_of(run, 1)
    read_only(run, False)
    (left,) = steps(run, "preempted")
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == left
    if for_good:
        assert left == 6
    else:
        assert left == {"step": 9, "validate": 12}[at]
