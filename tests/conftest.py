"""Fixtures that tests of several parts need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# No test depends on how fast things are.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Sums on the CPU depend on the number of threads; runs that are compared bit for bit must have the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in its background with SIGINT ignored, which every command under test would
# inherit: none of them could be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def run_module(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, check=True, timeout=120)


@pytest.fixture(scope="session")
def voc_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small stand-ins for both archives (24 training, 8 validation images of 96 px)."""
    out = tmp_path_factory.mktemp("archives")
    run_module("jobs.prepare.synthetic", out, "--train", "24", "--val", "8", "--size", "96")
    return out


@pytest.fixture(scope="session")
def voc_small(voc_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root prepared from `voc_archives`. Shared by all tests: read it, never write to it."""
    root = tmp_path_factory.mktemp("data")
    run_module("jobs.prepare", "--data-root", root, "--archives", voc_archives)
    return root
