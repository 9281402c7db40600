"""A small dataset, generated in the real archives' formats and prepared as users prepare theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def prepared(folder: Path, train: int = 24, val: int = 8, size: int = 96, pool: int = 0) -> Path:
    """A data root below `folder` with `train` + `val` pictures of `size` pixels, `pool` of them different
    (0: all)."""
    archives, root = folder / "archives", folder / "data"
    made = [str(archives), "--train", str(train), "--val", str(val), "--size", str(size)]
    made += ["--pool", str(pool)]
    wanted = ["--data-root", str(root), "--archives", str(archives)]
    for module in (["jobs.prepare.synthetic", *made], ["jobs.prepare", *wanted]):
        subprocess.run([sys.executable, "-m", *module], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return root
