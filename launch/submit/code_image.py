"""A run's `code/` as one file beside it, for `environment: image`: each node unpacks it on its own disk
(jobs/supervise/unpacking.py). Compressed, so that what reads it checks it (RFC 1952: a CRC-32 at the end)."""

from __future__ import annotations

import gzip
import io
import os
import tarfile

from jobs.run import files
from jobs.run.directory import Run, write_atomically


def write(run: Run) -> None:
    """Packs the code as it is now, unless that is what has been packed: whoever runs from it goes on."""
    content = gzip.compress(_packed(run), compresslevel=3, mtime=0)
    target = run.path / files.CODE_IMAGE()
    if not target.is_file() or target.read_bytes() != content:
        write_atomically(target, content, private=True)


def _packed(run: Run) -> bytes:
    """The same bytes for the same files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for top, folders, names in os.walk(run.code):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted([*folders, *names]):
                path = os.path.join(top, name)
                archive.add(path, os.path.relpath(path, run.code), recursive=False, filter=_timeless)
    return made.getvalue()


def _timeless(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member
