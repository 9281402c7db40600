"""Frees disk space: old checkpoints and unfinished leftovers of runs that are not active.

Only lists what it would delete, unless --yes is given. Always kept: the newest checkpoints (with older ones,
if none of them is whole), the best one, one that the run's --checkpoint names, one with which another run is
to begin, events, metrics, logs and evaluations; and everything of a run that is active or whose state is
unknown.
"""

import argparse
import json
import shlex
import sys

import checkout

from jobs.run.errors import UserError, refusal
from jobs.run.past import History
from jobs.slurm import queries as slurm_queries
from launch.observe import history, leftovers, states, sweeps, tables, wording
from launch.submit import runs

EXAMPLES = """\
  python launch/clean.py                    what could be deleted, over all runs
  python launch/clean.py first second --yes
  python launch/clean.py --keep 1 --yes     only the newest and the best checkpoint of each run
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs or sweeps (default: all runs)")
    parser.add_argument(
        "--keep", type=int, default=2, metavar="N", help="newest checkpoints to keep (default 2)"
    )
    parser.add_argument("--yes", action="store_true", help="delete, instead of only listing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        raise UserError("--keep must be 1 or more: without a checkpoint a run cannot resume")
    chosen = sweeps.find(arguments.runs) or runs.all_runs()
    marks = [(run, leftovers.mark(run)) for run in chosen]
    pasts = [history.attempt(run) for run in chosen]
    answer = slurm_queries.ask(
        id for past in pasts if isinstance(past, History) for id in leftovers.open_jobs(past)
    )
    named = leftovers.weights_in_configs(runs.all_runs())
    found: leftovers.Found = []
    skipped: list[tuple[str, str]] = []
    for run, past in zip(chosen, pasts, strict=True):
        if isinstance(past, Exception):
            skipped.append((run.name, states.unreadable(run, past).words))
            continue
        why = leftovers.in_use(run, past, answer)
        if why:
            skipped.append((run.name, why))
            continue
        try:
            left = leftovers.doubtful(run, arguments.keep * arguments.yes, named)
            found += [
                (run.name, path, why, leftovers.size_of(path))
                for path, why in leftovers.removable(run, arguments.keep, left)
            ]
            skipped += [(f"{run.name}: {', '.join(of)}", why) for why, of in left.items()]
        except OSError as error:
            skipped.append((run.name, refusal(error)))
    if not arguments.runs:
        found += [
            ("doctor", path, "a probe that is over", leftovers.size_of(path))
            for path in leftovers.old_probes()
        ]
    refused: dict[str, str] = {}
    if arguments.yes:
        found, refused, active = leftovers.delete_all(found, marks)
        skipped += active
    show(found, skipped + (list(refused.items()) if arguments.json else []), arguments)
    for why in refused.values():
        print(f"error: {why}", file=sys.stderr)
    return 2 if refused else 0


def show(found: leftovers.Found, skipped: list[tuple[str, str]], arguments: argparse.Namespace) -> None:
    total = sum(size for *_, size in found)
    if arguments.json:
        files = [
            {"run": name, "path": str(path), "why": why, "bytes": size} for name, path, why, size in found
        ]
        print(json.dumps({"deleted": arguments.yes, "bytes": total, "files": files, "skipped": skipped}))
        return
    if found:
        rows = [
            [name, str(path.relative_to(path.parents[1])), wording.size(size), why]
            for name, path, why, size in found
        ]
        tables.show(("run", "file", ">size", "why"), rows)
    for name, why in skipped:
        print(f"left alone: {name} ({why})")
    if arguments.yes:
        print(f"deleted {wording.plural(len(found), 'file')}, {wording.size(total)}")
        print("next: python launch/status.py")
    elif found:
        typed = shlex.join(["python", "launch/clean.py", *sys.argv[1:], "--yes"])
        print(f"nothing deleted; {wording.size(total)} would be free: {typed}")
    else:
        print("nothing to delete; next: python launch/status.py")


if __name__ == "__main__":
    checkout.run(main)
