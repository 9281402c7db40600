"""A dataset as one file: written, read, verified, packed and unpacked."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jobs.catalog import manifest, readiness
from jobs.prepare import __main__ as command
from jobs.prepare import verify
from jobs.prepare.converters import entries_of
from jobs.prepare.packed import convert
from jobs.prepare.packed.writer import Writer
from jobs.prepare.voc import pipeline
from jobs.prepare.voc.writing import put_manifest
from jobs.run import events, packed
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError, run_command
from tests import own_images
from tests.strangers import UID, needs_root, succeeds_as_stranger
from tests.support.datasets import contents

FOLDER = "VOCdevkit"


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def data(voc_small: Path, tmp_path: Path) -> Path:
    shutil.copytree(voc_small / FOLDER, tmp_path / "data" / FOLDER)
    return tmp_path / "data"


@pytest.fixture
def packed_data(data: Path) -> Path:
    convert.pack(data, FOLDER)
    return data


@pytest.mark.parametrize("processes", [1, 2])
def test_archives_become_at_most_ten_files_with_the_same_content(
    voc_archives: Path, voc_small: Path, tmp_path: Path, processes: int
) -> None:
    made = pipeline.prepare(tmp_path / "d", voc_archives, processes=processes, pack=True).manifest
    root = tmp_path / "d" / FOLDER
    assert made.packed
    assert len(files(root)) <= 10
    listed = [entry.path for entry in manifest.read_files(root, made)]
    assert listed == [entry.path for entry in verify.look_quickly(voc_small / FOLDER)[1]]
    assert verify.deep(root) == []
    assert os.listdir(tmp_path / "d") == [FOLDER]
    convert.unpack(tmp_path / "d", FOLDER)
    assert contents(root) == contents(voc_small / FOLDER)


def test_a_tree_is_packed_and_comes_back_byte_for_byte(data: Path) -> None:
    before = files(data / FOLDER)
    convert.pack(data, FOLDER)
    root = data / FOLDER
    assert len(files(root)) <= 10
    assert verify.quick(root) == verify.deep(root) == []
    assert readiness.state(data).ready
    convert.unpack(data, FOLDER)
    assert files(root) == before
    assert [path.name for path in data.iterdir()] == [FOLDER]


def test_ordinary_tools_read_it(packed_data: Path, voc_small: Path) -> None:
    with zipfile.ZipFile(packed_data / FOLDER / packed.NAME) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            assert archive.read(name) == (voc_small / FOLDER / name).read_bytes()
            assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED


def test_a_dataset_that_is_ready_is_packed_by_the_same_command(data: Path) -> None:
    for option, as_one in (("--pack", True), ("--pack", True), ("--unpack", False), ("--unpack", False)):
        assert prepare(data, "--dataset", "voc", "--no-weights", option) == 0
        assert (data / FOLDER / packed.NAME).exists() == as_one


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with images and masks, whose names have blanks and umlauts too, and a data root where they
    are a dataset, mine."""
    folder = own_images.write(tmp_path / "given", 8)
    for kind in ("images", "masks"):
        (folder / kind / "scene_003.png").rename(folder / kind / "süß 3.png")
    assert prepare_own(folder) == 0
    return folder


def prepare_own(folder: Path, *options: str) -> int:
    """As a user prepares it, again and again."""
    return prepare(
        folder / "data",
        *("--images", str(folder / "images"), "--masks", str(folder / "masks")),
        *("--classes", str(folder / "classes.txt"), *options),
    )


