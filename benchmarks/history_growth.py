"""What the history of logged values costs late in a run: step time and checkpoint with 264,000 values in each
history (200 epochs of the recipe) against none, ours and mmengine's.

mmengine keeps up to a million values of each logged scalar, copies all of them in every step and writes them
into every checkpoint. Ours keeps the last 1,000. Two trainings are up at once and take turns, each of which
has empty histories in half of its turns and 264,000 values in the other half: two processes that do the same
differ by more than is to be seen. The checkpoints are those of four short trainings.

examples:
  python benchmarks/history_growth.py
  python benchmarks/history_growth.py --pairs 3     a quick look
"""

import statistics
import sys
import tempfile
from pathlib import Path

import repository

from benchmarks import harness, step_time
from benchmarks.trainings import start, turns
from jobs.run.directory import Run
from tests.support import tiny

ROOT: Path = repository.ROOT

VALUES = 264_000
TIMED = 8
SIDES = ("ours", "peer")


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=20, help=f"twice as many turns of {TIMED} steps each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="history-") as folder:
        data = start.endless_list(tiny.make_data(Path(folder) / "data", 64, 4))
        sizes = {}
        for side in SIDES:
            # The last step, which the checkpoint follows, begins a second block.
            for values, full in ((0, []), (VALUES, [0, 1])):
                run = make_run(Path(folder) / f"{side}-{values}", data, 1, full)
                turns.take({side: turns.Training(side, run, 1)}, 1)
                sizes[f"{side}-{values}"] = checkpoint_bytes(run)
        blocks = 2 * arguments.pairs
        # 0, 1, 1, 0, 0, 1, 1, 0, ...: neither half is later than the other.
        full = [number for number in range(blocks) if number % 4 in (1, 2)]
        trainings = {}
        for side in SIDES:
            run = make_run(Path(folder) / side, data, blocks, full)
            trainings[side] = turns.Training(side, run, 1)
        taken = turns.take(trainings, blocks)

    # CPU time: the wall clock of a virtual machine is less exact than what is to be seen.
    empty = [number for number in range(blocks) if number not in full]
    ratios = {
        side: turns.ratios([cpu[number] for number in full], [cpu[number] for number in empty])
        for side, cpu in taken.cpu.items()
    }
    grown = {side: sizes[f"{side}-{VALUES}"] - sizes[f"{side}-0"] for side in SIDES}
    raw = {
        "cpu_seconds_a_block": taken.cpu, "seconds_a_step": taken.seconds, "ratios": ratios,
        "bytes_of_checkpoint": sizes, "standard_error": turns.uncertainty(ratios["ours"]),
    }  # fmt: skip
    harness.record(
        "history_step",
        f"CPU time of a step after {VALUES:,} iterations",
        statistics.median(ratios["ours"]),
        against="the same after none",
        goal=1.01,
        better="lower",
        raw=raw,
        note=f"± {raw['standard_error']:.1g}",
    )
    harness.record(
        "history_bytes",
        f"what {VALUES:,} iterations add to a checkpoint",
        grown["ours"] / 1e6,
        against="",
        goal=0.2,
        unit="MB",
        better="lower",
        raw=raw,
        note=f"mmengine: {grown['peer'] / 1e6:.0f} MB",
    )
    return 0


def make_run(path: Path, data: Path, blocks: int, full: list[int]) -> Run:
    """A run of so many blocks, with long histories in those whose numbers are in `full`."""
    run = start.make_run(
        path, data, step_time.CONFIG, turns.hook(path, TIMED), **step_time.settings(blocks, TIMED)
    )
    preload = {"type": "Preload", "values": VALUES, "warm_up": turns.WARM_UP, "block": turns.UNTIMED + TIMED}
    request = run.request()
    request.set["custom_hooks"].append(preload | {"full": full})
    run.write_request(request)
    return run


def checkpoint_bytes(run: Run) -> int:
    """Size of the one checkpoint, saved at the end."""
    (path,) = [*run.checkpoints.glob("*.pth"), *(run.path / "mmengine").glob("iter_*.pth")]
    return path.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
