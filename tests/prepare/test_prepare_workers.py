"""How far a packed archive is read, and how many cores a job may use."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.prepare import workers
from jobs.prepare.archives import Stream
from tests.unit.fake_slurm import ROOT


@pytest.mark.parametrize("fast", [True, False])
def test_the_share_of_a_packed_archive_is_that_of_the_file_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """Whatever it inflates to: what comes first here is packed a thousandfold."""
    if not fast:
        monkeypatch.setattr("jobs.run.deflate.gunzipper", None)
    path = tmp_path / "x.tgz"
    zeros, noise = bytes(64 << 20), os.urandom(24 << 20)
    path.write_bytes(gzip.compress(zeros, 1) + gzip.compress(noise, 0))
    with Stream(path) as stream:
        stream.skip_to(len(zeros))
        assert stream.packed_position() < path.stat().st_size * 0.5
        stream.skip_to(len(zeros) + len(noise))
        assert not stream.read(1)
        assert stream.packed_position() == path.stat().st_size


@pytest.mark.parametrize(
    ("affinity", "slurm", "expected"),
    [(8, None, 8), (8, "3", 3), (8, "64", 8), (1, "4", 1), (128, None, workers.MOST), (128, "2", 2)],
)
def test_the_cores_of_a_job(
    monkeypatch: pytest.MonkeyPatch, affinity: int, slurm: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert workers.cores() == expected


FAILING = """
from jobs.prepare import workers

def work(content):
    return len(content)

if __name__ == "__main__":
    try:
        with workers.start(2) as started:
            for _ in range(100):
                started.submit(work, bytes(1 << 18))
            raise KeyError("ours")
    except KeyError as error:
        print(error)
"""


def test_an_error_ends_it_though_work_is_on_its_way(tmp_path: Path) -> None:
    """On a full disk, say; with Python 3.10 and Debian 12's 3.11 it waited for ever."""
    program = tmp_path / "program.py"
    program.write_text(FAILING)
    done = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "'ours'\n", done.stderr
