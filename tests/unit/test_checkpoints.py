"""Checkpoints under everything that can happen to a writer or to a file."""

import codecs
import collections
import errno
import io
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.engine import checkpoints, safe_load
from jobs.mmseg import compat
from jobs.run import events
from jobs.run.errors import UserError
from jobs.run.metrics import Figure
from tests.support import tiny

CONTENT = {"state_dict": {"weight": torch.arange(3000.0)}, "meta": {"epoch": 1}}


def manifest(step: int, **more: object) -> dict:
    known = dict.fromkeys(checkpoints.FIELDS, 0)
    return known | {"step": step, "epoch": step, "asked": False} | more


def write(folder: Path, step: int, start: int = 1, **more: object) -> checkpoints.Checkpoint:
    record = manifest(step, **more)
    content = CONTENT | {"step": step, "baton": record | {"history": {}}}
    return checkpoints.write(folder / f"iter_{step}.pth", content, record, folder, start)


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


def killed(child: Callable[[], object]) -> bool:
    """Runs `child` in a process of its own. Returns whether that was killed before it was through."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("last", ["opened", "written", "synced", "renamed", "manifest", "verified"])
@pytest.mark.parametrize("before", [0, 1])
def test_killed_in_any_phase_of_a_write(tmp_path: Path, last: str, before: int) -> None:
    for step in range(before):
        write(tmp_path, step)

    def dying() -> None:
        checkpoints.on_phase = lambda phase: os.kill(os.getpid(), signal.SIGKILL) if phase == last else None
        write(tmp_path, 5)

    assert killed(dying)
    newest = checkpoints.newest(tmp_path)
    if last in ("renamed", "manifest", "verified"):
        # Once it has its name it is whole, with or without a manifest.
        assert newest is not None
        assert newest.step == 5
    elif before:
        assert newest is not None
        assert newest.step == 0
    else:
        assert newest is None
    # And the next start writes the same step as if nothing had been.
    checkpoints.clear(tmp_path, tmp_path, 2)
    write(tmp_path, 5, start=2)
    again = checkpoints.newest(tmp_path)
    assert again is not None
    assert again.step == 5
    assert list(tmp_path.glob(".*")) == []


def die_at(number: int) -> None:
    """From here on, the process kills itself before its `number`-th call of those that change a disk."""
    left = number

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    # The interpreter tells of these itself, whoever calls them; not of fsync and write.
    sys.addaudithook(lambda event, _: count() if event in ("open", "os.rename", "os.remove") else None)
    fsync, write = os.fsync, checkpoints._Hashing.write

    def counted_fsync(fd: Any) -> None:
        count()
        fsync(fd)
        count()

    def counted_write(self: checkpoints._Hashing, data: bytes) -> int:
        # Half of it is on the disk.
        whole = memoryview(data)
        written = write(self, whole[: len(whole) // 2])
        self.file.flush()
        count()
        return written + write(self, whole[len(whole) // 2 :])

    os.fsync, checkpoints._Hashing.write = counted_fsync, counted_write  # type: ignore[method-assign]


def test_killed_at_any_call(tmp_path: Path) -> None:
    """Of a save from beginning to end: writing, pruning, and marking the best."""
    before = tmp_path / "before"
    before.mkdir()
    for step in (1, 2, 3):
        checkpoint = write(before, step, asked=True)
        if step == 2:
            checkpoints.mark_best(before, checkpoint, "mIoU", {"mIoU": 50.0})

    def save(folder: Path) -> None:
        written = write(folder, 4, start=2, asked=True)
        checkpoints.prune(folder, 1, folder, 2)
        checkpoints.mark_best(folder, written, "mIoU", {"mIoU": 60.0})

    deaths, found, bests = 0, [], []
    while True:
        folder = tmp_path / str(deaths)
        shutil.copytree(before, folder)

        def dying(number: int = deaths + 1, folder: Path = folder) -> None:
            die_at(number)
            save(folder)

        alive = not killed(dying)
        newest, best = checkpoints.newest(folder), checkpoints.best(folder)
        assert newest is not None
        assert best is not None
        assert torch.load(newest.path, weights_only=True)["step"] == newest.step
        assert best.manifest["digest"] == checkpoints.digest(best.path)
        assert not list(folder.glob("*.damaged"))
        found.append(newest.step)
        bests.append(best.step)
        # The next start saves the same as if nothing had been.
        checkpoints.clear(folder, folder, 3)
        save(folder)
        assert {"iter_3.pth", "iter_4.pth"} <= set(names(folder)) <= {f"iter_{n}.pth" for n in (2, 3, 4)}
        assert sorted(path.name.removesuffix(".json") for path in folder.glob("*.pth.*")) == names(folder)
        assert list(folder.glob(".*")) == []
        shutil.rmtree(folder)
        if alive:
            break
        deaths += 1
    # First the old ones, then the new ones; and as many places to die in as there are calls.
    assert found == sorted(found)
    assert set(found) == {3, 4}
    assert bests == sorted(bests)
    assert set(bests) == {2, 4}
    assert deaths > 25


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


def take_another_ones_manifest(path: Path) -> None:
    manifest = path.with_name(f"{path.name}.json")
    manifest.write_text(manifest.read_text().replace('"digest": "', '"digest": "0'))


def lose_manifest_and_flip(path: Path) -> None:
    lose_manifest(path)
    flip(path)


@pytest.mark.parametrize("damage", [truncate, empty, flip, lose_manifest_and_flip])
def test_a_damaged_one_is_named_and_the_one_before_taken(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    write(tmp_path, 1)
    damage(write(tmp_path, 2).path)
    reports = []
    newest = checkpoints.newest(tmp_path, lambda event, **fields: reports.append((event, fields["path"])))
    assert newest is not None
    assert newest.step == 1
    assert reports == [("checkpoint_damaged", "iter_2.pth")]
    assert (tmp_path / "iter_2.pth.damaged").exists()


@pytest.mark.parametrize("loss", [lose_manifest, tear_manifest, take_another_ones_manifest])
def test_a_whole_one_without_its_manifest_still_counts(tmp_path: Path, loss: Callable[[Path], None]) -> None:
    write(tmp_path, 1)
    written = write(tmp_path, 2, global_batch=8)
    loss(written.path)
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert newest.step == 2
    assert newest.manifest["global_batch"] == 8
    assert newest.manifest["digest"] == written.manifest["digest"]
    assert not list(tmp_path.glob("*.damaged"))
    assert [c.step for c in checkpoints.listed(tmp_path)] == [1, 2]


@pytest.mark.parametrize("damage", [truncate, lose_manifest_and_flip])
def test_without_a_whole_one_a_run_does_not_begin_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        damage(write(tmp_path, step).path)
    # Neither this start nor one that finds them set aside.
    for _ in range(2):
        with pytest.raises(UserError, match=r"whole.*iter_1\.pth\.damaged.*delete the folder"):
            checkpoints.newest(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "missing") is None


def lead_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/moved.pth")


def test_a_link_to_nowhere_is_told_and_stays(tmp_path: Path) -> None:
    """As of a checkpoint that was moved to a disk which is not mounted now."""
    write(tmp_path, 1)
    lead_nowhere(write(tmp_path, 2).path)
    reports = []
    newest = checkpoints.newest(tmp_path, lambda event, **fields: reports.append((event, fields)))
    assert newest is not None
    assert newest.step == 1
    reason = "a link to /nowhere/moved.pth, which is not there"
    assert reports == [("checkpoint_damaged", {"path": "iter_2.pth", "reason": reason})]
    assert (tmp_path / "iter_2.pth").is_symlink()


@pytest.mark.parametrize("loss", [Path.unlink, lead_nowhere])
def test_a_run_whose_checkpoints_were_taken_away_does_not_begin_again(
    tmp_path: Path, loss: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        loss(write(tmp_path, step).path)
    with pytest.raises(UserError, match=r"whole.*iter_1\.pth.*delete the folder"):
        checkpoints.newest(tmp_path)


def test_a_folder_that_leads_nowhere_is_not_taken_for_absent(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to("/nowhere")
    with pytest.raises(OSError, match="a link to /nowhere, which is not there"):
        checkpoints.newest(tmp_path / "checkpoints")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("suffix", [".pth", ".pth.json"])
def test_what_cannot_be_read_is_not_taken_for_damage(tmp_path: Path, suffix: str) -> None:
    """A link to itself stands for a file server that does not answer: it can be neither read nor missed."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    unreadable = tmp_path / f"iter_2{suffix}"
    loop(unreadable)
    for _ in range(2):
        with pytest.raises(OSError, match=unreadable.name) as caught:
            checkpoints.newest(tmp_path)
        assert caught.value.errno == errno.ELOOP
    assert names(tmp_path) == ["iter_1.pth", "iter_2.pth"]
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("forbidden", [".", "iter_2.pth", "iter_2.pth.json"])
def test_what_may_not_be_read_is_not_taken_for_absent(tmp_path: Path, forbidden: str) -> None:
    tmp_path.chmod(0o777)
    for step in (1, 2):
        write(tmp_path, step)

    def as_nobody() -> None:
        os.chdir(tmp_path)
        Path(forbidden).chmod(0o300 if forbidden == "." else 0)
        os.setuid(65534)
        try:
            checkpoints.newest(Path())
        except PermissionError:
            return
        os._exit(1)

    assert not killed(as_nobody)
    tmp_path.chmod(0o777)
    assert names(tmp_path) == ["iter_1.pth", "iter_2.pth"]


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


