"""Keeps the kernels that torch.compile makes in the run, so that a start after a requeue, on any node, does
not compile them again, and uses exactly the same ones as earlier starts.

Inductor benchmarks several variants of a kernel and takes the fastest; another choice may sum in another
order. Both the kernels and the choices are in its cache, so each rank has its own.
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
    """Tells torch, through the environment, where to keep what it compiles; the user's own settings stay.

    torch executes what it finds there, and by default looks in /tmp, under a name that others can guess.
    https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_configuration_tutorial.html
    """
    given = Path(environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    by_torch = given.parent == Path(tempfile.gettempdir()) and given.name.startswith("torchinductor_")
    if given == Path() or by_torch:  # torch sets its default itself once it is queried
        environ["TORCHINDUCTOR_CACHE_DIR"] = str(_folder(run.path / files.COMPILED() / str(rank)))
    environ.setdefault("TRITON_CACHE_DIR", str(Path(environ["TORCHINDUCTOR_CACHE_DIR"]) / "triton"))
    environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")  # off by default before torch 2.4


def _folder(wanted: Path) -> Path:
    """A private folder; on this machine instead, if the run's file system cannot have one or lacks locks,
    which torch needs there."""
    try:
        private.own(wanted)
        fd = private.open_own(wanted / "lock")
        try:
            with contextlib.suppress(BlockingIOError):  # held by another process
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
    except (OSError, UserError) as error:
        there = private.folder("inductor")
        print(f"compiled kernels are kept in {there}, for this machine: {error}", file=sys.stderr, flush=True)
        return there
    return wanted
