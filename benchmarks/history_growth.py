"""What the history of logged values costs late in a run: step time and checkpoint with 264,000 values in each
history (200 epochs of the recipe) against none, ours and mmengine's.

mmengine keeps up to a million values of each logged scalar, copies all of them in every step and writes them
into every checkpoint. Ours keeps the last 1,000. Four trainings are up at once and take turns: each side with
empty histories, and with 264,000 values put into them after two steps.

examples:
  python benchmarks/history_growth.py
  python benchmarks/history_growth.py --blocks 3     a quick look
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import harness, step_time  # noqa: E402
from benchmarks.trainings import start, turns  # noqa: E402
from jobs.run_directory import Run  # noqa: E402
from tests import tiny  # noqa: E402

VALUES = 264_000
TIMED = 8


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--blocks", type=int, default=20, help=f"turns of {TIMED} steps of each training")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="history-") as folder:
        data = start.endless_list(tiny.make_data(Path(folder) / "data", 64, 4))
        trainings = {}
        for side in ("ours", "peer"):
            for values in (0, VALUES):
                run = make_run(Path(folder) / f"{side}-{values}", data, values, arguments.blocks)
                trainings[f"{side}-{values}"] = turns.Training(side, run, 1)
        taken = turns.take(trainings, arguments.blocks)
        sizes = {name: checkpoint_bytes(training.run) for name, training in trainings.items()}

    # CPU time: the wall clock of a virtual machine is less exact than what is to be seen.
    cpu, steps = taken.cpu, turns.UNTIMED + TIMED
    ratios = turns.ratios(cpu[f"ours-{VALUES}"], cpu["ours-0"])
    theirs = turns.ratios(cpu[f"peer-{VALUES}"], cpu["peer-0"])
    grown = {side: sizes[f"{side}-{VALUES}"] - sizes[f"{side}-0"] for side in ("ours", "peer")}
    slower = (
        1000
        / steps
        * statistics.median(b - a for a, b in zip(cpu["peer-0"], cpu[f"peer-{VALUES}"], strict=True))
    )
    raw = {
        "seconds_a_step": taken.seconds, "cpu_seconds_a_block": cpu, "ratios": ratios, "ratios_peer": theirs,
        "bytes_of_checkpoint": sizes, "standard_error": turns.uncertainty(ratios),
    }  # fmt: skip
    peer = f"mmengine: {statistics.median(theirs):.2f}×, {slower:.0f} ms more"
    harness.record(
        "history_step",
        f"CPU time of a step after {VALUES:,} iterations",
        statistics.median(ratios),
        against="the same after none",
        goal=1.01,
        better="lower",
        raw=raw,
        note=f"± {raw['standard_error']:.1g}; {peer}",
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


def make_run(path: Path, data: Path, values: int, blocks: int) -> Run:
    run = start.make_run(
        path, data, step_time.CONFIG, turns.hook(path, TIMED), **step_time.settings(blocks, TIMED)
    )
    if values:
        request = run.request()
        request.set["custom_hooks"].append({"type": "Preload", "values": values})
        run.write_request(request)
    return run


def checkpoint_bytes(run: Run) -> int:
    """Size of the one checkpoint, saved at the end."""
    (path,) = [*run.checkpoints.glob("*.pth"), *(run.path / "mmengine").glob("iter_*.pth")]
    return path.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
