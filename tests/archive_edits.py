"""Archives with one thing wrong, made from good ones."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from jobs.prepare.synthetic import SBD_ARCHIVE, VOC_ARCHIVE

Content = bytes | None | Callable[[bytes], bytes]
SBD = "benchmark_RELEASE/dataset/"
VOC = "VOCdevkit/VOC2012/"


def copy(archives: Path, out: Path) -> Path:
    """A private copy of a folder of archives."""
    shutil.copytree(archives, out)
    return out


def edit(archive: Path, changes: Mapping[str, Content], more: list[tarfile.TarInfo] | None = None) -> None:
    """Rewrites an archive: members replaced (bytes or a function of the old ones), left out (None), added."""
    compressed = archive.name.endswith("gz")
    output = io.BytesIO()
    left = dict(changes)
    with (
        tarfile.open(archive) as old,
        tarfile.open(fileobj=output, mode="w:gz" if compressed else "w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in old:
            content = old.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            change = left.pop(member.name, content)
            if change is None:
                continue
            content = change(content) if callable(change) else change
            member.size = len(content)
            new.addfile(member, io.BytesIO(content) if member.isfile() else None)
        for name, content in left.items():
            assert isinstance(content, bytes), f"{archive} has no member {name}"
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
        for entry in more or []:
            new.addfile(entry)
    archive.write_bytes(output.getvalue())
    sums(archive.parent)


def sums(folder: Path) -> None:
    """SHA256SUMS anew: the checksum is right, and what is inside must still be found out."""
    names = (VOC_ARCHIVE, SBD_ARCHIVE)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))
