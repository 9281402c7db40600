"""`python -m tests.gpu` (make gpu): the tests for GPUs, and the table of what they found. Exit code 0 also
where there is no GPU; 2 where something is not installed that they need.

First what must hold, several tests at once where the machine has room for that; then what is measured, alone.
What is not done half a minute after the last test may begin (BATON_GPU_SECONDS) is ended.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.run import environment

HERE = Path(__file__).resolve().parent
NEEDED = "tests/gpu/requirements.txt"
MEASURED = "test_speed.py"
OPERATIONS = "tests/unit/test_pure_ops.py"
"""Takes the GPU, where there is one, beside the CPU."""
MORE = 30
"""Seconds that a test may go on when no other may begin."""
ENDED, NOTHING_SELECTED = 2, 5
"""pytest's exit codes: interrupted; and where `-k` leaves nothing of a part."""


def main() -> int:
    absent = [name for name in ("torch", "pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if absent or (wrong := environment.problems()):
        missing = ", ".join(f"{name} is missing" for name in absent) or ", ".join(wrong)
        print(f"error: {missing}: pip install -r {NEEDED} (torch is yours to choose)", file=sys.stderr)
        return 2
    from tests.gpu import table, work

    if not (work.GPUS or work.ON_CPU):
        print("skipped: torch sees no GPU here (BATON_GPU_ON=cpu runs the same tests on the CPU, small)")
        return 0
    os.environ.setdefault(work.BEGAN_AT, str(time.time()))
    at_once = work.at_once() if importlib.util.find_spec("xdist") else 1
    with tempfile.TemporaryDirectory() as folder:
        os.environ[work.KERNELS_AT] = str(Path(folder, "kernels"))
        Path(folder, "kernels").mkdir(mode=0o700)
        parts = [Path(folder, "holds.json"), Path(folder, "measured.json")]
        kept = [f"--ignore={HERE / MEASURED}"]
        kept += ["-n", str(at_once), "--maxschedchunk", "1"] if at_once > 1 else []
        paths = [HERE, *([HERE.parents[1] / OPERATIONS] if work.GPUS else [])]
        until = work.BEGAN + work.SECONDS + MORE
        holds, measured = run(paths, kept, parts[0], until), run([HERE / MEASURED], [], parts[1], until)
        text = table.render(*table.joined(parts))
    print(f"\n{text}")
    if work.GPUS:
        print(f"\n{table.write(text, HERE.parents[1] / 'docs/gpu-options.md')}")
    # Figures that there was no time for fail nothing; what could not be shown to hold does.
    codes = [1 if holds == ENDED else holds, 0 if measured == ENDED else measured]
    return max((code for code in codes if code != NOTHING_SELECTED), default=NOTHING_SELECTED)


def run(paths: list[Path], options: list[str], part: Path, until: float) -> int:
    """pytest's exit code. At the time `until` it is interrupted; what it has found by then is in `part`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, paths),
        "-v",
        "-W",
        "ignore",
        *options,
        *sys.argv[1:],
    ]
    environment = os.environ | {"BATON_GPU_PART": str(part)}
    process = subprocess.Popen(command, cwd=HERE.parents[1], env=environment)
    try:
        return process.wait(max(1.0, until - time.time()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        print(f"ended: {MORE} s more than BATON_GPU_SECONDS are over", file=sys.stderr)
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
