"""Copies of a packed dataset on a node's own disk: made, found, read, evicted, and refused."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from jobs.prepare.packed import convert
from jobs.run import file_systems, packed, private, staged
from jobs.run.errors import UserError
from jobs.run.packed import Container
from jobs.supervise import copier, image, staging
from tests.strangers import UID, needs_root

FOLDER = "VOCdevkit"


@pytest.fixture
def container(voc_small: Path, tmp_path: Path) -> Path:
    shutil.copytree(voc_small / FOLDER, tmp_path / "data" / FOLDER)
    convert.pack(tmp_path / "data", FOLDER)
    return tmp_path / "data" / FOLDER / packed.NAME


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's own disk, however full."""
    monkeypatch.setattr(staging, "KEPT_FREE", 0.0)
    return tmp_path / "local"


@pytest.fixture(params=["nameless", "named"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has files without a name, and on one that has none."""
    if request.param == "named":
        really = os.open

        def refuses(path: object, flags: int, *rest: object, **more: object) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return really(path, flags, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuses)


def inside(stage: Path) -> list[str]:
    return sorted(name for name in os.listdir(staged.folder(stage)) if name != "lock")


def another(container: Path, name: str) -> Path:
    """A second dataset, as large."""
    shutil.copytree(container.parent, container.parent.parent / name)
    return container.parent.parent / name / packed.NAME


def contents(one: Container) -> dict[str, bytes]:
    return {name: one.read(name) for name in one.files}


def room_for(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """A disk with room for `size` bytes beside what copies take."""

    def room(at: int) -> int:
        taken = sum(os.stat(name, dir_fd=at).st_size for name in os.listdir(at))
        return int(size) - taken

    monkeypatch.setattr(file_systems, "room", room)
    monkeypatch.setattr(staging, "KEPT_FREE", 0.0)


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("$TMPDIR", "/scratch/7"),
        ("/local/$USER", "/local/me"),
        ("/local/${USER}_x", "/local/me_x"),
        ("/a", "/a"),
    ],
)
def test_variables_are_expanded(setting: str, path: str) -> None:
    staged.check(setting)
    assert staged.expand(setting, {"TMPDIR": "/scratch/7", "USER": "me"}) == Path(path)


def test_what_a_variable_holds_is_no_setting_of_its_own() -> None:
    assert staged.expand("/x/$A", {"A": "$B; `id` $(id)", "B": "/b"}) == Path("/x/$B; `id` $(id)")


@pytest.mark.parametrize("setting", ["here", "~/x", "/a/$(id)", "/a/$", "a/$USER", "${}", "/$1"])
def test_what_is_no_path_is_refused_before_anything_is_submitted(setting: str) -> None:
    with pytest.raises(UserError, match="must be an absolute path"):
        staged.check(setting)


@pytest.mark.parametrize(
    ("environ", "why"), [({}, "TMPDIR is not set"), ({"TMPDIR": "here"}, "not an absolute")]
)
def test_a_path_that_a_node_does_not_have_is_named(environ: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        staged.expand("$TMPDIR", environ)


@pytest.mark.usefixtures("ways")
def test_a_copy_is_made_once_and_equals_the_shared_file(container: Path, stage: Path) -> None:
    done = copier.copy(container, stage)
    copy = Path(done["copy"])
    assert copy.read_bytes() == container.read_bytes()
    assert "found" not in done
    assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert inside(stage) == [copy.name]
    before = copy.stat().st_ino
    assert copier.copy(container, stage) == {**done, "found": True}
    assert copy.stat().st_ino == before


def test_a_reader_goes_over_to_the_copy_and_reads_the_same(
    container: Path, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LOOK_SECONDS", 0.0)
    reader = Container(container, stage)
    before = contents(reader)
    assert not reader.local
    copier.copy(container, stage)
    assert contents(reader) == before
    assert reader.local
    second = Container(container, stage)  # the next start
    os.truncate(container, 10)  # which nobody reads any more
    assert contents(second) == before


def test_it_is_not_looked_for_at_every_read(container: Path, stage: Path) -> None:
    reader = Container(container, stage)
    name = next(iter(reader.files))
    reader.read(name)
    copier.copy(container, stage)
    reader.read(name)
    assert not reader.local


@pytest.mark.parametrize("damage", ["content", "header", "cut"])
def test_a_copy_that_goes_bad_is_left_for_the_shared_file(
    container: Path, stage: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(copier.copy(container, stage)["copy"])
    reader = Container(container, stage)
    names = list(reader.files)
    reader.read(names[0])
    assert reader.local
    place = reader.files[names[1]]
    with copy.open("r+b") as file:
        if damage == "cut":
            file.truncate(place.offset + 40)
        else:
            file.seek(place.offset + (0 if damage == "header" else 30 + len(names[1]) + 20))
            file.write(b"\xff\x00\xff")
    assert contents(reader) == contents(Container(container))
    assert not reader.local
    assert "is damaged: going on with the shared file" in capsys.readouterr().out
    assert inside(stage) == []


def test_another_file_in_the_place_of_the_shared_one_has_no_copy(container: Path, stage: Path) -> None:
    copier.copy(container, stage)
    again = container.with_suffix(".new")
    shutil.copy(container, again)
    os.replace(again, container)
    reader = Container(container, stage)
    reader.read(next(iter(reader.files)))
    assert not reader.local


@pytest.mark.usefixtures("ways")
def test_a_damaged_shared_file_is_copied_by_nobody(container: Path, stage: Path) -> None:
    first = next(iter(Container(container).files.values()))
    with container.open("r+b") as file:
        file.seek(first.offset + 90)
        file.write(b"\xff\x00\xff")
    with pytest.raises(UserError, match="differs from what was prepared"):
        copier.copy(container, stage)
    assert inside(stage) == []


def test_the_datasets_table_has_the_word(container: Path, stage: Path) -> None:
    """A container that is whole in itself, of other images than the table's."""
    table = container.parent / "files.tsv"
    table.write_bytes(table.read_bytes().replace(b"\t", b"\t1", 1))
    with pytest.raises(UserError, match="was altered"):
        copier.copy(container, stage)
    assert inside(stage) == []


def test_a_copier_that_died_half_way_leaves_nothing_that_counts(container: Path, stage: Path) -> None:
    name = copier.copy(container, stage)["copy"]
    half = Path(name).with_suffix(".part")
    os.rename(name, half)
    reader = Container(container, stage)
    reader.read(next(iter(reader.files)))
    assert not reader.local
    assert "found" not in copier.copy(container, stage)
    assert inside(stage) == [Path(name).name]


def test_a_missing_disk_is_said(container: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no .*/none/mine"):
        copier.copy(container, tmp_path / "none" / "mine")


def test_without_room_nothing_is_written_or_evicted(
    container: Path, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Path(copier.copy(container, stage)["copy"]).name
    size = container.stat().st_size
    second = another(container, "second")
    room_for(monkeypatch, 0.9 * size)
    with pytest.raises(UserError, match=r"has room for .* GB, but .* GB are needed"):
        copier.copy(second, stage)
    assert inside(stage) == [small]


@pytest.mark.parametrize("noted", ["", "\0\0\0\0", None])
def test_an_environment_without_its_size_keeps_no_copy_from_being_made(
    container: Path, stage: Path, noted: str | None
) -> None:
    """As a crash of the node may leave it."""
    copy = Path(copier.copy(container, stage)["copy"])
    folder = copy.with_name(f"{'0' * 32}{staged.ENVIRONMENT}")
    folder.mkdir()
    if noted is not None:
        (folder / staged.SIZE).write_text(noted)
    second = copier.copy(another(container, "second"), stage)
    assert Path(second["copy"]).exists()


def test_the_longest_unused_goes_first_and_none_that_is_read(
    container: Path, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = [container, *(another(container, name) for name in "bcd")]
    copies = [Path(copier.copy(one, stage)["copy"]) for one in all_of_them[:3]]
    now = time.time()
    for days, copy in zip((3, 2, 1), copies, strict=True):
        os.utime(copy, (now - days * 86400, now - days * 86400))
    fd = os.open(copies[0], os.O_RDONLY)  # read by somebody, who did so three days ago
    fcntl.flock(fd, fcntl.LOCK_SH)
    room_for(monkeypatch, 3.5 * container.stat().st_size)
    last = copier.copy(all_of_them[3], stage)["copy"]
    assert inside(stage) == sorted([copies[0].name, copies[2].name, Path(last).name])
    os.close(fd)


def test_a_reader_counts_as_long_as_it_lives(
    container: Path, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(copier.copy(container, stage)["copy"])
    reader = Container(container, stage)
    reader.read(next(iter(reader.files)))
    second = another(container, "second")
    room_for(monkeypatch, 1.5 * container.stat().st_size)
    with pytest.raises(UserError, match="has room for"):
        copier.copy(second, stage)
    reader.close()
    copier.copy(second, stage)
    assert not copy.exists()


def test_what_was_not_read_for_long_goes_in_any_case(container: Path, stage: Path) -> None:
    old, kept = (Path(copier.copy(one, stage)["copy"]) for one in (container, another(container, "second")))
    then = time.time() - staging.OLD_SECONDS - 60
    os.utime(old, (then, then))
    copier.copy(another(container, "third"), stage)
    assert not old.exists()
    assert kept.exists()


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_strangers_folder_is_neither_filled_nor_read(
    container: Path, stage: Path, tmp_path: Path, kind: str
) -> None:
    stage.mkdir()
    place = staged.folder(stage)
    if kind == "folder":
        place.mkdir()
        os.chown(place, UID, UID)
        place.chmod(0o777)
    else:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    forged = place / staged.name(container, container.stat())
    forged.write_bytes(b"x" * container.stat().st_size)
    with pytest.raises(UserError, match="is not this user's own folder"):
        copier.copy(container, stage)
    reader = Container(container, stage)
    assert contents(reader) == contents(Container(container))
    assert not reader.local
    assert os.listdir(place) == [forged.name]


@needs_root
def test_a_strangers_file_is_not_read(container: Path, stage: Path) -> None:
    copy = Path(copier.copy(container, stage)["copy"])
    os.chown(copy, UID, UID)
    reader = Container(container, stage)
    reader.read(next(iter(reader.files)))
    assert not reader.local


def test_a_copy_in_memory_takes_no_more_than_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path("/dev/shm")
    if file_systems.kind(here) != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    monkeypatch.setattr(file_systems, "memory", lambda: 10)
    assert file_systems.room(here) == 5
    monkeypatch.undo()
    assert 0 < file_systems.memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_memory_of_a_job_is_what_its_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's limit is on the job; its step and its task have none of their own."""
    for path, limit, used in (("job", "1000", "400"), ("job/step", "max", "300")):
        (tmp_path / path).mkdir()
        (tmp_path / path / "memory.max").write_text(limit + "\n")
        (tmp_path / path / "memory.current").write_text(used + "\n")
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    monkeypatch.setattr(file_systems, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(file_systems, "CGROUPS", tmp_path)
    assert file_systems.memory() == 600


def test_private_folders_are_opened_only_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        private.open_folder(tmp_path / "none", make=False)


def test_a_mounted_environment_is_one_only_while_it_is_mounted(tmp_path: Path) -> None:
    """Its interpreter may be the system's, which is there without it, too."""
    folder = tmp_path / f"key{staged.MOUNT}"
    (folder / "bin").mkdir(parents=True)
    (folder / staged.MOUNTED).mkdir()
    (folder / "bin/python").symlink_to(Path(sys.executable).resolve())
    inside = os.open(tmp_path, os.O_RDONLY)
    assert not image.hold(inside, folder.name)
    (folder / staged.MOUNTED / "bin").mkdir()
    assert image.hold(inside, folder.name)
    os.close(inside)


def test_a_disk_without_locks_is_said(container: Path, stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match=f"{stage} on .* has no file locks"):
        copier.copy(container, stage)


def test_the_file_system_of_a_file_is_known_by_its_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """On btrfs, stat gives files numbers of a device that no mount has."""
    monkeypatch.setattr(os, "stat", None)
    assert file_systems.kind(Path("/proc/self/status")) == "proc"
    fd = os.open("/proc", os.O_RDONLY)
    assert (file_systems.kind(fd), file_systems.source(fd)) == ("proc", "proc")
    os.close(fd)