def prepare(data: Path, *options: str) -> int:
    """The command in a forked process: what an interpreter does before it takes longer than the command."""
    (data.parent / "run").mkdir(exist_ok=True)
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        sys.argv = ["prepare", "--data-root", str(data), "--dataset", "mine"]
        sys.argv += ["--run", str(data.parent / "run"), *options]
        run_command(command.main)
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def test_a_dataset_of_ones_own_is_packed_looked_at_prepared_again_and_unpacked(own: Path) -> None:
    root = own / "data/mine"
    before = files(root)
    for options in (("--pack",), ("--pack",)):
        assert prepare(own / "data", *options) == 0
    small = {"dataset.json", "contact.html", "findings.tsv", "splits/train.txt", "splits/val.txt"}
    small |= {manifest.MANIFEST, manifest.FILES}
    assert files(root).keys() == small | {packed.NAME}
    for how in ("quick", "deep"):
        assert prepare(own / "data", f"--verify={how}") == 0
    assert prepare_own(own) == prepare_own(own, "--pack") == 0
    assert files(root).keys() == small | {packed.NAME}
    assert prepare(own / "data", "--unpack") == 0
    assert files(root) == before
    made = [event for event in events.iterate(own / "run/events.jsonl") if event["event"] == "prepared"]
    counted = [(event["images"], event["files"]) for event in made]
    assert counted == [(8, len(before) - 2)] * 6
    (own / "images/scene_000.png").touch()
    assert prepare_own(own, "--pack") == 2, "made of other files"
    assert files(root) == before


def test_a_dataset_of_ones_own_that_was_packed_before_it_had_its_description_beside(own: Path) -> None:
    before = files(own / "data/mine")
    assert prepare_own(own, "--pack") == 0
    for name in ("dataset.json", "contact.html", "findings.tsv"):
        (own / "data/mine" / name).unlink()
    assert verify.deep(own / "data/mine", 1) == []
    assert prepare_own(own) == 0
    assert not (own / "data/mine/dataset.json").exists()
    assert prepare(own / "data", "--unpack") == 0
    assert files(own / "data/mine") == before


def test_a_description_beside_that_was_changed_is_found(own: Path) -> None:
    assert prepare_own(own, "--pack") == 0
    path = own / "data/mine/dataset.json"
    path.write_text(path.read_text().replace('"mine"', '"nine"'))
    assert verify.quick(own / "data/mine") == [f"{path} was altered"]


def test_what_nobody_made_by_this_name_is_not_packed(own: Path, tmp_path: Path) -> None:
    assert prepare(tmp_path / "none", "--pack") == prepare(tmp_path / "none", "--unpack") == 2
    away = own / "data/../data/mine"  # a path is no name
    assert prepare(own, "--dataset", "data/mine", "--pack") == prepare(own, "--dataset", str(away)) == 2
    assert not (own / "data/mine" / packed.NAME).exists()


def test_what_somebody_put_beside_the_dataset_stays(data: Path, tmp_path: Path) -> None:
    """VOC 2010, say, which other configs read."""
    root = data / FOLDER
    of_others = root / "VOC2010/JPEGImages/1.jpg"
    of_others.parent.mkdir(parents=True)
    of_others.write_bytes(b"x")
    (root / "VOC2012/notes").mkdir()
    (root / "VOC2012/notes/mine.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (root / "more").symlink_to(tmp_path / "elsewhere")
    before = files(root)
    convert.pack(data, FOLDER)
    assert len(files(root)) <= 12
    for turn in (convert.unpack, convert.pack, convert.unpack):
        turn(data, FOLDER)
        assert of_others.read_bytes() == b"x"
        assert (root / "more").readlink() == tmp_path / "elsewhere"
    assert files(root) == before


def test_what_would_be_overwritten_is_named_and_stays(packed_data: Path) -> None:
    root = packed_data / FOLDER
    name = next(name for name in packed.Container(root / packed.NAME).files if name.endswith(".png"))
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="was put there by hand"):
        convert.unpack(packed_data, FOLDER)
    assert (root / name).read_bytes() == b"mine"
    assert (root / packed.NAME).exists()


