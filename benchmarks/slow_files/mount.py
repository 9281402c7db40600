"""Runs commands where some directories lie on a slow file system."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.run.errors import UserError

LIBRARY = "mfusepy==3.1.1"
IN_A_NAMESPACE = """
slow=$1; shift
while [ "$1" != -- ]; do mount --bind "$slow$1" "$1" || exit; shift; done
shift; cd "$PWD" && exec "$@"
"""


@contextmanager
def slow(folder: Path, places: Sequence[Path], milliseconds: float) -> Iterator[list[str]]:
    """What to put in front of a command for which everything below `places` is slow: each metadata call takes
    `milliseconds` longer. Nobody else sees it. `folder` takes what this needs, and lies below none of them.

    Raises UserError where there can be no such file system.
    """
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK) or not ctypes.util.find_library("fuse3"):
        raise UserError("a slow file system needs root, /dev/fuse and libfuse (apt-get install libfuse3-3)")
    point, venv = folder / "slow", folder / "venv"
    point.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "-q", LIBRARY], check=True)
    command = [
        str(venv / "bin/python"),
        str(Path(__file__).with_name("serve.py")),
        str(point),
        str(milliseconds),
    ]
    with subprocess.Popen(command) as server:
        try:
            while not os.path.ismount(point):
                if server.poll() is not None:
                    raise UserError(f"FUSE could not mount {point}; what it says is above")
                time.sleep(0.05)
            names = [str(place) for place in outermost(places)]
            yield [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", IN_A_NAMESPACE, "slow", str(point), *names, "--"),
            ]
        finally:
            subprocess.run(["umount", "--lazy", point], check=server.poll() is None)


def outermost(places: Sequence[Path]) -> list[Path]:
    """Without those that lie in another of them, and without the system's own."""
    real = {place.resolve() for place in places if place.resolve() not in (Path("/"), Path("/usr"))}
    return sorted(place for place in real if not real & set(place.parents))
