"""What torch.compile has made is there for the starts that follow. Real kernels, by a real C++ compiler."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from jobs.run.directory import Run
from tests.support import tiny

HEADERS = Path(sysconfig.get_path("include")) / "Python.h"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None or not HEADERS.is_file(),
        reason="torch.compile makes kernels for the CPU with g++ and Python.h, and here they are not both",
    ),
]

START = """
import json, os, sys
from pathlib import Path
from jobs.engine import kernels
from jobs.run.directory import Run
kernels.keep(Run(Path(sys.argv[1])), int(sys.argv[2]), os.environ)
import torch
from torch._dynamo.utils import counters
x = torch.arange(8.0, requires_grad=True)
torch.compile(lambda x: (x.sin() * 2).sum(), dynamic=False)(x).backward()
assert torch.allclose(x.grad, 2 * x.detach().cos())
print(json.dumps({name: dict(counters[name]) for name in ("inductor", "aot_autograd")}))
"""


def start(run: Run, rank: int) -> dict[str, Any]:
    """How often a start of that rank made kernels, and how often it found them."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHIND", "TRITON"))}
    done = subprocess.run(
        [sys.executable, "-c", START, str(run.path), str(rank)],
        cwd=tiny.ROOT, env=plain, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    counts = json.loads(done.stdout.splitlines()[-1])
    inductor, autograd = counts["inductor"], counts["aot_autograd"]
    return {
        "made": inductor.get("fxgraph_cache_miss", 0),
        "found": inductor.get("fxgraph_cache_hit", 0) + autograd.get("autograd_cache_hit", 0),
    }


def test_a_later_start_compiles_nothing_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    first = start(run, 0)
    assert first["made"] > 0
    assert first["found"] == 0
    again = start(run, 0)
    assert again["made"] == 0
    assert again["found"] > 0
    assert stat.S_IMODE((run.path / "compiled/0").stat().st_mode) == 0o700
