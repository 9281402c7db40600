"""What whoever watches sees: a bar on a terminal, a line now and then in a log, the right share in both."""

from __future__ import annotations

import gzip
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.prepare import progress, workers
from jobs.prepare.archives import Stream

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from jobs.prepare.progress import task
with task("copying", 4_000_000, "B", done=1_000_000) as advance:
    advance(2_000_000)
with task("counting", 8) as advance:
    advance(8)
"""


def test_a_bar_on_a_terminal() -> None:
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=end, env=environment)
    os.close(end)
    shown = b""
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        shown += block
        if not block:
            break
    os.close(terminal)
    assert process.wait(30) == 0
    text = shown.decode()
    for words in ("copying", "3.0/4.0 MB", "counting", "8/8", "\u2501"):
        assert words in text


def test_sparse_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.task("copying", 1_000_000_000, "B", done=400_000_000) as advance:
        for _ in range(400):
            now += 0.1
            advance(1_000_000)
    assert capsys.readouterr().out.splitlines() == ["copying: 55% (10.0 MB/s)", "copying: 70% (10.0 MB/s)"]


@pytest.mark.parametrize("fast", [True, False])
def test_the_share_of_a_packed_archive_is_that_of_the_file_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """Whatever it inflates to: what comes first here is packed a thousandfold."""
    if not fast:
        monkeypatch.setattr("jobs.prepare.deflate.gunzipper", None)
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
