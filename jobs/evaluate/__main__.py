"""`python -m jobs.evaluate RUN`: the figures of a run's checkpoint, with intervals, by class, and pictures.

One process a rank; each takes every N-th image. Results go to RUN/eval/CHECKPOINT-DIGEST/. A checkpoint that
has been evaluated is not evaluated again, unless asked to: a job that is requeued after its end does nothing.
Everything random is seeded by the run's seed and the image, so an evaluation can be repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from jobs.engine import checkpoints, ranks
from jobs.evaluate import per_image, report, results
from jobs.mmseg import compat
from jobs.mmseg import model as models
from jobs.prepare import weights
from jobs.run import events, failure, metrics, notify, output, story
from jobs.run.directory import Run
from jobs.run.errors import run_command
from jobs.run.task import read as read_task
from jobs.supervise import tracking

ABOUT = (
    *("asked", "not_computed", "checkpoint", "digest", "augmented", "images", "processes", "batch"),
    *("seconds", "seconds_rank_0"),
)
"""Keys of metrics.json other than figures."""


def main() -> int:
    arguments = parse()
    run = Run(arguments.run.resolve())
    with failure.reported(run, "evaluate", read_task().rank), notify.failures_of(run, "evaluate"):
        return evaluate(run, arguments)


def evaluate(run: Run, arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    if "://" in arguments.checkpoint:
        arguments.checkpoint = str(weights.fetch(arguments.checkpoint, run.code / "data"))
    checkpoint = models.chosen_checkpoint(run, arguments.checkpoint)
    digest = checkpoints.digest(checkpoint)
    where = arguments.out or results.folder(run, checkpoint, digest, arguments.tta)
    where = where.resolve()
    if arguments.out:
        output.claim(where)
    done = None if arguments.again else results.finished(where)

    # Imported late, because it takes seconds.
    compat.prepare()
    from jobs.evaluate import counting

    us = ranks.join(run)
    if done is not None:
        return repeat(run, us, checkpoint.name, done, where)
    test = counting.Test(run, checkpoint, us, where, arguments.tta, arguments.pictures, arguments.batch)
    test.count(f"evaluating {checkpoint.name}")
    gathered = test.gathered()
    taken = {*gathered.figures, *ABOUT} if gathered else ()
    computed = test.others.computed(us, len(test.dataset), taken)
    order = test.draw(gathered.order if gathered else [])
    if gathered is None or computed is None:
        return 0
    wanted = [*test.asked, *computed[0]]
    found = gathered.figures | computed[0] | {
        "asked": wanted,
        "not_computed": computed[1],
        "checkpoint": checkpoint.name,
        "digest": digest,
        "augmented": test.augmented,
        "images": len(test.dataset),
        "processes": us.size,
        "batch": test.batch,
        "seconds": round(time.monotonic() - began, 3),
        "seconds_rank_0": {key: round(value, 3) for key, value in test.spent.items()},
    }  # fmt: skip
    paths = test.paths()
    per_image.write(where, paths, gathered.counts)
    results.write_images(where, order, paths, gathered.scores)
    results.write(where, found, gathered.matrix)
    tell(run, us.job, found, where)
    return 0


def tell(run: Run, job: str | None, found: dict[str, Any], where: Path) -> None:
    """Reports a result: to the events, notifications, services and the report."""
    results.show(found)
    print(f"figures and pictures: {where}", flush=True)
    events.append(
        run.events, "evaluated", stage="evaluate", job=job, checkpoint=found["checkpoint"],
        seconds=found.get("seconds"), path=str(where),
        metrics={key: found[key] for key in found.get("asked", metrics.EVALUATED[:3])},
    )  # fmt: skip
    report.write(run)
    tracking.once(run)
    augmented = metrics.AUGMENTED if found.get("augmented") else ""
    figure = metrics.evaluated(found, story.read(run.events).best, augmented)
    told = f"{figure.metric} {figure}" if figure else f"{metrics.USUAL} {results.percent(None)}"
    notify.about(run, "evaluated", f"{told} of {found['checkpoint']}")


def repeat(run: Run, us: ranks.Ranks, checkpoint: str, done: dict[str, Any], where: Path) -> int:
    """Reports an existing result, once per job: a job that was killed before it could do so leaves that to
    the next, and after a longer training the best checkpoint may be unchanged. Every rank has seen the same
    folder, so all end here."""
    if us.rank == 0:
        print(f"{checkpoint} has already been evaluated (--again repeats it): {where}")
        if story.read(run.events).is_evaluated_in(str(where), us.job):
            results.show(done)
        else:
            tell(run, us.job, done | {"checkpoint": checkpoint}, where)
    ranks.gather(us, b"")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, a path, or an address")
    parser.add_argument(
        "--pictures",
        nargs="+",
        default=["20"],
        metavar="WHICH",
        help="all, a number of them (default the 20 worst), or image ids",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: the config's tta_model and tta_pipeline, or scales and flips",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images of one size at a time (default 1)"
    )
    parser.add_argument("--out", type=Path, help="result folder (default RUN/eval/CHECKPOINT-DIGEST[-tta])")
    parser.add_argument("--again", action="store_true", help="also if there is a result for this checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
