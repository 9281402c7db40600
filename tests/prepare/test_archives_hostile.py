"""Archives made to hang a reader, to fill its memory, or to write where they should not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from jobs.prepare.archives import MOST_CONTENT, MOST_HEADER, DamagedArchive, Stream, unpack_tar, walk
from jobs.prepare.converters import check_zip, unpack, unpacked_size
from jobs.prepare.voc import build


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    def late(*_: int | FrameType | None) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a size field of our choice, and a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes, "tgz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress,
}  # fmt: skip
NEGATIVE = (b"-0000000512\0", b"-1000", b"\xff" + b"\xff" * 9 + b"\xfe\0", b"+1", b"1_0", b"0o17")


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("size", NEGATIVE)
def test_a_size_that_leads_backwards_ends_the_reading(size: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(PACKERS[kind](header(b"a", size) + END))
    with Stream(path) as stream, pytest.raises(DamagedArchive, match="no valid header"):
        list(walk(stream))
    with pytest.raises(DamagedArchive):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_a_claimed_header_is_not_read_whole(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    claimed = b"%011o" % (8 * MOST_CONTENT)
    path.write_bytes(gzip.compress(header(b"pax", claimed, kind) + bytes(1 << 20) + END))

    class Watched(Stream):
        most = 0

        def read(self, count: int) -> bytes:
            self.most = max(self.most, count)
            return super().read(count)

    watched = Watched(path)
    with watched, pytest.raises(DamagedArchive, match=f"at most {MOST_HEADER:,} are allowed"):
        list(walk(watched))
    assert watched.most == 512


def test_a_claimed_mask_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(header(b"a.mat", b"77777777777") + END))
    with Stream(path) as stream:
        member = next(walk(stream))
        with pytest.raises(DamagedArchive, match=r"a\.mat claims 8,589,934,591 bytes"):
            build.content_of(stream, member)


def test_no_header_claims_more_than_an_archive_has(tmp_path: Path) -> None:
    """Also where the claim is beyond 64 bits, and where a gzip stream must be read to notice."""
    for kind, pack in PACKERS.items():
        for size in (b"77777777777", b"\x80" + b"\x3f" * 11):
            path = tmp_path / f"x.{kind}"
            path.write_bytes(pack(header(b"a", size) + END))
            with Stream(path) as stream, pytest.raises(DamagedArchive):
                list(walk(stream))


def tar_with(path: Path, *members: tarfile.TarInfo, content: bytes = b"content") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if member.isfile():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isfile() else None)
    return path


def member(name: str, type: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.mode = type, 0o6777
    return found


@pytest.mark.parametrize("kind", PACKERS)
def test_what_is_plain_is_unpacked_however_it_is_packed(kind: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("d/", tarfile.DIRTYPE))
        for name, text in (("d/ä" * 60, b"long"), ("./d/e/f.txt", b"x" * 3000), ("empty", b"")):
            entry = member(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    path = tmp_path / f"x.{kind}"
    path.write_bytes(PACKERS[kind](content.getvalue()))
    unpack_tar(path, tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {name: p.stat().st_size for name, p in files.items()} == {
        "d/ä" * 60: 4, "d/e/f.txt": 3000, "empty": 0,
    }  # fmt: skip
    assert all(p.stat().st_mode & 0o7022 == 0 for p in files.values())


@pytest.mark.parametrize(
    "bad",
    [
        member("../out-of-it"),
        member("/abs"),
        member("a/../../b"),
    ],
)
def test_nothing_leaves_the_folder(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    path = tar_with(tmp_path / "x.tgz", bad)
    with pytest.raises(DamagedArchive):
        unpack(path, tmp_path / "in" / "out")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("n" * 300,)])
def test_names_that_do_not_fit_together_are_damage(names: tuple[str, ...], tmp_path: Path) -> None:
    path = tar_with(tmp_path / "x.tgz", *(member(name) for name in names))
    with pytest.raises(DamagedArchive):
        unpack(path, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name in names:
            packed.writestr(name, b"x")
    with pytest.raises(DamagedArchive):
        unpack(tmp_path / "x.zip", tmp_path / "out2")


def test_a_zip_that_needs_a_password_or_an_unknown_method_is_damage(tmp_path: Path) -> None:
    for at, value in ((6, 1), (8, 99)):  # of the local header; the central one has both two bytes later
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("a", b"x" * 100)
        content = bytearray(path.read_bytes())
        central = content.index(b"PK\x01\x02")
        content[at] = content[central + at + 2] = value
        path.write_bytes(content)
        for read in (check_zip, lambda path: unpack(path, tmp_path / "out")):
            with pytest.raises(DamagedArchive):
                read(path)
        assert unpacked_size(path) == 100
