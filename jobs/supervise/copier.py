"""`python -m jobs.supervise.copier CONTAINER STAGE FD`: copies a packed dataset to this node's own disk.

It runs beside the training, which reads the shared file until the copy has its name. A second copier, such as
another run's, waits for the first and finds the copy. It answers with a line of JSON on FD: the fields of an
event `staged` or `not_staged`. Whatever goes wrong is reported there and harms no run.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from jobs.catalog import manifest
from jobs.run import packed, staged
from jobs.run.errors import UserError
from jobs.supervise import staging
from jobs.supervise.staging import closing, make_room, open_folder, open_lock, remove_remains

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> int:
    container, stage, answer = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(answer, False)
    os.nice(19)  # the training has priority
    began = time.monotonic()
    try:
        done = copy(container, stage)
        event: dict[str, Any] = {"event": "staged", "seconds": round(time.monotonic() - began, 1), **done}
    except UserError as error:
        event = {"event": "not_staged", "reason": str(error)}
    except OSError as error:
        reason = f"{stage} is full" if error.errno in FULL else str(error)
        event = {"event": "not_staged", "reason": reason}
    os.write(answer, json.dumps(event | {"path": str(container)}).encode())
    return 0


def copy(container: Path, stage: Path) -> dict[str, Any]:
    """Ensures that there is a complete, verified copy. Returns `copy` (its path), `bytes` (its size), and
    `found` if it existed already.

    Raises UserError if there can be none, OSError from the file system; then nothing is left behind.
    """
    with closing(os.open(container, os.O_RDONLY | os.O_CLOEXEC)) as source:
        status = os.fstat(source)
        name = staged.name(container, status)
        with closing(open_folder(stage)) as inside, closing(open_lock(inside)):
            remove_remains(inside)
            if there := staged.found(stage, container, status):
                return there
            make_room(inside, status.st_size, stage)
            staging.copy(
                source, inside, name, container, lambda fd: verify(Path(f"/proc/self/fd/{fd}"), container)
            )
            return {"copy": str(staged.folder(stage) / name), "bytes": status.st_size}


def verify(copy: Path, container: Path) -> None:
    """Raises UserError unless the copy holds what was prepared: compares every file's CRC-32, and with the
    dataset's table of digests those listed there."""
    made = packed.Container(copy)
    try:
        shared = packed.Container(container)
        shared.close()
        if made.files != shared.files:
            raise UserError(f"the copy of {container} differs from it")
        for name, place in made.files.items():
            if zlib.crc32(made.read(name)) != place.crc:
                raise _damaged(container, name)
        prepared = manifest.read(container.parent)
        for entry in manifest.read_files(container.parent, prepared) if prepared else []:
            found = made.files.get(entry.path)
            if found is None or f"{found.crc:08x}" != entry.digest:
                raise _damaged(container, entry.path)
    finally:
        made.close()


def _damaged(container: Path, name: str) -> UserError:
    return UserError(
        f"in the copy of {container} {name} differs from what was prepared: if `prepare.py --verify deep` "
        "finds nothing, this node's disk is faulty"
    )


if __name__ == "__main__":
    sys.exit(main())
