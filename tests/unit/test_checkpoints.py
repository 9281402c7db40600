"""Checkpoints under everything that can happen to a writer or to a file."""

import errno
import json
import os
import pickle
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from jobs import compat
from jobs.train import checkpoints

CONTENT = {"state_dict": {"weight": torch.arange(3000.0)}, "meta": {"epoch": 1}}


def manifest(step: int, **more: object) -> dict:
    return {"step": step, "epoch": step, "asked": False} | more


def write(folder: Path, step: int, start: int = 1, **more: object) -> checkpoints.Checkpoint:
    content = CONTENT | {"step": step}
    return checkpoints.write(folder / f"iter_{step}.pth", content, manifest(step, **more), folder, start)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pth"))


def test_the_newest_is_found_and_plain_torch_reads_it(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for step in (9, 10):
        write(tmp_path, step)
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert newest.step == 10
    assert torch.load(newest.path, weights_only=True)["step"] == 10


@pytest.mark.parametrize("phase", ["opened", "written", "synced", "renamed", "manifest", "verified"])
@pytest.mark.parametrize("before", [0, 1])
def test_killed_in_any_phase_of_a_write(tmp_path: Path, phase: str, before: int) -> None:
    for step in range(before):
        write(tmp_path, step)
    child = os.fork()
    if child == 0:
        checkpoints.on_phase = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == phase else None
        write(tmp_path, 5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    newest = checkpoints.newest(tmp_path)
    if phase in ("manifest", "verified"):
        assert newest is not None
        assert newest.step == 5
    elif before:
        assert newest is not None
        assert newest.step == 0
    else:
        assert newest is None
    # And the next start writes the same step as if nothing had been.
    write(tmp_path, 5, start=2)
    again = checkpoints.newest(tmp_path)
    assert again is not None
    assert again.step == 5


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


def tear_manifest(path: Path) -> None:
    manifest = path.with_name(f"{path.name}.json")
    os.truncate(manifest, manifest.stat().st_size // 2)


@pytest.mark.parametrize("damage", [truncate, empty, flip, lose_manifest, tear_manifest])
def test_a_damaged_one_is_named_and_the_one_before_taken(tmp_path: Path, damage) -> None:
    write(tmp_path, 1)
    damage(write(tmp_path, 2).path)
    reports = []
    newest = checkpoints.newest(tmp_path, lambda event, **fields: reports.append((event, fields["path"])))
    assert newest is not None
    assert newest.step == 1
    assert reports == [("checkpoint_damaged", "iter_2.pth")]
    assert (tmp_path / "iter_2.pth.damaged").exists()


def test_a_moved_run_is_found_whole(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    checkpoint = write(folder, 3)
    checkpoints.mark_best(folder, checkpoint, "mIoU", {"mIoU": 50.0})
    folder.rename(tmp_path / "there")
    newest, best = checkpoints.newest(tmp_path / "there"), checkpoints.best(tmp_path / "there")
    assert newest is not None
    assert best is not None
    assert newest.path == best.path == tmp_path / "there" / "iter_3.pth"


def test_pruning_keeps_two_the_asked_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 9):
        checkpoint = write(tmp_path, step, asked=step in (2, 4, 6))
        if step == 3:
            checkpoints.mark_best(tmp_path, checkpoint, "mIoU", {"mIoU": 50.0})
    checkpoints.prune(tmp_path, most=2, job=tmp_path, start=1)
    assert names(tmp_path) == [f"iter_{step}.pth" for step in (3, 4, 6, 7, 8)]
    checkpoints.prune(tmp_path, most=1, job=tmp_path, start=1)
    assert names(tmp_path) == [f"iter_{step}.pth" for step in (3, 6, 7, 8)]


def test_an_older_start_is_fenced_off(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "start-10").touch()
    with pytest.raises(checkpoints.FencedOff, match="start 10"):
        write(tmp_path, 4, start=9)
    with pytest.raises(checkpoints.FencedOff):
        checkpoints.prune(tmp_path, most=1, job=tmp_path, start=9)
    assert names(tmp_path) == ["iter_1.pth", "iter_2.pth", "iter_3.pth"]
    assert list(tmp_path.glob(".*.tmp")) == []


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_full_or_read_only_disk_leaves_what_was_there(tmp_path: Path, trouble: str) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "none", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        write(tmp_path, 1)
        if trouble == "full":
            with pytest.raises(OSError, match="No space"):
                fill(tmp_path / "filler")
            expected = errno.ENOSPC
        else:
            subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
            expected = errno.EROFS
        with pytest.raises(OSError) as caught:
            write(tmp_path, 2)
        assert caught.value.errno == expected
        newest = checkpoints.newest(tmp_path)
        assert newest is not None
        assert newest.step == 1
        if trouble == "full":
            (tmp_path / "filler").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", tmp_path], check=True)
        assert write(tmp_path, 2).step == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/baton-was-here",)


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    """Even with a manifest that fits: digests protect from accidents, weights_only from people."""
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {}, "evil": Malicious()}, path)
    record = manifest(1, bytes=path.stat().st_size, digest=checkpoints.digest(path))
    (tmp_path / "iter_1.pth.json").write_text(json.dumps(record))
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    with pytest.raises(pickle.UnpicklingError):
        compat.load(newest.path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(pickle.UnpicklingError):
        compat.load(path)
    assert not Path("/tmp/baton-was-here").exists()


class GetAttribute:
    def __reduce__(self):
        from mmengine.logging import HistoryBuffer

        return getattr, (HistoryBuffer, "register_statistics")


def test_mmengines_own_checkpoints_are_read(tmp_path: Path) -> None:
    """Their message hub's histories name methods; no other attribute of anything can be had that way."""
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer()
    history.update(2.5)
    path = tmp_path / "epoch_1.pth"
    torch.save({"message_hub": {"log_scalars": {"loss": history}}}, path)
    assert compat.load(path)["message_hub"]["log_scalars"]["loss"].current() == 2.5
    torch.save({"x": GetAttribute()}, path)
    with pytest.raises(pickle.UnpicklingError, match="register_statistics"):
        compat.load(path)
