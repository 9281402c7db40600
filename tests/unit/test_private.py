"""What lies where others may write is theirs until it is looked at: links, locks, folders and names."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.catalog import owner
from jobs.prepare import lock
from jobs.run import private
from jobs.run.errors import UserError
from tests.stages import wait_until
from tests.strangers import UID, needs_root, stranger, succeeds_as_stranger
from tests.support.cluster.ports import locked


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /tmp of our own, where everybody can write, and a home."""
    for folder in (tmp_path, *tmp_path.parents):
        if not os.access(folder, os.X_OK) or not folder.stat().st_mode & 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    place = tmp_path / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return place


def test_a_folder_of_ones_own(shared: Path) -> None:
    found = private.folder("gpus")
    assert found == shared / f"baton-{os.geteuid()}" / "gpus" == private.folder("gpus")
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    found.parent.chmod(0o777)
    private.folder("gpus")
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_name_that_somebody_else_has_taken_is_left_alone(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    taken, precious = shared / f"baton-{os.geteuid()}", tmp_path / "precious"
    precious.mkdir()

    def take() -> None:
        if kind == "folder":
            taken.mkdir()
            taken.chmod(0o777)
        elif kind == "link":
            taken.symlink_to(precious)
        else:
            taken.touch()

    assert succeeds_as_stranger(take)
    assert private.folder("gpus") == tmp_path / "home/.cache/baton/gpus"
    assert "is not this user's own folder" in (said := capsys.readouterr().err)
    assert f"a {kind}, of {private.user(UID)}" in said
    assert list(precious.iterdir()) == []
    assert kind != "folder" or list(taken.iterdir()) == []


@needs_root
def test_a_lock_cannot_be_held_by_others(shared: Path) -> None:
    """One who holds a file's lock need only be able to read it: nobody else is."""
    path = shared / "own.lock"
    old = os.umask(0)
    try:
        os.close(private.open_own(path))
    finally:
        os.umask(old)
    assert not succeeds_as_stranger(lambda: os.open(path, os.O_RDONLY))
    path.chmod(0o666)  # as an earlier version has left it
    os.close(private.open_own(path))
    assert not succeeds_as_stranger(lambda: os.open(path, os.O_RDONLY))


@needs_root
@pytest.mark.parametrize("plant", [Path.touch, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_a_lock_that_somebody_else_has_put_there_is_refused(
    shared: Path, plant: Callable[[Path], object]
) -> None:
    path = shared / "own.lock"
    assert succeeds_as_stranger(lambda: plant(path))
    with pytest.raises(UserError, match=f"own.lock is not this user's own file.*{private.user(UID)}"):
        private.open_own(path)


def test_who_holds_a_lock_is_named_and_not_waited_for_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    named = rf"held by first \(process {os.getpid()} on "
    with locked(path, "first"), pytest.raises(UserError, match=named):
        locked(path, "second", seconds=0.1).__enter__()
    with locked(path, "third", seconds=0.1):
        assert private.holder(path).startswith("third")


@needs_root
def test_a_reader_of_a_data_root_cannot_hold_a_preparation_up(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "TELL_SECONDS", 0.1)
    monkeypatch.setattr(lock, "GUARD_SECONDS", 0.5)
    root = shared / "data"
    root.mkdir(mode=0o755)

    def hold() -> None:
        fcntl.flock(os.open(root, os.O_RDONLY), fcntl.LOCK_EX)
        time.sleep(600)

    with stranger(hold):
        wait_until(lambda: not is_free(root))
        with lock.hold(root, wait=False) as held:
            assert held is not None
            held.check()
    said = capsys.readouterr().err
    assert f"of {private.user(UID)}; waiting" in said
    assert said.count("going on") == 1
    assert not (root / owner.NAME).exists()


def is_free(root: Path) -> bool:
    fd = os.open(root, os.O_RDONLY)
    try:
        return private.lock_alone(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("says", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: int
) -> None:
    """Lustre says ENOSYS, unless it is mounted with `flock`."""

    def none(*_: int) -> None:
        raise OSError(says, os.strerror(says))

    monkeypatch.setattr(fcntl, "flock", none)
    fd = private.open_own(tmp_path / "local.lock")
    assert private.try_lock(fd, "a run")
    os.close(fd)
    assert private.holder(tmp_path / "local.lock").startswith("a run (process ")
