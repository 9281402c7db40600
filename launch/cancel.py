"""Ends a run: its training, its successors and its evaluation, even while it is being requeued.

The training saves and leaves, and can be resumed: python launch/train.py --resume RUN.
"""

import json
import sys

import checkout

from jobs.run.directory import Run
from launch.observe import history, sweeps
from launch.submit import cancelling, runs

EXAMPLES = """\
  python launch/cancel.py first
  python launch/cancel.py lr-sweep               all runs of a sweep
  python launch/cancel.py first second --now     without waiting until the jobs are gone
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name or path, or a sweep's")
    parser.add_argument("--now", action="store_true", help="do not wait until its jobs are gone")
    parser.add_argument(
        "--lost",
        action="store_true",
        help="treat what was started on another machine as ended (it is gone for good, or was ended there)",
    )
    parser.add_argument(
        "--json", action="store_true", help="JSON instead of text: an object, of several runs a list of them"
    )
    arguments = parser.parse_args()
    found = sweeps.find(arguments.runs)
    ended, refused = cancelling.cancel(found, lost=arguments.lost)
    for error in refused:
        print(f"error: {error}", file=sys.stderr)
    code = 2 if refused else 0
    told = []
    remaining = [[] for _ in ended] if arguments.now else cancelling.wait(ended)
    for (run, jobs), left in zip(ended, remaining, strict=True):
        told.append({"run": run.name, "jobs": jobs, "left": left})
        if not arguments.json and (jobs or len(ended) == 1):
            tell(run, jobs, left, alone=len(ended) == 1)
        code = code or (1 if left else 0)
    if not arguments.json and len(ended) > 1:
        sweep = arguments.runs[0] if len(arguments.runs) == 1 else ""
        tell_rest(sweep, sum(not jobs for _, jobs in ended), len(ended))
    several = len(arguments.runs) > 1 or sweeps.of(found[0]) == arguments.runs[0]
    if arguments.json and (told or several):
        print(json.dumps(told if several else told[0]))
    return code


def tell(run: Run, jobs: list[str], left: list[str], alone: bool) -> None:
    """What became of a run and, if it is `alone`, what to do next."""
    if not jobs:
        print(f"{run.name}: none of its jobs was queued or running")
        print(f"how it stands: python launch/status.py {runs.typed(run)}")
        return
    print(f"{run.name}: cancelled {', '.join(jobs)}")
    if left:
        print(
            f"error: still there: {', '.join(left)}; python launch/status.py {runs.typed(run)}",
            file=sys.stderr,
        )
    if left or not alone:
        return
    past = history.read(run)
    if past.finished is None and past.newest_job("train") is not None:
        print(f"to resume it: python launch/train.py --resume {runs.typed(run)}")
    else:
        print(f"next: python launch/status.py {runs.typed(run)}")


def tell_rest(sweep: str, idle: int, of: int) -> None:
    """The end of what is told of several runs, which may be hundreds; `sweep`: whose, if of one."""
    if idle:
        print(f"{idle} of {of} runs had no job that was queued or running")
    print(f"how they stand: python launch/status.py{f' {sweep}' if sweep else ''}")
    if idle < of:
        print("to resume one: python launch/train.py --resume RUN")


if __name__ == "__main__":
    checkout.run(main)
