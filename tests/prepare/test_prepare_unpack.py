"""Unpacking an archive: on every Python the same, and nothing outside the folder."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from jobs.prepare.archives import DamagedArchive
from jobs.prepare.converters import unpack

CONTENT = bytes(range(256)) * 9000  # more than one read


def pack(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for entry in entries:
            entry.size = len(CONTENT) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(CONTENT))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_a_tar_is_unpacked_where_python_has_no_filter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)  # as Debian 12's Python 3.11.2
    folder = entry("./set", tarfile.DIRTYPE)
    unpack(pack(tmp_path / name, folder, entry("./set/deep/one"), entry("two")), tmp_path / "out")
    assert (tmp_path / "out/set/deep/one").read_bytes() == (tmp_path / "out/two").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/baton-out"])
def test_a_member_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(name, CONTENT)
    for archive in (pack(tmp_path / "a.tar", entry(name)), tmp_path / "a.zip"):
        with pytest.raises(DamagedArchive, match="would leave the folder"):
            unpack(archive, tmp_path / "in")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_nothing_is_written_through_a_link(kind: bytes, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = pack(tmp_path / "a.tar", entry("way", kind, str(outside)), entry("way/file"))
    unpack(archive, tmp_path / "in")
    assert list(outside.iterdir()) == []
    assert (tmp_path / "in/way/file").read_bytes() == CONTENT


def test_a_tar_that_is_cut_or_altered_is_damaged(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.tar", entry("one")).read_bytes()
    for content in (whole[: len(CONTENT) // 2], gzip.compress(whole)[:-9], b"no archive" * 100):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DamagedArchive, match="download it again"):
            unpack(tmp_path / "a.tar", tmp_path / "in")
