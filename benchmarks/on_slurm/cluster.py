"""A Slurm cluster of their own for the benchmarks that need one, gone when they are, however they end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cluster import up
from tests.support.cluster.config import Options
from tests.support.slurm import Slurm

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def running(state: Path, options: Options) -> Iterator[Slurm]:
    """The cluster in `state`, started with `options`; stopped afterwards, even if this process is killed.

    Raises UserError where Slurm's packages lack.
    """
    command = [sys.executable, "-m", "tests.support.cluster.guard"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as guard:
        assert guard.stdin
        state.mkdir(parents=True, exist_ok=True)
        print(state, file=guard.stdin, flush=True)
        try:
            yield Slurm(up.start(state, options))
        finally:
            guard.stdin.close()
            guard.wait(120)
