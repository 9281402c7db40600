"""`python -m tests.gpu` (make gpu): the tests for GPUs, and the table of what they found. Exit code 0 also
where there is no GPU; 2 where something is not installed that they need.

First what must hold, several tests at once where the machine has room for that; then what is measured, alone.
What is not done half a minute after the last test of its part may begin (BATON_GPU_SECONDS) is ended.
`--only holds` and `--only speed` are one of the two; further arguments are pytest's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from jobs.run import environment

HERE = Path(__file__).resolve().parent
NEEDED = "tests/gpu/requirements.txt"
MEASURED = "test_speed.py"
OPERATIONS = "tests/unit/test_pure_ops.py"
"""Takes the GPU, where there is one, beside the CPU."""
MORE = 30
"""Seconds that a test may go on when no other may begin."""
FOR_SPEED = 200
"""Of BATON_GPU_SECONDS, what the measurements have, at most half: no test of what must hold begins then."""
NOTHING_SELECTED = 5
"""pytest's exit code where `-k` leaves nothing of a part."""
PARTS = ("holds", "speed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", choices=PARTS)
    arguments, more = parser.parse_known_args()
    parts = [arguments.only] if arguments.only else list(PARTS)
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
    paths = {
        "holds": [HERE, *([HERE.parents[1] / OPERATIONS] if work.GPUS else [])],
        "speed": [HERE / MEASURED],
    }
    options = {"holds": [f"--ignore={HERE / MEASURED}"], "speed": []}
    options["holds"] += ["-n", str(at_once), "--maxschedchunk", "1"] if at_once > 1 else []
    seconds = {"speed": work.SECONDS, "holds": work.SECONDS}
    if len(parts) > 1:
        seconds["holds"] = max(work.SECONDS - FOR_SPEED, work.SECONDS / 2)
    codes = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[work.KERNELS_AT] = str(Path(folder, "kernels"))
        Path(folder, "kernels").mkdir(mode=0o700)
        found = {part: Path(folder, f"{part}.json") for part in PARTS}
        turns = {part: os.pipe() for part in parts}
        # All start at once, and import; then each waits for its turn.
        started = {}
        for part in parts:
            environ = {"BATON_GPU_PART": str(found[part]), "BATON_GPU_SECONDS": str(seconds[part])}
            environ["BATON_GPU_AFTER"] = str(turns[part][0])
            command = [sys.executable, "-m", "pytest", *map(str, paths[part]), "-v", "-W", "ignore"]
            started[part] = subprocess.Popen(
                [*command, *options[part], *more],
                cwd=HERE.parents[1],
                env=os.environ | environ,
                pass_fds=[turns[part][0]],
            )
        for part, process in started.items():
            os.close(turns[part][1])
            codes[part] = end_of(process, work.BEGAN + seconds[part] + MORE)
        text = table.render(*table.joined(found.values()))
    print(f"\n{text}")
    if work.GPUS and parts == list(PARTS):
        print(f"\n{table.write(text, HERE.parents[1] / 'docs/gpu-options.md')}")
    return together(codes)


def together(codes: Mapping[str, int | None]) -> int:
    """The exit code of all parts. Figures that there was no time for fail nothing; what could not be shown to
    hold does, and so does a part that could not be read, or that a signal has ended."""
    told = [part == "holds" if code is None else code for part, code in codes.items()]
    told = [code for code in told if code != NOTHING_SELECTED]
    return int(any(told)) if told else NOTHING_SELECTED


def end_of(process: subprocess.Popen[bytes], until: float) -> int | None:
    """pytest's exit code; None if it was interrupted, at the time `until`: what it has found then is kept."""
    try:
        return process.wait(max(1.0, until - time.time()))
    except subprocess.TimeoutExpired:
        print(
            f"ended, {MORE} s after the last test could begin (BATON_GPU_SECONDS)",
            file=sys.stderr,
            flush=True,
        )
        process.send_signal(signal.SIGINT)
    try:
        process.wait(MORE / 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


if __name__ == "__main__":
    sys.exit(main())