def test_pruning_keeps_what_was_just_verified(tmp_path: Path) -> None:
    """Whatever damaged ones that could not be set aside claim to be."""
    for step in (8, 9, 4):
        write(tmp_path, step, start=1 + (step == 4))
    checkpoints.prune(tmp_path, most=1, job=tmp_path, start=2)
    assert "iter_4.pth" in names(tmp_path)


def test_a_damaged_note_of_the_best_does_not_cost_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in range(1, 6):
        write(folder, step)
    told = events.Writer(tmp_path / "events.jsonl", stage="train", start=1)
    told.append("started", hosts=["here"], world_size=1)
    for step, value in ((1, 60.0), (2, 50.0)):
        told.append("validated", step=step, epoch=1, seconds=1.0, metrics={"mIoU": value})
    (folder / "best.json").write_text("[]")
    checkpoints.prune(folder, most=1, job=tmp_path, start=1)
    assert names(folder) == [f"iter_{step}.pth" for step in (1, 4, 5)]
    assert checkpoints.best_figure(folder) == Figure("mIoU", 60.0, 1)


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
    with pytest.raises(checkpoints.FencedOff):
        checkpoints.clear(tmp_path, tmp_path, start=9)


@pytest.mark.parametrize("phase", ["synced", "renamed"])
def test_a_writer_that_stood_still_leaves_what_a_later_start_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Start 1 stops for a while in the middle of a write; start 2 writes the same step, and more."""
    write(tmp_path, 1)

    def meanwhile(name: str) -> None:
        if name == phase:
            monkeypatch.setattr(checkpoints, "on_phase", lambda _: None)
            (tmp_path / "start-2").touch()
            checkpoints.clear(tmp_path, tmp_path, 2)
            for step in (2, 3):
                # Not the same bytes: the time of the save is in them.
                record = manifest(step)
                content = CONTENT | {"step": step, "baton": record, "by": "start 2"}
                checkpoints.write(tmp_path / f"iter_{step}.pth", content, record, tmp_path, 2)

    monkeypatch.setattr(checkpoints, "on_phase", meanwhile)
    with pytest.raises(checkpoints.FencedOff):
        write(tmp_path, 2, start=1)
    assert [c.step for c in checkpoints.listed(tmp_path)] == [1, 2, 3]
    assert [c.manifest["start"] for c in checkpoints.listed(tmp_path)] == [1, 2, 2]
    for checkpoint in checkpoints.listed(tmp_path):
        assert checkpoints.digest(checkpoint.path) == checkpoint.manifest["digest"]


def test_a_writer_whose_file_was_replaced_does_not_delete_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads back something else than it wrote: because a later start has written it."""

    def meanwhile(name: str) -> None:
        if name == "manifest":
            monkeypatch.setattr(checkpoints, "on_phase", lambda _: None)
            (tmp_path / "start-2").touch()
            (tmp_path / "iter_2.pth.json").unlink()
            write(tmp_path, 2, start=2, why="later")

    monkeypatch.setattr(checkpoints, "on_phase", meanwhile)
    with pytest.raises(checkpoints.FencedOff):
        write(tmp_path, 2, start=1)
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert newest.manifest["start"] == 2


