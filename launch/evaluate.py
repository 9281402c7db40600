"""Submits an evaluation of a run on its own: mIoU, mAcc, aAcc, the table by class, and pictures."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from jobs.run import environment

environment.enter()

from jobs.run.errors import run_command
from launch.observe import tables
from launch.submit import options, runs
from launch.submit import single_job as single

EXAMPLES = """\
  python launch/evaluate.py first
  python launch/evaluate.py first --checkpoint last --gpus 2 --wait
  python launch/evaluate.py first --pictures all
  python launch/evaluate.py first --cluster mine --dry-run
"""


def main() -> int:
    parser = options.parser(__doc__ or "", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="a run's name or path")
    parser.add_argument(
        "--checkpoint", default="best", metavar="WHICH", help="best (default), last, or the path of a file"
    )
    parser.add_argument(
        "--pictures", nargs="+", metavar="WHICH", help="all, a number of them (default 20), or image ids"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    options.add_common(parser)
    arguments = parser.parse_args()

    run = runs.find(arguments.run)
    checkpoint = options.checkpoint(arguments.checkpoint, run)
    pictures = ["--pictures", *arguments.pictures] if arguments.pictures else []
    resolved = options.settings(arguments, options.profile_of(arguments, run, "evaluate"), "evaluate")
    batch = single.batch(
        run.path, resolved, ["--checkpoint", checkpoint, "--again", *pictures], f"{run.name}-evaluate"
    )
    if arguments.dry_run:
        return single.show(batch)
    job, process = single.submit(run, batch)
    return single.tell(arguments, run, "evaluate", job, process)


if __name__ == "__main__":
    tables.guard()
    run_command(main)
