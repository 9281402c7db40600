"""`manifest.json` and `files.tsv`: the mark that a dataset is complete, and its files with digests.

VOCdevkit/manifest.json   written last; without it there is no dataset. Small, read at every launch
VOCdevkit/files.tsv       path, bytes and crc32 of every other file, a line each, sorted by path

Of a packed dataset (jobs/run/packed.py) the same two: the files are those in the container.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from jobs.run.errors import UserError, one_line

MANIFEST = "manifest.json"
FILES = "files.tsv"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    dataset: str
    created: str
    """UTC."""
    files: int
    bytes: int
    files_digest: str
    """blake2b of files.tsv."""
    lists: dict[str, dict[str, int | str]] = field(default_factory=dict)
    """List name -> count and md5 of the sorted ids."""
    archives: dict[str, dict[str, int | str]] = field(default_factory=dict)
    """File name -> bytes, and the digest with which it was verified."""
    findings: list[str] = field(default_factory=list)
    """The findings about one's own dataset, one line per kind."""
    version: int = VERSION
    packed: bool = False
    """Whether the files are in one container; lists are also kept beside it."""


@dataclass(frozen=True)
class Entry:
    path: str
    """Relative to the folder that holds the manifest, with forward slashes."""
    size: int
    digest: str


def table_digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def files_text(entries: Iterable[Entry]) -> bytes:
    """The content of files.tsv. Raises UserError for a file name with a line break."""
    lines = []
    for entry in sorted(entries, key=lambda entry: entry.path):
        if "\n" in entry.path:
            raise UserError(f"the file {entry.path!r} has a line break in its name: rename it")
        lines.append(f"{entry.path}\t{entry.size}\t{entry.digest}\n")
    return "".join(lines).encode(errors="surrogateescape")


def read(root: Path) -> Manifest | None:
    """The manifest of a dataset; None if there is none. Raises UserError if it is damaged."""
    path = root / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        manifest = msgspec.convert(values, Manifest)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError) as error:
        reason = one_line(error)
        raise UserError(f"{path} is damaged ({reason}): remove it and prepare again") from None
    if manifest.version != VERSION:
        raise UserError(f"{path} has version {manifest.version}, not {VERSION}: remove it and prepare again")
    return manifest


def read_files(root: Path, manifest: Manifest) -> list[Entry]:
    """The file table. Raises UserError if it is missing or not the one the manifest belongs to."""
    path = root / FILES
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: prepare again") from None
    if table_digest(content) != manifest.files_digest:
        raise UserError(f"{path} was altered: prepare again")
    entries = []
    try:
        for line in content.decode(errors="surrogateescape").split("\n")[:-1]:  # not at a CR, as in `Icon\r`
            name, size, digest = line.rsplit("\t", 2)
            entries.append(Entry(name, int(size), digest))
    except ValueError:  # it was written so, since its digest is right
        raise UserError(f"{path} is damaged: prepare again") from None
    return entries


def to_json(manifest: Manifest) -> bytes:
    values = asdict(manifest)
    if not manifest.packed:
        del values["packed"]
    return (json.dumps(values, indent=1) + "\n").encode()