@pytest.fixture
def of_another_user(voc_small: Path) -> Iterator[Path]:
    """A data root that another user may enter, and owns."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(voc_small / FOLDER, Path(folder, FOLDER))
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, UID, UID)
        yield Path(folder)


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1777])
def test_a_folder_that_would_hinder_it_is_named_before_anything_is_done(
    of_another_user: Path, mode: int
) -> None:
    """A colleague's, say: the old dataset could not be removed when all is packed."""
    data = of_another_user
    theirs = data / FOLDER / "theirs"
    theirs.mkdir()
    (theirs / "x.txt").write_text("theirs")
    theirs.chmod(mode)
    before = files(data / FOLDER)

    def refused() -> None:
        with pytest.raises(UserError, match="theirs is a folder that you may not change"):
            convert.pack(data, FOLDER)

    assert succeeds_as_stranger(refused)
    assert not (data / convert.WORK).exists()
    assert files(data / FOLDER) == before
    theirs.chmod(0o777)
    assert succeeds_as_stranger(lambda: convert.pack(data, FOLDER))
    assert (theirs / "x.txt").read_text() == "theirs"
    assert (data / FOLDER / packed.NAME).exists()


class Killed(BaseException):
    pass


def die_between_renames(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """The next dataset that is to appear at `root` does not: the process is killed when the one there has
    stepped aside."""
    rename = os.rename

    def renamed(source: str | Path, target: str | Path) -> None:
        if Path(target) == root:
            monkeypatch.setattr(os, "rename", rename)
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)


@pytest.mark.parametrize("next_start", ["pack", "unpack", "another", "prepare", "prepare --pack"])
def test_a_dataset_that_had_stepped_aside_when_the_start_was_killed_is_put_back(
    data: Path, voc_archives: Path, monkeypatch: pytest.MonkeyPatch, next_start: str
) -> None:
    root = data / FOLDER
    (root / "VOC2010").mkdir()
    (root / "VOC2010/mine.txt").write_text("mine")
    before = files(root)
    shutil.copytree(root, data / "another")
    die_between_renames(monkeypatch, root)
    with pytest.raises(Killed):
        convert.pack(data, FOLDER)
    assert not root.exists()
    if next_start == "pack":
        convert.pack(data, FOLDER)
        assert (root / packed.NAME).exists()
    elif next_start == "another":
        convert.pack(data, next_start)
    elif next_start.startswith("prepare"):
        pipeline.prepare(data, voc_archives, processes=1, pack="--pack" in next_start)
    assert (root / "VOC2010/mine.txt").exists() or next_start == "unpack"
    convert.unpack(data, FOLDER)
    assert files(root) == before
    assert not (data / ".prepare.old").exists()


