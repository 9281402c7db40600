"""From the start of the process to the end of its first step, resumed: against mmengine, by epoch; and after
200,000 iterations against after none, which must not differ.

mmengine resumes by epoch at the beginning of an epoch only; by iteration it replays all data (hours, at
200,000), so that is no match. Both sides read a whole checkpoint of the same network.

examples:
  python benchmarks/resume_start.py
  python benchmarks/resume_start.py --rounds 1     a quick look
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
from benchmarks.harness import compare, record  # noqa: E402
from jobs import compat  # noqa: E402
from jobs.train import checkpoints  # noqa: E402
from tests import tiny  # noqa: E402

PER_EPOCH = step_time.SAMPLES // step_time.BATCH
FAR = 200_000 // PER_EPOCH
"""Epochs that are 200,000 iterations."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        step_time.train(arguments.side, arguments.run, first_step(arguments.run))
        # No first step was left to do: this start has only made the checkpoint.
        step_time.write_result(arguments.run, time.time() - float(os.environ["BEGAN"]))
        return 0

    with tempfile.TemporaryDirectory(prefix="resume-start-") as folder:
        runs = {name: resumable(name, Path(folder)) for name in ("ours", "peer", "near")}
        near: list[float] = []

        def ours() -> float:
            near.append(step_time.start(__file__, "ours", runs["near"]))
            return step_time.start(__file__, "ours", runs["ours"])

        result = compare(
            "resume_start",
            "start to the first step of a resumed run",
            ours,
            lambda: step_time.start(__file__, "peer", runs["peer"]),
            against="mmengine, by epoch",
            goal=0.75,
            unit="seconds",
            better="lower",
            rounds=arguments.rounds,
        )
    far = result["raw"]["ours"]
    record(
        "resume_flat",
        "resume after 200,000 iterations",
        statistics.median(far) / statistics.median(near),
        against="resume after the first epoch",
        goal=1.05,
        better="lower",
        raw={"far": far, "near": near},
    )
    return 0


def resumable(name: str, folder: Path) -> Path:
    """A run with a checkpoint at the end of its first epoch, or as if it were of epoch `FAR`, and epochs to
    come."""
    data = tiny.make_data(folder / f"data-{name}", step_time.SAMPLES, 4)
    settings = step_time.config(PER_EPOCH)
    run = tiny.make_run(folder / name, data, step_time.CONFIG, **settings)
    side = "peer" if name == "peer" else "ours"
    os.environ["JUST_TRAIN"] = "1"
    step_time.start(__file__, side, run.path)
    del os.environ["JUST_TRAIN"]
    request = run.request()
    request.set.update({"train_cfg.max_epochs": 2 * FAR, "param_scheduler.0.end": 2 * FAR})
    run.write_request(request)
    if name != "near":
        to_epoch(run.path, side)
    return run.path


def to_epoch(run: Path, side: str) -> None:
    """Moves the run's newest checkpoint to epoch `FAR`."""
    compat.prepare()
    import torch

    iteration = FAR * PER_EPOCH
    if side == "peer":
        path = run / "mmengine" / "epoch_1.pth"
        content = compat.load(path)
        content["meta"] |= {"epoch": FAR, "iter": iteration}
        moved = path.with_name(f"epoch_{FAR}.pth")
        torch.save(content, moved)
        path.with_name("last_checkpoint").write_text(str(moved))
        return
    found = checkpoints.newest(run / "checkpoints")
    assert found is not None
    content = compat.load(found.path)
    content["meta"] |= {"epoch": FAR, "iter": iteration}
    content["baton"] |= {"epoch": FAR, "step": iteration}
    manifest = found.manifest | {"epoch": FAR, "step": iteration}
    checkpoints.write(found.path.with_name(f"epoch_{FAR}.pth"), content, manifest, run / "job", 1)


def first_step(run: Path) -> Any:
    """A hook that ends the process after the first step, unless JUST_TRAIN is set."""
    compat.prepare()
    from mmengine.hooks import Hook

    class FirstStep(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
            if "JUST_TRAIN" not in os.environ:
                step_time.write_result(run, time.time() - float(os.environ["BEGAN"]))
                os._exit(0)

    return FirstStep()


if __name__ == "__main__":
    sys.exit(main())
