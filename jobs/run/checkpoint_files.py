"""A run's checkpoints, from their manifests, mostly without reading the checkpoints themselves. No torch."""

from __future__ import annotations

import errno
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.run import files, story
from jobs.run.errors import MALFORMED, one_line
from jobs.run.metrics import Figure

DAMAGED = (FileNotFoundError, *MALFORMED)
"""What reading a manifest raises if it is missing or malformed."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def epoch(self) -> int:
        return int(self.manifest["epoch"])

    @property
    def start(self) -> int:
        """The number of the start that wrote it; 0 if the manifest does not say."""
        start = self.manifest.get("start")
        return start if isinstance(start, int) else 0


def listed(directory: Path) -> list[Checkpoint]:
    """Checkpoints with a readable manifest and a file of the right size, oldest first. Cheap: no digests."""
    found = []
    for path in directory.glob("*.pth.json"):
        checkpoint = read(path)
        if checkpoint and not wrong_size(checkpoint):
            found.append(checkpoint)
    return sorted(found, key=lambda c: (c.step, c.start))


def last(directory: Path) -> Checkpoint | None:
    """The newest of `listed`; None if there is none."""
    return next(reversed(listed(directory)), None)


def best(directory: Path) -> Checkpoint | None:
    """The checkpoint with the best validation so far; None if there was none, or if its file is gone."""
    checkpoint = noted_best(directory)
    return checkpoint if checkpoint and not wrong_size(checkpoint) else None


def noted_best(directory: Path) -> Checkpoint | None:
    """As `best`, but even if its file is gone. If the note is damaged, from the run's events."""
    name = noted_name(directory)
    if name is None:  # nothing was validated yet
        return None
    return read(directory / f"{name}.json") if name else of_told_best(directory)


def noted_name(directory: Path) -> str | None:
    """The file name in the note of the best checkpoint; "" if that is damaged, None if there is none."""
    try:
        return Path(json.loads((directory / files.BEST).read_text())["path"]).name
    except FileNotFoundError:
        return None
    except DAMAGED:
        return ""


def of_told_best(directory: Path) -> Checkpoint | None:
    """The checkpoint of the best validation, according to the run's events."""
    told = told_best(directory)
    return next((one for one in reversed(listed(directory)) if told and one.step == told.step), None)


def told_best(directory: Path) -> Figure | None:
    """The best validation, according to the run's events; None if there was none."""
    return story.read(directory.parent / files.EVENTS()).best


def meant(directory: Path, which: str) -> Checkpoint | None:
    """The checkpoint meant by `best` (the last, if there is no best), `last` or a file name; None if there is
    no such checkpoint."""
    if which not in ("best", "last"):
        return read(directory / f"{Path(which).name}.json")
    return (best(directory) if which == "best" else None) or last(directory)


_known: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
"""Cache of manifests: every save looks at all of them."""


def read(manifest: Path) -> Checkpoint | None:
    """The checkpoint of a manifest; None if that is missing or malformed. Raises OSError."""
    try:
        status = manifest.stat()
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        old, record = _known.get(manifest, (None, {}))
        if old != identity:
            record = json.loads(manifest.read_bytes())
            int(record["step"]), int(record["epoch"]), int(record["bytes"])
            _known[manifest] = identity, record
    except DAMAGED:
        return None
    return Checkpoint(manifest.with_name(manifest.name.removesuffix(".json")), record)


def why_unsaved(path: Path) -> str:
    """What is wrong with a file that torch.save has not written, as a whole zip archive or, before torch 1.6,
    as a pickle; "" if it may have. Raises OSError."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin.startswith(b"\x80"):
        return ""
    if not begin.startswith(b"PK\x03\x04"):
        return "is not a checkpoint as torch.save writes it"
    # An archive's table of contents is its end.
    return "" if zipfile.is_zipfile(path) else "is damaged, or was not copied whole"


def damage(path: Path) -> str:
    """What is wrong with the content of a zip archive of torch.save; "" if nothing, or for an older pickle.

    It has a CRC-32 for each member, which torch does not look at when it reads. Raises OSError.
    """
    if why := why_unsaved(path):
        return why
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC:  # torch.serialization.set_crc32_options(False) leaves them 0
                    with archive.open(member) as content:
                        while content.read(1 << 20):
                            pass
    except OSError as error:
        if error.errno != errno.EINVAL:  # of the offsets in a damaged directory
            raise
        return "has a damaged directory"
    except Exception as error:  # readers may raise anything for a damaged file
        return f"is damaged: {one_line(error, 80)}"
    return ""


def beside(path: Path) -> Path:
    """The path of a checkpoint's manifest."""
    return path.with_name(f"{path.name}.json")


def digest(path: Path) -> str:
    """The 128-bit XXH3 of a file's content: detects bit rot and torn writes, at memory speed."""
    import xxhash  # only needed here

    h = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            h.update(chunk)
    return str(h.hexdigest())


def wrong_size(checkpoint: Checkpoint) -> str | None:
    try:
        size = checkpoint.path.stat().st_size
    except FileNotFoundError:
        return "it is gone"
    expected = checkpoint.manifest["bytes"]
    return None if size == expected else f"it has {size} bytes instead of {expected}"
