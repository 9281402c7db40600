"""For tests of `environment: image`: a small environment, packed, and tasks that are started from it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from jobs.run import image, staged
from jobs.supervise import mounting

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("mksquashfs", "unsquashfs", "squashfuse", "fusermount3", "flock", "setsid")
MISSING = [name for name in NEEDED if not shutil.which(name)]
if not os.access(mounting.DEVICE, os.R_OK | os.W_OK):
    MISSING.append(mounting.DEVICE)
NOT_MOUNTED = f"no {', '.join(MISSING)} here (sh env/test-tools.sh)" if MISSING else ""
"""Why no squashfs can be made or mounted here; "" if one can."""
STARTED = re.compile(r"^environment: (\S+) on (\S+), ", re.MULTILINE)
"""What a task says that runs from an image: from where, on which node."""
FELL_BACK = re.compile("; going on with|unpacked instead")
"""In what a task says that could not run from an image, or not from a mounted one."""
SAY = "import sys, extra; print(sys.prefix, extra.VALUE, *sys.argv[1:])"


def make(path: Path) -> Path:
    """An environment with a package of its own and this checkout's interpreter's."""
    venv.create(path, symlinks=True)
    (site,) = path.glob("lib/python*/site-packages")
    (site / "extra.py").write_text("VALUE = 'from here'\n")
    (mine,) = Path(sys.prefix).glob("lib/python*/site-packages")
    (site / "more.pth").write_text(f"{mine}\n")
    return path


def pack(environment: Path, *options: str) -> Path:
    said = subprocess.run(
        [ROOT / "env" / "pack.sh", *options, environment], capture_output=True, text=True, check=True
    )
    made = Path(image.beside(image.interpreter(environment)))
    assert said.stdout.startswith(f"{made}: ")
    assert said.stderr == ""
    return made


def start(environment: Path, stage: Path | str, say: str = SAY, **more: str) -> subprocess.Popen[str]:
    python = image.interpreter(environment)
    return subprocess.Popen(
        [python, "-S", "-c", image.START, str(stage), "-c", say, "an argument"], cwd=ROOT,
        env=os.environ | more, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def copies(stage: Path) -> list[Path]:
    return sorted(path for path in staged.folder(stage).iterdir() if not path.name.startswith("lock"))
