"""How long a periodic save holds up the training, against mmengine's own save made as durable.

Both sides save the same network every few steps. Ours: the time that the training's thread spends in a save
(the snapshot, and waiting for the write before it, should that still go on). mmengine's: the whole write,
with an fsync of file and directory, without which a save may be lost with the machine.

examples:
  python benchmarks/save_stall.py
  python benchmarks/save_stall.py --steps 30 --rounds 1 --width 32     a quick look
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import step_time  # noqa: E402
from benchmarks.harness import compare  # noqa: E402
from tests import tiny  # noqa: E402

EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=64, help="channels of the backbone's first stage")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        stalls: list[float] = []
        step_time.train(arguments.side, arguments.run, prepare=lambda runner: time_saves(runner, stalls))
        step_time.write_result(arguments.run, statistics.median(stalls))
        return 0

    # On the disk of the checkout: /tmp may be in memory.
    with tempfile.TemporaryDirectory(prefix="save-stall-", dir=ROOT / "logs") as folder:
        data = tiny.make_data(Path(folder) / "data", step_time.SAMPLES, 4)
        settings = step_time.config(arguments.steps, arguments.width, EVERY)
        compare(
            "save_stall",
            "stall of the training by a periodic save",
            lambda: step_time.in_process(__file__, "ours", Path(folder), data, settings),
            lambda: step_time.in_process(__file__, "peer", Path(folder), data, settings),
            against="mmengine's synchronous save with fsync",
            goal=0.3,
            unit="seconds",
            better="lower",
            rounds=arguments.rounds,
        )
    return 0


def time_saves(runner: Any, stalls: list[float]) -> None:
    """Collects how long each save in the midst of the training keeps the training's thread."""
    from jobs.train.saving import Saver

    save, save_plain = Saver.save, runner.save_checkpoint

    def ours(self: Any, runner_: Any, why: str, **options: Any) -> None:
        begin = time.perf_counter()
        save(self, runner_, why, **options)
        if not options.get("wait"):
            stalls.append(time.perf_counter() - begin)

    def peer(out_dir: str, filename: str, *arguments: Any, **options: Any) -> None:
        begin = time.perf_counter()
        save_plain(out_dir, filename, *arguments, **options)
        for path in (os.path.join(out_dir, filename), out_dir):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        stalls.append(time.perf_counter() - begin)

    Saver.save = ours  # type: ignore[method-assign, assignment]
    runner.save_checkpoint = peer


if __name__ == "__main__":
    sys.exit(main())
