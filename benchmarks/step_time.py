"""The time of a training step with everything on, against plain mmengine with the same config and data.

Everything: supervisors and heartbeats, the ranks' agreement after each step, exact sampling, seeding of each
sample and step, metrics, progress. Two ranks over gloo on both sides. Saves are left out (save_stall.py
measures them: mmengine's would hide what a step costs here), and so are the faster transforms.

Both trainings are up at once and take turns of some seconds; each side is started anew several times, since
two processes that do the same may differ by some percent.

examples:
  python benchmarks/step_time.py
  python benchmarks/step_time.py --starts 1 --blocks 5     a quick look
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import repository

from benchmarks import harness
from benchmarks.trainings import start, turns
from tests.support import tiny

ROOT: Path = repository.ROOT

CONFIG = "tests/support/configs/tiny_wide.py"
RANKS, TIMED = 2, 12


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--starts", type=int, default=10, help="how often each side is started")
    parser.add_argument("--blocks", type=int, default=8, help=f"turns of {TIMED} steps for each start")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    cpu: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(arguments.starts):
        sides = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
        taken = one_start(sides, arguments.blocks)
        for side in sides:
            seconds[side] += taken.seconds[side]
            cpu[side] += taken.cpu[side]

    def raw(figures: dict[str, list[float]]) -> dict[str, Any]:
        ratios = turns.ratios(figures["ours"], figures["peer"])
        spread = {side: harness.spread(values) for side, values in figures.items()}
        each = [ratios[at : at + arguments.blocks] for at in range(0, len(ratios), arguments.blocks)]
        of_starts = [statistics.median(one) for one in each]
        error = turns.uncertainty(of_starts if len(each) > 1 else ratios)
        return {
            "value": statistics.median(of_starts), "standard_error": error,
            "ratios_of_starts": of_starts, "ratios": ratios, "spread": spread,
        }  # fmt: skip

    conditions = "mmseg's transforms and no saves on both sides"
    wall = raw(seconds)
    harness.record(
        "step_time",
        "time of a training step, everything on, two ranks",
        wall["value"],
        against="mmengine's own runner",
        goal=1.01,
        better="lower",
        raw={"seconds_a_step": seconds, **wall},
        note=f"± {wall['standard_error']:.1g}; {conditions}",
    )
    work = raw(cpu)
    harness.record(
        "step_cpu",
        "CPU time of a training step, everything on, all processes of two ranks",
        work["value"],
        against="mmengine's own runner",
        goal=1.01,
        better="lower",
        raw={"cpu_seconds_a_block": cpu, **work},
        note=f"± {work['standard_error']:.1g}; {conditions}",
    )
    return 0


def one_start(sides: tuple[str, ...], blocks: int) -> turns.Taken:
    with tempfile.TemporaryDirectory(prefix="step-time-") as folder:
        data = start.endless_list(tiny.make_data(Path(folder) / "data", 64, 4))
        trainings = {}
        for side in sides:
            path = Path(folder) / side
            run = start.make_run(path, data, CONFIG, turns.hook(path, TIMED), **settings(blocks, TIMED))
            trainings[side] = turns.Training(side, run, RANKS)
        return turns.take(trainings, blocks)


def settings(blocks: int, timed: int) -> dict[str, Any]:
    """By iteration, as many as the turns take; nothing is saved before the end."""
    steps = turns.steps_for(blocks, timed)
    return {
        "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": steps},
        "param_scheduler": [{"type": "PolyLR", "eta_min": 1e-4, "begin": 0, "end": steps, "by_epoch": False}],
        "default_hooks__checkpoint__by_epoch": False,
        "default_hooks__checkpoint__interval": steps,
        "log_processor__by_epoch": False,
        "baton__fast_transforms": False,
    }


if __name__ == "__main__":
    sys.exit(main())