def test_what_killed_writers_left_is_deleted_before_the_first_write(tmp_path: Path) -> None:
    left = [".iter_5.pth.1.99.tmp", ".iter_5.pth.2.99.tmp", ".best.json.99.tmp"]
    for name in (*left, ".iter_5.pth.3.99.tmp"):
        (tmp_path / name).touch()
    checkpoints.clear(tmp_path, tmp_path, start=3)
    # Start 3's own may be under way.
    assert [path.name for path in tmp_path.iterdir()] == [".iter_5.pth.3.99.tmp"]


def test_manifests_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every save looks at all of them, and a run may keep thousands."""
    for step in range(5):
        write(tmp_path, step)
    checkpoints.listed(tmp_path)
    read: list[str] = []
    read_bytes = Path.read_bytes

    def reading(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    write(tmp_path, 5)
    assert [c.step for c in checkpoints.listed(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert read == ["iter_5.pth.json"]
    # A manifest that was replaced is another.
    write(tmp_path, 3, start=2)
    (tmp_path / "iter_3.pth.json").write_text(json.dumps(manifest(33, bytes=1)))
    assert [c.step for c in checkpoints.listed(tmp_path)] == [0, 1, 2, 4, 5]


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
        assert "iter_2.pth" in str(caught.value)
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


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


class Builds:
    """An instance of a class of the attacker's choice, with attributes likewise."""

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.Popen.__new__, (subprocess.Popen,), {"args": ["true"]}


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    """Even with a manifest that fits: digests protect from accidents, the loader from people."""
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {}, "evil": Calls(os.system, f"touch {tmp_path}/was-here")}, path)
    record = manifest(1, bytes=path.stat().st_size, digest=checkpoints.digest(path))
    (tmp_path / "iter_1.pth.json").write_text(json.dumps(record))
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    with pytest.raises(pickle.UnpicklingError):
        compat.load(newest.path)
    assert not (tmp_path / "was-here").exists()


