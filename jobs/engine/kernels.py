"""Where the kernels that torch.compile makes are kept: in the run, so that a start after a requeue, on any
node, makes none again, and computes with the very ones that the starts before it used.

Inductor times several forms of a kernel and takes the fastest; another choice may sum in another order. Both
the kernels and the choices lie in its cache, so each rank has one of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from jobs.run import files, private
from jobs.run.directory import Run
from jobs.run.errors import UserError


def keep(run: Run, rank: int, environ: MutableMapping[str, str]) -> None:
    """Tells torch, by the environment, where to keep what it compiles; what the user has set stays.

    What torch finds there it runs, and by default it looks in /tmp, under a name that others can guess.
    https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_configuration_tutorial.html
    """
    given = Path(environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    by_torch = given.parent == Path(tempfile.gettempdir()) and given.name.startswith("torchinductor_")
    if given == Path() or by_torch:  # torch sets its default itself, once somebody has asked for it
        environ["TORCHINDUCTOR_CACHE_DIR"] = str(_folder(run.path / files.COMPILED() / str(rank)))
    environ.setdefault("TRITON_CACHE_DIR", str(Path(environ["TORCHINDUCTOR_CACHE_DIR"]) / "triton"))
    environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")  # off by default before torch 2.4


def _folder(wanted: Path) -> Path:
    """A folder that nobody else can enter; on this machine instead, where the run's file system cannot have
    one, or has no locks, which torch needs there."""
    try:
        private.own(wanted)
        fd = private.open_own(wanted / "lock")
        try:
            with contextlib.suppress(BlockingIOError):  # another rank's
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
    except (OSError, UserError) as error:
        there = private.folder("inductor")
        print(f"compiled kernels are kept in {there}, for this machine: {error}", file=sys.stderr, flush=True)
        return there
    return wanted
