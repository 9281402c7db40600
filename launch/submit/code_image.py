"""A run's `code/` as one file beside it, for `environment: image`: each node unpacks it on its own disk
(jobs/supervise/unpacking.py). As gzip, so that reading it also checks it (RFC 1952: a CRC-32 at the end)."""

from __future__ import annotations

import contextlib
import gzip
import io
import marshal
import os
import py_compile
import tarfile
from pathlib import Path

from jobs.run import files, image
from jobs.run.directory import Run, write_atomically


def write(run: Run) -> None:
    """Packs the code as it is now, unless the file holds just that: jobs may be running from it."""
    content = gzip.compress(_packed(run), compresslevel=3, mtime=0)
    target = run.path / files.CODE_IMAGE()
    if not target.is_file() or target.read_bytes() != content:
        write_atomically(target, content, private=True)
    compile_start(run.code)


def compile_start(code: Path) -> None:
    """Compiles, for this Python, what a start from images imports from the code itself: a third of the time
    that such a start takes longer than another. What cannot be written, each start compiles anew."""
    for name in image.IMPORTED:
        path = code.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with contextlib.suppress(OSError):  # a run of another version may lack some of them
            made = py_compile.compile(str(file), quiet=2)
            if made and not _is_whole(Path(made)):
                os.unlink(made)


def _is_whole(compiled: Path) -> bool:
    """Whether it was written in full; a truncated file would make every start fail."""
    try:
        marshal.loads(compiled.read_bytes()[16:])
    except (EOFError, ValueError, TypeError):
        return False
    return True


def _packed(run: Run) -> bytes:
    """A tar archive of the code; equal files yield equal bytes."""
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
