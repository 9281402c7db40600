"""Shows where all runs stand, or one run's timeline: each start, why it ended, its jobs.

Slurm is asked at most twice, however many runs there are. A run without Slurm, or with one that does not
answer, is shown from its own events; what cannot be determined is called unknown.
"""

import argparse
import gc
import json
import shutil
import sys
import time

import checkout

from launch.observe import figures, folding, overview, sweeps, tables, timeline
from launch.submit import ranges, runs

EXAMPLES = """\
  python launch/status.py                 all runs
  python launch/status.py --watch         again and again, until Ctrl-C
  python launch/status.py first           one run: its starts, jobs and where the time went
  python launch/status.py lr-sweep        the runs of a sweep, which are one line otherwise
  python launch/status.py --json | jq '.runs[] | select(.state == "failed") | .name'
"""


AROUND = 7
"""Lines of the screen besides the table's rows: counts, header, what is left out, and what to type next."""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name or path, or a sweep's")
    parser.add_argument(
        "--watch", nargs="?", type=ranges.number("--watch", 0.1, 86400), const=2.0, metavar="SECONDS",
        help="refresh until Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="a line for each run of a sweep, too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    gc.disable()  # thousands of events are read, and the process ends once they are shown
    if arguments.watch is not None:
        return watch(arguments)
    show(arguments, overview.Slurm())
    return 0


def show(arguments: argparse.Namespace, slurm: overview.Slurm, height: int | None = None) -> None:
    """Prints it once. `height`: lines that fit on the screen, with --watch."""
    now = time.time()
    elements = sweeps.members(arguments.run) if arguments.run else []
    if arguments.run and not elements:
        run = runs.find(arguments.run)
        timeline.print_one(run, now, arguments.json, slurm)
        return
    found, answer = overview.all_statuses(now, slurm, elements)
    if arguments.json:
        print(json.dumps({"runs": [figures.as_json(one) for one in found], "problems": answer.problems}))
        return
    if not found:
        print(f"no runs in {runs.runs_root()}; to begin one: python launch/train.py --help")
        return
    heads = figures.heads(found)
    shown, more = folding.lines(found, heads, fold=not (elements or arguments.all)), ""
    if height is not None:
        print(folding.summary(found))
        shown, more = folding.fitting(shown, height - AROUND - len(answer.problems))
    columns, spare = overview.columns(*heads)
    tables.show(
        columns, [one.cells for one in shown], [one.state for one in shown], spare,
        one_line=height is not None,
    )  # fmt: skip
    if more:
        print(f"{more}; python launch/status.py lists all")
    for problem in answer.problems:
        print(f"note: {problem}")
    print("one run: python launch/status.py RUN · its log: python launch/logs.py RUN -f")


def watch(arguments: argparse.Namespace) -> int:
    """Refreshes the display; in place on a terminal, elsewhere only when something changed."""
    import contextlib
    import io

    before, slurm = "", overview.asked_now_and_then()
    while True:
        gc.collect()
        if sys.stdout.isatty():
            tables.control("\033[2J\033[H")
            show(arguments, slurm, shutil.get_terminal_size().lines)
        else:
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                show(arguments, slurm)
            if text.getvalue() != before:
                before = text.getvalue()
                print(before, end="", flush=True)
        time.sleep(arguments.watch)


if __name__ == "__main__":
    checkout.run(main)
