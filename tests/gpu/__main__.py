"""`python -m tests.gpu` (make gpu): the tests for GPUs. Exit code 0 also where there is no GPU; 2 where
something is not installed that they need."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from jobs.run import environment

NEEDED = "tests/gpu/requirements.txt"


def main() -> int:
    absent = [name for name in ("torch", "pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if absent or (wrong := environment.problems()):
        missing = ", ".join(f"{name} is missing" for name in absent) or ", ".join(wrong)
        print(f"error: {missing}: pip install -r {NEEDED} (torch is yours to choose)", file=sys.stderr)
        return 2
    from jobs.engine import devices

    if not devices.count() and os.environ.get("BATON_GPU_ON") != "cpu":
        print("skipped: torch sees no GPU here (BATON_GPU_ON=cpu runs the same tests on the CPU, small)")
        return 0
    import pytest

    return int(pytest.main([str(Path(__file__).parent), "-q", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
