"""Ends a run: its training, the successors of it, its evaluation; also while it is being requeued.

The training saves and leaves, and can be resumed: python launch/train.py --resume RUN.
"""

import json
import sys

import checkout

from jobs.run.directory import Run
from launch.observe import history
from launch.submit import cancelling, runs

EXAMPLES = """\
  python launch/cancel.py first
  python launch/cancel.py first second --now     without waiting until the jobs are gone
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name or path")
    parser.add_argument("--now", action="store_true", help="do not wait until its jobs are gone")
    parser.add_argument(
        "--lost",
        action="store_true",
        help="what was started on another machine counts as ended (it is gone for good, or was ended there)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    found = [runs.find(name) for name in arguments.runs]
    code = 0
    for run in found:
        jobs, left = cancelling.cancel(run, wait=not arguments.now, lost=arguments.lost)
        if arguments.json:
            print(json.dumps({"run": run.name, "jobs": jobs, "left": left}))
        elif not jobs:
            print(f"{run.name}: nothing of it was queued or running")
            print(f"how it stands: python launch/status.py {run.name}")
        else:
            print(f"{run.name}: cancelled {', '.join(jobs)}")
        if left and not arguments.json:
            print(
                f"error: still there: {', '.join(left)}; python launch/status.py {run.name}", file=sys.stderr
            )
        elif jobs and not arguments.json:
            if history.read(run).finished is None and not is_preparation(run):
                print(f"to resume it: python launch/train.py --resume {run.name}")
            else:
                print(f"next: python launch/status.py {run.name}")
        code = code or (1 if left else 0)
    return code


def is_preparation(run: Run) -> bool:
    return run.path.parent == runs.prepare_root()


if __name__ == "__main__":
    checkout.run(main)
