"""Everything that was observed to go wrong with these archives: one clear line, and nothing half-made."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from jobs.catalog import sources
from jobs.catalog.readiness import state
from jobs.prepare import lock, verify
from jobs.prepare.__main__ import explain
from jobs.prepare.archives import DamagedArchive, Stream, walk
from jobs.prepare.synthetic import SBD_ARCHIVE, VOC_ARCHIVE, make_lists
from jobs.prepare.synthetic_scene import cls_mat
from jobs.prepare.voc.pipeline import prepare, watcher
from jobs.prepare.voc.writing import put
from jobs.run.digests import digest
from jobs.run.errors import UserError
from tests.archive_edits import SBD, VOC, copy, edit
from tests.support.datasets import contents

LISTS = make_lists(24, 8)
AUG = sorted(set(LISTS.sbd) - set(LISTS.voc))
NAME = AUG[3]
"""An id whose mask comes from SBD."""
MAT = f"{SBD}cls/{NAME}.mat"


@pytest.fixture
def archives(voc_archives: Path, tmp_path: Path) -> Path:
    return copy(voc_archives, tmp_path / "archives")


def refused(archives: Path, tmp_path: Path, *words: str, **options: Any) -> str:
    """Prepares, expects one line with all `words`, and no dataset; returns the line."""
    root = tmp_path / "data"
    with pytest.raises(UserError) as caught:
        prepare(root, archives, processes=1, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not (root / "VOCdevkit").exists()
    assert not (root / ".prepare.lock").exists()
    assert state(root).kind == "missing"
    return message


def gts(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(
        buffer,
        {"GTcls": {"Boundaries": 0, "Segmentation": mask, "CategoriesPresent": 0}},
        do_compression=True,
    )
    return buffer.getvalue()


# --- damaged archives ---


def test_flipped_bit_is_found_by_the_checksum(archives: Path, tmp_path: Path) -> None:
    for name in (SBD_ARCHIVE, VOC_ARCHIVE):
        content = bytearray((archives / name).read_bytes())
        content[len(content) // 2] ^= 4
        (archives / name).write_bytes(content)
        refused(archives, tmp_path, name, "sha256", "download it again")
        content[len(content) // 2] ^= 4
        (archives / name).write_bytes(content)


@pytest.mark.parametrize("damage", ["flip", "crc", "length", "trailer", "half", "behind"])
def test_gzip_damage_is_found_without_a_checksum(archives: Path, tmp_path: Path, damage: str) -> None:
    path = archives / SBD_ARCHIVE
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    path.write_bytes(
        {
            "flip": bytes(flipped),
            "crc": good[:-8] + b"\1\2\3\4" + good[-4:],
            "length": good[:-4] + b"\1\2\3\4",
            "trailer": good[:-8],
            "half": good[: len(good) // 2],
            "behind": good + b"something else",
        }[damage]
    )
    refused(archives, tmp_path, SBD_ARCHIVE, "damaged", "download it again", checksum=False)


@pytest.mark.parametrize("where", ["member", "header", "content", "one zero block"])
def test_cut_tar_is_found_without_a_checksum(archives: Path, tmp_path: Path, where: str) -> None:
    path = archives / VOC_ARCHIVE
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = {
        "member": last.offset,
        "header": last.offset + 100,
        "content": last.offset_data + 5,
        "one zero block": (last.offset_data + last.size + 511) // 512 * 512 + 512,
    }[where]
    path.write_bytes(path.read_bytes()[:end])
    refused(archives, tmp_path, VOC_ARCHIVE, "download it again", checksum=False)


def test_altered_header_is_found(archives: Path, tmp_path: Path) -> None:
    path = archives / VOC_ARCHIVE
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[7].offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 1
    path.write_bytes(content)
    refused(archives, tmp_path, "no valid header", checksum=False)


@pytest.mark.parametrize("record", [b"xxx path=", b"000 path=", b"999 path=", b"2 path=", b"no space"])
def test_damaged_pax_header_is_found(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a" * 300))
    with Stream(path) as stream:
        assert [member.name for member in walk(stream)] == ["a" * 300]
    content = path.read_bytes()
    assert content.count(b"310 path=") == 1
    path.write_bytes(content.replace(b"310 path=", record.ljust(9)))
    with Stream(path) as stream, pytest.raises(DamagedArchive, match="pax header"):
        list(walk(stream))


@pytest.mark.parametrize("name", [SBD_ARCHIVE, VOC_ARCHIVE])
def test_html_page_instead_of_an_archive(archives: Path, tmp_path: Path, name: str) -> None:
    (archives / name).write_bytes(b"<!DOCTYPE html><html>gone</html>")
    refused(archives, tmp_path, name, "HTML page")
    refused(archives, tmp_path, name, "HTML page", checksum=False)


@pytest.mark.parametrize("content", [b"", b"not an archive" * 100])
def test_something_else_instead_of_an_archive(archives: Path, tmp_path: Path, content: bytes) -> None:
    (archives / SBD_ARCHIVE).write_bytes(content)
    refused(archives, tmp_path, SBD_ARCHIVE, checksum=False)


def test_missing_archives_are_named(archives: Path, tmp_path: Path) -> None:
    (archives / SBD_ARCHIVE).unlink()
    refused(archives, tmp_path, SBD_ARCHIVE, "lacks")
    refused(tmp_path / "nowhere", tmp_path, "not a folder")


def test_archive_that_is_neither_the_release_nor_listed(archives: Path, tmp_path: Path) -> None:
    (archives / "SHA256SUMS").unlink()
    refused(archives, tmp_path, "bytes, the release", "--no-checksum")


# --- members that must not get out ---


@pytest.mark.parametrize("archive", [SBD_ARCHIVE, VOC_ARCHIVE])
@pytest.mark.parametrize(
    "name", ["../escaped.txt", "/tmp/escaped-absolute.txt", f"{SBD}cls/../../../../x.mat"]
)
def test_members_that_leave_the_folder(archives: Path, tmp_path: Path, archive: str, name: str) -> None:
    edit(archives / archive, {name: b"out"})
    refused(archives, tmp_path, "would leave the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_in_place_of_files(archives: Path, tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo(MAT)
    entry.type, entry.linkname = kind, "/etc/passwd"
    edit(archives / SBD_ARCHIVE, {MAT: None}, [entry])
    refused(archives, tmp_path, NAME)
    image = tarfile.TarInfo(f"{VOC}JPEGImages/{NAME}.jpg")
    image.type, image.linkname = kind, "/etc/passwd"
    edit(archives / VOC_ARCHIVE, {image.name: None}, [image])
    refused(archives, tmp_path, NAME)


# --- masks ---


def mask(value: int) -> np.ndarray:
    result = np.zeros((10, 12), np.uint8)
    result[3, 4] = value
    return result


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (cls_mat(mask(21)), ["label 21"]),
        (cls_mat(mask(255)), ["label 255"]),
        (gts(mask(0).astype(np.uint16) + 271), ["uint16"]),
        (gts(mask(3).astype(float) + 0.5), ["float64"]),
        (gts(np.zeros((4, 5, 2), np.uint8)), ["(4, 5, 2)"]),
        (cls_mat(mask(3)), ["12×10", "its image"]),
        (b"", ["not a readable GTcls"]),
        (b"MATLAB 5.0 MAT-file" + bytes(300), ["not a readable GTcls"]),
        (cls_mat(mask(3))[:-20], ["not a readable GTcls"]),
    ],
)
def test_bad_masks(archives: Path, tmp_path: Path, content: bytes, words: list[str]) -> None:
    edit(archives / SBD_ARCHIVE, {MAT: content})
    refused(archives, tmp_path, NAME, *words)


def test_other_types_with_the_same_labels_are_taken(archives: Path, tmp_path: Path) -> None:
    from scipy.io import loadmat

    def as_double(old: bytes) -> bytes:
        return gts(loadmat(io.BytesIO(old))["GTcls"][0]["Segmentation"][0].astype(float))

    prepare(tmp_path / "good", archives, processes=1)
    good = contents(tmp_path / "good/VOCdevkit")
    edit(archives / SBD_ARCHIVE, {MAT: as_double})
    prepare(tmp_path / "data", archives, processes=1)
    assert contents(tmp_path / "data/VOCdevkit") == good


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a" + bytes(40)])
def test_bad_masks_of_voc(archives: Path, tmp_path: Path, content: bytes) -> None:
    edit(archives / VOC_ARCHIVE, {f"{VOC}SegmentationClass/{LISTS.voc_val[0]}.png": content})
    refused(archives, tmp_path, LISTS.voc_val[0])


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(40)])
def test_bad_images(archives: Path, tmp_path: Path, content: bytes) -> None:
    edit(archives / VOC_ARCHIVE, {f"{VOC}JPEGImages/{NAME}.jpg": content})
    refused(archives, tmp_path, f"{NAME}.jpg")


# --- what is missing ---


def test_missing_masks_are_counted(archives: Path, tmp_path: Path) -> None:
    edit(archives / SBD_ARCHIVE, dict.fromkeys([MAT, f"{SBD}cls/{AUG[0]}.mat"]))
    refused(archives, tmp_path, "2 of 16 masks are missing")


@pytest.mark.parametrize(
    ("archive", "member"),
    [
        (VOC_ARCHIVE, f"{VOC}JPEGImages/{NAME}.jpg"),
        (VOC_ARCHIVE, f"{VOC}SegmentationClass/{LISTS.voc_val[0]}.png"),
        (VOC_ARCHIVE, f"{VOC}ImageSets/Segmentation/val.txt"),
        # The decoy's lists must not stand in for it.
        (SBD_ARCHIVE, f"{SBD}train.txt"),
    ],
)
def test_missing_members_are_named(archives: Path, tmp_path: Path, archive: str, member: str) -> None:
    edit(archives / archive, {member: None})
    refused(archives, tmp_path, f"{member} is missing")


# --- lists ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old: b"\xef\xbb\xbf" + old, ["byte-order mark"]),
        (lambda old: old.replace(b"\n", b".jpg\n", 1), ["line 1", "no image id"]),
        (lambda old: old + b"../../etc/passwd\n", ["no image id"]),
        (lambda old: old + old[:12], ["twice"]),
        (b"\n", ["is empty"]),
        (
            lambda old: old + f"{LISTS.voc_train[0]}\n".encode(),
            [LISTS.voc_train[0], "train list and in its val"],
        ),
    ],
)
def test_bad_lists(archives: Path, tmp_path: Path, change: Any, words: list[str]) -> None:
    edit(archives / VOC_ARCHIVE, {f"{VOC}ImageSets/Segmentation/val.txt": change})
    refused(archives, tmp_path, *words)


def test_windows_line_ends_do_no_harm(archives: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "good", archives, processes=1)
    good = contents(tmp_path / "good/VOCdevkit")
    edit(
        archives / VOC_ARCHIVE,
        {f"{VOC}ImageSets/Segmentation/val.txt": lambda old: old.replace(b"\n", b"\r\n")},
    )
    prepare(tmp_path / "data", archives, processes=1)
    assert contents(tmp_path / "data/VOCdevkit") == good


# --- what is in the way ---


def test_a_folder_of_the_users_own_is_left_alone(archives: Path, tmp_path: Path) -> None:
    own = tmp_path / "data/VOCdevkit/VOC2012"
    own.mkdir(parents=True)
    with pytest.raises(UserError, match="move it away"):
        prepare(tmp_path / "data", archives, processes=1)
    assert own.is_dir()
    assert state(tmp_path / "data").kind == "missing"
    assert "not made by prepare" in state(tmp_path / "data").reason


def test_room_for_the_whole_release_is_looked_at_first(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (archives / VOC_ARCHIVE).stat().st_size
    digests = {"sha256": digest(archives / VOC_ARCHIVE, "sha256")}
    monkeypatch.setattr(sources, "VOC", replace(sources.VOC, size=size, digests=digests))
    monkeypatch.setattr(sources, "DATASET_BYTES", 1 << 60)
    refused(archives, tmp_path, "MB more")
    assert not list((tmp_path / "data/.prepare").rglob("*.jpg"))


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, bytes(content)[:5]))
    put(tmp_path, "x", bytes(range(23)))
    assert (tmp_path / "x").read_bytes() == bytes(range(23))


def test_a_write_that_is_refused_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=f"quota exceeded: '{tmp_path}/x'"):
        put(tmp_path, "x", b"x")


def test_torn_files_of_an_earlier_start_are_written_anew(archives: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "good", archives, processes=1)
    good = contents(tmp_path / "good/VOCdevkit")
    staged = tmp_path / "data/.prepare/VOCdevkit/VOC2012"
    aug, images = staged / "SegmentationClassAug", staged / "JPEGImages"
    aug.mkdir(parents=True)
    images.mkdir()
    (aug / f"{NAME}.png").touch()  # what a full disk leaves
    (images / f"{NAME}.jpg").write_bytes(b"half")
    (aug / f"{LISTS.voc_train[0]}.png").write_bytes(b"not a link")
    (aug / "stranger.png").touch()
    prepare(tmp_path / "data", archives, processes=1)
    assert contents(tmp_path / "data/VOCdevkit") == good
    assert len(os.listdir(tmp_path / "data/VOCdevkit/VOC2012/SegmentationClassAug")) == 24


def test_a_damaged_dataset_is_made_anew(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    prepare(root, archives, processes=1)
    first = contents(root / "VOCdevkit")
    assert prepare(root, archives, processes=1).done_before
    (root / f"VOCdevkit/VOC2012/JPEGImages/{NAME}.jpg").unlink()
    (root / "VOCdevkit/VOC2010").mkdir()
    (root / "VOCdevkit/VOC2010/1.jpg").write_bytes(b"of others")
    again = prepare(root, archives, processes=1)
    assert not again.done_before
    assert (root / "VOCdevkit/VOC2010/1.jpg").read_bytes() == b"of others"
    shutil.rmtree(root / "VOCdevkit/VOC2010")
    assert contents(root / "VOCdevkit") == first
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]


def test_what_a_start_left_that_was_killed_after_publishing_is_removed(
    archives: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    prepare(root, archives, processes=1)
    (root / ".prepare/old").mkdir(parents=True)
    with lock.hold(root):  # but not under the eyes of another that is at work there
        assert prepare(root, archives, processes=1).done_before
        assert (root / ".prepare").exists()
    assert prepare(root, archives, processes=1).done_before
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]


def test_who_waits_looks_at_a_damaged_dataset_once_and_says_nothing(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    prepare(root, archives, processes=1)
    image = root / f"VOCdevkit/VOC2012/JPEGImages/{NAME}.jpg"
    content = image.read_bytes()
    image.unlink()
    looks: list[Path] = []
    quick = verify.quick

    def looked(at: Path) -> list[str]:
        looks.append(at)
        return quick(at)

    monkeypatch.setattr(verify, "quick", looked)
    capsys.readouterr()
    look = watcher(root)
    assert [look(), look(), look()] == [None, None, None]
    assert len(looks) == 1
    assert capsys.readouterr().out == ""
    image.write_bytes(content)  # another process has made it anew
    (root / "VOCdevkit/manifest.json").touch()
    assert look() is not None


def test_checksums_are_remembered_for_a_restart_only_while_the_file_is_the_same(
    archives: Path, tmp_path: Path
) -> None:
    edit(archives / SBD_ARCHIVE, {MAT: cls_mat(mask(21))})
    refused(archives, tmp_path, "label 21")
    # The same archive with another content must be hashed again.
    content = (archives / SBD_ARCHIVE).read_bytes()
    (archives / SBD_ARCHIVE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(archives, tmp_path, SBD_ARCHIVE, "sha256")


def test_a_dataset_that_leads_to_a_disk_which_is_not_mounted_is_named_before_anything_is_made(
    voc_archives: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VOCdevkit").symlink_to("/nowhere")
    refused(voc_archives, tmp_path, "VOCdevkit is a link to /nowhere, which does not exist")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["VOCdevkit"]


def test_a_data_root_that_leads_nowhere_is_one_line(voc_archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.symlink_to("/nowhere")
    with pytest.raises(FileExistsError) as caught:
        prepare(root, voc_archives, processes=1)
    explained = explain(caught.value, root)
    assert explained is not None
    assert str(explained) == f"{root} is in the way: it is not a folder, or it links to nothing"


def test_a_work_folder_that_leads_elsewhere_is_named_before_anything_is_made(
    voc_archives: Path, tmp_path: Path
) -> None:
    """Nothing could be moved into place from another file system; and a link is not removed as a folder."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    (data / ".prepare").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"data/\.prepare is a link, .* remove it"):
        prepare(data, voc_archives)
    assert not list(elsewhere.iterdir())
