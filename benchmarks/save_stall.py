"""How long a periodic save holds up the training, against mmengine's own save made as durable.

Both sides train the recipe's network, whose checkpoint has 532 MB, and save every few steps. The stall: the
time that the training's thread spends in a save. Ours: the snapshot, and waiting for the write before it,
should that still go on. mmengine's: the whole write, with an fsync of file and directory, without which a
save may be lost with the machine. The first save of a start allocates the snapshot's memory: a line of its
own.

The write in the background takes from the steps that follow: what a save costs the training all in is the
time of the steps with saves among them less that of as many without, from the same training.

examples:
  python benchmarks/save_stall.py
  python benchmarks/save_stall.py --rounds 2     a quick look
"""

import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import repository

from benchmarks import harness
from benchmarks.trainings import start
from tests.support import tiny

ROOT: Path = repository.ROOT

WARM_UP = 4
BEFORE = 16
"""Steps without saves, before the first."""
EVERY, SAVES = 12, 4

AGAINST = "mmengine's synchronous save with fsync"


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    measured: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    # On the disk of the checkout: /tmp may be in memory.
    with tempfile.TemporaryDirectory(prefix="save-stall-", dir=ROOT / "logs") as folder:
        data = start.endless_list(tiny.make_data(Path(folder) / "data", 64, 4))
        for number in range(arguments.rounds):
            for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                measured[side].append(one_training(side, Path(folder) / f"{side}-{number}", data))

    size = max(size for one in measured["ours"] for size in one["bytes"])

    def of(key: str) -> dict[str, list[float]]:
        return {side: [value for one in ones for value in one[key]] for side, ones in measured.items()}

    def record(name: str, what: str, goal: float, key: str, note: str) -> None:
        figures = of(key)
        sizes = {
            side: sorted({size for one in ones for size in one["bytes"]}) for side, ones in measured.items()
        }
        harness.record(
            name,
            what,
            harness.ratio(figures["ours"], figures["peer"]),
            against=AGAINST,
            goal=goal,
            better="lower",
            raw={
                "seconds": figures,
                "spread": {side: harness.spread(values) for side, values in figures.items()},
                "bytes": sizes,
            },
            note=note,
        )

    record("save_stall", f"stall of a periodic save of {size / 1e6:.0f} MB", 0.3, "stalls", "")
    record(
        "save_first", "stall of the first save of a start", 1.0, "first", "allocates the snapshot's memory"
    )
    costs = of("costs")
    noise = statistics.stdev(costs["ours"]) / statistics.median(costs["peer"])
    note = f"± {noise:.1g}; stall and slower steps"
    record("save_all_in", "time that a periodic save costs the training", 1.0, "costs", note)
    return 0


def one_training(side: str, path: Path, data: Path) -> dict[str, Any]:
    """Seconds of the first save, of the later ones, and what these cost all in; bytes of the checkpoints."""
    steps = BEFORE + SAVES * EVERY
    hook = {"type": "Steps", "result": str(path / "result.json")}
    run = start.make_run(path, data, start.RECIPE, hook, **settings(steps))
    found = start.result(side, run)
    sizes = found["bytes"] or [c.stat().st_size for c in run.checkpoints.glob("*.pth")]
    start.delete(run)
    times = found["times"]
    saves = [seconds for step, seconds in found["saves"] if step < steps]
    assert len(saves) == SAVES, f"{side} saved {len(saves)} times: {found['saves']}"
    lasted = [after - before for before, after in itertools.pairwise(times)]
    alone = statistics.mean(lasted[WARM_UP : BEFORE - 1])
    # From after the first save to before what would be the next after the last: whole intervals.
    among = times[steps - 1] - times[BEFORE + EVERY - 1]
    cost = among / (SAVES - 1) - EVERY * alone
    return {"first": saves[:1], "stalls": saves[1:], "costs": [cost], "bytes": sizes, "step": alone}


def settings(steps: int) -> dict[str, Any]:
    return {
        "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": steps},
        "param_scheduler": [{"type": "PolyLR", "eta_min": 1e-4, "begin": 0, "end": steps, "by_epoch": False}],
        "default_hooks__checkpoint__by_epoch": False,
        "default_hooks__checkpoint__interval": EVERY,
        "default_hooks__checkpoint__save_begin": BEFORE,
        "log_processor__by_epoch": False,
    }


if __name__ == "__main__":
    sys.exit(main())