def load_before_2_6(path: Path) -> Any:
    """What torch 2.1 to 2.5 load with; a newer one can, too."""
    return safe_load._load_before_2_6(str(path), "cpu", safe_load._is_zip(str(path)) or None)


def load_as_others_do(path: Path) -> Any:
    """A backbone that calls torch.load itself, and trusts its weights_only: too much, before torch 2.6."""
    compat.prepare()
    return torch.load(path, weights_only=True)


LOADERS = [compat.load, load_before_2_6]


@pytest.mark.parametrize("load", [*LOADERS, load_as_others_do])
@pytest.mark.parametrize("format", ["zip", "before 1.6", "bare pickle"])
def test_no_code_of_a_file_runs(load: Callable[..., Any], format: str, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {mark}"), inner)
    attacks = [
        Calls(os.system, f"touch {mark}"),
        Calls(eval, f"open({str(mark)!r}, 'w')"),
        Calls(open, str(mark), "w"),
        # What torch itself pickles storages with: it loads its bytes with plain pickle.
        Calls(torch.storage._load_from_bytes, inner.getvalue()),
        Calls(torch.load, str(tmp_path / "x")),
        Calls(getattr, subprocess.Popen, "__init__"),
        Calls(np.load, str(tmp_path / "x"), None, True),
        Builds(),
    ]
    path = tmp_path / "iter_1.pth"
    for attack in attacks:
        if format == "bare pickle":
            path.write_bytes(pickle.dumps(attack))
        else:
            torch.save({"x": attack}, path, _use_new_zipfile_serialization=format == "zip")
        with pytest.raises(pickle.UnpicklingError):
            load(path)
        assert not mark.exists()


@pytest.mark.parametrize("load", [*LOADERS, load_as_others_do])
def test_what_torch_would_hand_to_another_reader_is_refused(load: Callable[..., Any], tmp_path: Path) -> None:
    """TorchScript is a program; the format of torch 0.1 is a tar archive, in which pickles lie."""
    path = tmp_path / "iter_1.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        load(path)
    content = tmp_path / "storages"
    content.write_bytes(pickle.dumps(Calls(os.system, f"touch {tmp_path}/was-here")))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(content, name)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        load(path)
    assert not (tmp_path / "was-here").exists()
    if load is load_before_2_6:
        with pytest.raises(pickle.UnpicklingError, match="is a tar archive"):
            load(path)


def test_bytes_in_another_encoding_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    torch.save({"x": Calls(codecs.encode, "x", "utf-16")}, path)
    with pytest.raises(pickle.UnpicklingError, match="bytes in 'utf-16'"):
        load_before_2_6(path)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_all_that_checkpoints_hold_is_read(load: Callable[..., Any], zipped: bool, tmp_path: Path) -> None:
    kinds = (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
    )
    content: dict[str, Any] = {
        "tensors": [torch.arange(6).reshape(2, 3).to(kind) for kind in kinds],
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "view": torch.arange(6.0)[2:4],
        "channels_last": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "ordered": collections.OrderedDict(a=torch.zeros(0)),
        "plain": (None, True, 1, 2.5, "x", b"\xff\x00", {1, 2}, torch.Size([1, 2])),
        "kinds": list(kinds),
        "device": torch.device("cpu"),
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = load(path)
    assert isinstance(found["parameter"], torch.nn.Parameter)
    for key in ("parameter", "bfloat16"):
        assert torch.equal(found.pop(key), content.pop(key))
    assert tiny.differences(found, content) == []
    assert found["channels_last"].stride() == content["channels_last"].stride()


class GetAttribute:
    def __reduce__(self) -> tuple[Any, ...]:
        from mmengine.logging import HistoryBuffer

        return getattr, (HistoryBuffer, "register_statistics")


@pytest.mark.parametrize("load", LOADERS)
def test_mmengines_own_checkpoints_are_read(load: Callable[..., Any], tmp_path: Path) -> None:
    """Their message hub's histories name methods; no other attribute of anything can be had that way."""
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer()
    history.update(2.5)
    path = tmp_path / "epoch_1.pth"
    torch.save({"message_hub": {"log_scalars": {"loss": history}}, "lr": np.float64(0.5)}, path)
    content = load(path)
    assert content["message_hub"]["log_scalars"]["loss"].current() == 2.5
    assert content["lr"] == 0.5
    # As the other NumPy, 1 or 2, names its internals.
    renamed = tmp_path / "renamed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            other = data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
            if other == data:
                other = data.replace(b"numpy.core.multiarray\n", b"numpy._core.multiarray\n")
            assert (other != data) == name.endswith("data.pkl")
            new.writestr(name, other)
    assert load(renamed)["message_hub"]["log_scalars"]["loss"].current() == 2.5
    torch.save({"x": GetAttribute()}, path)
    with pytest.raises(pickle.UnpicklingError, match="register_statistics"):
        load(path)


class Reduced:
    """Pickled as it is told: a callable, its arguments, and a state."""

    def __init__(self, *how: Any) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return self.how


def crafted_dtype(code: str, *state: Any) -> Reduced:
    return Reduced(np.dtype, (code, False, True), (3, *state))


def crafted_array(dtype: Any, shape: Any, data: Any) -> Reduced:
    return Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


OBJECTS = ("<", (np.dtype("O"), (1,)), None, None, -1, -1, 63)
PLAIN = ("<", None, None, None, -1, -1, 0)
NUMBER = np.float64(1).__reduce__()[0]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    "crafted",
    [
        Reduced(NUMBER, (crafted_dtype("S1", "|", None, None, None, -8, 1, 0), b"abcdefgh")),
        crafted_array(crafted_dtype("f8", *OBJECTS), (1,), b"A" * 8),
        crafted_array(crafted_dtype("f8", *PLAIN), (1 << 40,), b"A" * 8),
        crafted_array(crafted_dtype("f8", *PLAIN), (-1,), b"A" * 8),
        crafted_array(np.dtype("O"), (1,), [1]),
        crafted_array(np.dtype([("a", "f8")]), (1,), b"A" * 8),
        crafted_array(crafted_dtype("f8,O", *PLAIN), (1,), b"A" * 16),
        Reduced(NUMBER, (crafted_dtype("f8", *PLAIN), b"A" * 7)),
    ],
)
def test_a_crafted_array_touches_no_memory_of_others(
    load: Callable[..., Any], crafted: Reduced, tmp_path: Path
) -> None:
    """NumPy's own unpickling takes the sizes and addresses that a file says."""
    path = tmp_path / "epoch_1.pth"
    torch.save({"x": collections.OrderedDict(y=crafted)}, path)
    with pytest.raises(pickle.UnpicklingError):
        load(path)


def test_an_environment_that_cannot_load_what_it_saves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    safe_load.prove()

    # torch before 2.3 with NumPy 2 says this of every array.
    def from_numpy(_: object) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", from_numpy)
    with pytest.raises(UserError, match=r"could not resume a run: .*Numpy is not available"):
        safe_load.prove()


def test_a_file_system_that_brings_no_names_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of FUSE, and over a network, refuse fsync of a folder."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    written = write(tmp_path, 3)
    assert checkpoints.newest(tmp_path) == written


def test_an_error_of_the_disk_names_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"quota exceeded: '.*iter_3\.pth'"):
        write(tmp_path, 3)
    assert names(tmp_path) == []