def test_a_disk_that_fails_between_the_two_renames_leaves_the_dataset_in_its_place(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, rename = data / FOLDER, os.rename

    def fails(source: Path, target: Path) -> None:
        if target == root and source.parent.name == convert.WORK:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    before = files(root)
    with pytest.raises(OSError, match="Input/output error"):
        convert.pack(data, FOLDER)
    assert files(root) == before


def test_packing_needs_locks_and_says_where(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(fd: int, _: int) -> None:
        if "/pack/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match=r"/pack is on a file system without file locks.*: set TMPDIR"):
        convert.pack(data, FOLDER)


def test_a_preparation_that_is_killed_as_the_damaged_dataset_steps_aside_loses_no_file_in_it(
    data: Path, voc_archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data / FOLDER
    before = files(root)
    (root / "mine.txt").write_text("mine")
    next(root.rglob("*.jpg")).unlink()
    die_between_renames(monkeypatch, root)
    with pytest.raises(Killed):
        pipeline.prepare(data, voc_archives, processes=1)
    pipeline.prepare(data, voc_archives, processes=1)
    found = files(root)
    assert found.pop("mine.txt") == b"mine"
    assert found.keys() == before.keys()
    assert os.listdir(data) == [FOLDER]


def test_a_folder_of_others_that_cannot_be_looked_into_stays(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = data / FOLDER / "VOC2010"
    theirs.mkdir()
    (theirs / "1.txt").write_text("theirs")
    real = os.scandir

    def scandir(path: str | Path) -> object:  # which root may do with any folder
        if Path(path) == theirs:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(PermissionError):
            convert.pack(data, FOLDER)
    assert (theirs / "1.txt").read_text() == "theirs"
    assert not (data / FOLDER / packed.NAME).exists()


def test_a_dataset_of_ones_own_that_had_stepped_aside_is_found_by_its_name(own: Path) -> None:
    before = files(own / "data/mine")
    for again in (lambda: prepare(own / "data", "--pack"), lambda: prepare_own(own)):
        assert prepare(own / "data", "--unpack") == 0
        (own / "data/.prepare.old").mkdir()
        (own / "data/mine").rename(own / "data/.prepare.old/mine")
        assert again() == 0
        assert os.listdir(own / "data") == ["mine"]
    assert files(own / "data/mine") == before


@pytest.mark.parametrize("work", [convert.WORK, ".prepare-mine"])
def test_what_a_killed_start_left_when_the_dataset_was_there_goes_with_the_next(own: Path, work: str) -> None:
    """It is all of the dataset that had been there before."""
    shutil.copytree(own / "data/mine", own / "data" / work / "mine")
    assert (prepare(own / "data", "--unpack") if work == convert.WORK else prepare_own(own)) == 0
    assert os.listdir(own / "data") == ["mine"]


def test_what_had_stepped_aside_goes_once_the_new_dataset_is_there(data: Path) -> None:
    aside = data / ".prepare.old" / FOLDER
    shutil.copytree(data / FOLDER, aside)
    before = files(data / FOLDER)
    convert.unpack(data, FOLDER)
    assert files(data / FOLDER) == before
    assert os.listdir(data) == [FOLDER]


def test_files_that_somebody_put_to_a_dataset_stay_though_its_table_of_files_is_gone(
    data: Path, voc_archives: Path
) -> None:
    root = data / FOLDER
    (root / "mine.txt").write_text("mine")
    before = files(root)
    (root / manifest.FILES).unlink()
    pipeline.prepare(data, voc_archives, processes=1)
    assert files(root).keys() == before.keys()
    assert (root / "mine.txt").read_text() == "mine"


def test_a_packing_that_was_killed_leaves_the_tree_and_is_begun_anew(data: Path) -> None:
    left = data / convert.WORK / FOLDER
    left.mkdir(parents=True)
    (left / packed.NAME).write_bytes(b"half")
    before = files(data / FOLDER)
    assert verify.quick(data / FOLDER) == []
    convert.pack(data, FOLDER)
    convert.unpack(data, FOLDER)
    assert files(data / FOLDER) == before


def test_a_preparation_of_one_form_does_not_go_on_with_the_other(voc_archives: Path, tmp_path: Path) -> None:
    left = tmp_path / pipeline.WORK / FOLDER / "VOC2012/JPEGImages"
    left.mkdir(parents=True)
    (left / "strange.jpg").write_bytes(b"x")
    pipeline.prepare(tmp_path, voc_archives, processes=1, pack=True)
    assert len(files(tmp_path / FOLDER)) <= 10
    shutil.rmtree(tmp_path / FOLDER)
    (tmp_path / pipeline.WORK / FOLDER).mkdir(parents=True)
    (tmp_path / pipeline.WORK / FOLDER / packed.NAME).write_bytes(b"half")
    pipeline.prepare(tmp_path, voc_archives, processes=1)
    assert not (tmp_path / FOLDER / packed.NAME).exists()
    assert verify.quick(tmp_path / FOLDER) == []


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_deep_finds_a_changed_byte_and_quick_a_missing_container(packed_data: Path) -> None:
    root = packed_data / FOLDER
    container = packed.Container(root / packed.NAME)
    name = next(name for name in container.files if name.endswith(".jpg"))
    flip(root / packed.NAME, container.files[name].offset + 30 + len(name) + 100)
    assert verify.quick(root) == []
    assert verify.deep(root) == [f"{root / packed.NAME / name} was altered or damaged since it was prepared"]
    with pytest.raises(UserError, match=r"was altered or damaged"):
        convert.unpack(packed_data, FOLDER)
    (root / packed.NAME).unlink()
    assert verify.quick(root) == [f"{root / packed.NAME} is missing"]
    assert verify.deep(root) == [f"{root / packed.NAME} is missing"]


@pytest.mark.parametrize("damage", ["cut", "header", "other", "compressed"])
def test_a_damaged_container_is_named(packed_data: Path, damage: str) -> None:
    root = packed_data / FOLDER
    path = root / packed.NAME
    container = packed.Container(path)
    first = min(container.files, key=lambda name: container.files[name].offset)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "header":
        flip(path, container.files[first].offset)
    else:
        kind = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("a.txt", "a" * 1000)
    problems = verify.deep(root)
    assert problems
    assert all(str(path) in problem for problem in problems)
    assert any(str(path) in problem for problem in verify.quick(root)) == (damage != "header")


@pytest.mark.parametrize(("size", "offset"), [(1 << 62, 0), (0xFFFFFFF0, 0), (10, 1 << 63), (10, -5)])
def test_no_size_and_no_place_is_believed(size: int, offset: int, tmp_path: Path) -> None:
    """What a container's directory claims would be asked of the memory, and of the kernel."""
    path = tmp_path / packed.NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a" * 10)
        archive.filelist[0].file_size = archive.filelist[0].compress_size = size
        archive.filelist[0].header_offset = max(offset, 0)
    if offset < 0:  # a directory that is said to begin later than it does
        content = bytearray(path.read_bytes())
        at = content.rfind(b"PK\5\6") + 16
        begin = int.from_bytes(content[at : at + 4], "little") - offset
        path.write_bytes(content[:at] + begin.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(UserError, match=r"packed\.zip is damaged"):
        packed.Container(path)


def test_a_list_beside_that_was_changed_or_lost_is_found(packed_data: Path) -> None:
    root = packed_data / FOLDER
    path = root / "VOC2012/ImageSets/Segmentation/train.txt"
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    assert verify.quick(root) == [f"{path} was altered"]
    path.unlink()
    assert verify.quick(root) == [f"{path} is missing"]


@pytest.mark.parametrize("name", [b"Icon\r", "a\u2028b".encode(), b"a\x85\tb", b"l\xe4n", b"new\nline"])
def test_an_archive_may_hold_files_of_any_name(tmp_path: Path, name: bytes) -> None:
    """`Icon\\r` is in many a folder that was packed by macOS; a dataset with it was damaged for good."""
    root = tmp_path / "ade"
    root.mkdir()
    (root / os.fsdecode(name)).write_bytes(b"content")
    if b"\n" in name:
        with pytest.raises(UserError, match="a line break in its name"):
            put_manifest(root, "ade", entries_of(root))
        return
    put_manifest(root, "ade", entries_of(root))
    assert verify.deep(root) == []
    try:
        name.decode()
    except UnicodeDecodeError:
        with pytest.raises(UserError, match="not UTF-8"):
            convert.pack(tmp_path, "ade")
        return
    assert convert.pack(tmp_path, "ade").packed
    assert verify.deep(root) == []
    assert not convert.unpack(tmp_path, "ade").packed
    assert (root / os.fsdecode(name)).read_bytes() == b"content"


def test_a_table_that_leads_out_of_the_dataset_is_refused(packed_data: Path) -> None:
    root = packed_data / FOLDER
    outside = "../../outside.txt"
    with Writer(root) as writer:
        writer.finish([writer.put(outside, b"x")])
    table = manifest.files_text([manifest.Entry(outside, 1, content_digest(b"x"))])
    (root / manifest.FILES).write_bytes(table)
    found = manifest.read(root)
    assert found
    values = manifest.to_json(found).replace(
        found.files_digest.encode(), manifest.table_digest(table).encode()
    )
    (root / manifest.MANIFEST).write_bytes(values)
    with pytest.raises(UserError, match="outside the dataset"):
        convert.unpack(packed_data, FOLDER)
    assert not (packed_data.parent / "outside.txt").exists()


def test_a_folder_is_found_without_a_list_of_all(packed_data: Path) -> None:
    container = packed.Container(packed_data / FOLDER / packed.NAME)
    inner = [name for name in container.folders if name]
    assert inner
    assert all(map(container.has_folder, container.folders))
    assert not any(container.has_folder(name) for name in (*container.files, f"{inner[0]}/", inner[0][:-1]))


def test_what_is_not_there_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a prepared dataset that could be packed"):
        convert.pack(tmp_path, FOLDER)


def test_forked_readers_share_a_descriptor(packed_data: Path) -> None:
    """At one position for all of them, they would read each other's files."""
    container = packed.Container(packed_data / FOLDER / packed.NAME)
    names = sorted(container.files)
    children = []
    for shift in range(4):
        pid = os.fork()
        if pid == 0:
            mine = names[shift:] + names[:shift]
            same = all(
                content_digest(container.read(name)) == f"{container.files[name].crc:08x}"
                for _ in range(50)
                for name in mine
            )
            os._exit(0 if same else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4


def places(path: Path) -> tuple[Mapping[str, packed.Place] | None, Mapping[str, packed.Place]]:
    """What is read of a container in our own way, and by zipfile. Raises what zipfile raises."""
    with path.open("rb") as file:
        found = packed._own_directory(file.fileno(), path.stat().st_size)
        return found, packed._directory(file.fileno(), path.stat().st_size)[0]


@pytest.mark.parametrize("kind", ["usual", "many", "large"])
def test_a_directory_is_read_as_zipfile_reads_it(tmp_path: Path, kind: str) -> None:
    """Also of more members, or of more bytes, than a directory without zip64 can tell."""
    path = tmp_path / packed.NAME
    if kind == "large":
        with path.open("wb") as file:
            file.truncate(5 << 30)
    with zipfile.ZipFile(path, "a" if kind == "large" else "w") as archive:
        for number in range(70_000 if kind == "many" else 5):
            archive.writestr(f"images/{number}.jpg", b"x" * (number % 7))
        archive.writestr("Straße/日本.png", b"12")
    found, expected = places(path)
    assert found == expected
    assert packed.Container(path).read("Straße/日本.png") == b"12"


@pytest.mark.parametrize("kind", ["deflated", "comment", "prefix", "twice", "cp437", "entry"])
def test_a_directory_of_another_kind_is_left_to_zipfile(tmp_path: Path, kind: str) -> None:
    path = tmp_path / packed.NAME
    if kind == "prefix":
        path.write_bytes(b"#!/bin/sh")
    with zipfile.ZipFile(path, "a") as archive:
        if kind == "entry":  # a name that looks like the begin of another
            archive.writestr("PK\1\2.jpg", b"z" * 100)
        archive.writestr("a.jpg", b"x" * 100)
        if kind == "comment":
            archive.comment = b"of mine"
        archive.writestr("ä.jpg" if kind == "cp437" else "b.jpg", b"y" * 100)
        if kind == "deflated":
            archive.writestr("c.jpg", b"z" * 100, zipfile.ZIP_DEFLATED)
        if kind == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a.jpg", b"z" * 100)
    content = path.read_bytes()
    if kind == "cp437":
        path.write_bytes(content.replace("ä".encode(), b"\x84\x84").replace(b"\x00\x08\0\0", b"\0\0\0\0"))
    elif kind == "prefix":
        path.write_bytes(b"longer " + content)
    assert places(path)[0] is None


def test_a_directory_with_any_byte_altered_is_read_as_zipfile_reads_it_or_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / packed.NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"x" * 100)
        archive.writestr("ü.jpg", b"y" * 100)
        begin = archive.fp.tell() if archive.fp else 0
    content = path.read_bytes()
    left = 0
    for at in range(begin, len(content)):
        for change in (0x01, 0x80, 0xFF):
            path.write_bytes(content[:at] + bytes([content[at] ^ change]) + content[at + 1 :])
            try:
                found, expected = places(path)
            except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
                with path.open("rb") as file:
                    try:
                        found = packed._own_directory(file.fileno(), len(content))
                    except (ValueError, struct.error):
                        found = None
                assert found is None, at
                continue
            left += found is None
            assert found in (None, expected), at
    assert left
