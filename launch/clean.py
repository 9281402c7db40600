"""Frees disk space: old checkpoints and unfinished leftovers of runs that are not on their way.

Only tells what it would delete, unless told --yes. What is always kept: the newest checkpoints, the best one,
events, metrics, logs and evaluations; and everything of a run that lives, or of which nobody knows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs.errors import UserError, run_command  # noqa: E402
from jobs.run_directory import Run  # noqa: E402
from jobs.train import checkpoints  # noqa: E402
from launch import history, runs, slurm_queries, states, tables, words  # noqa: E402

EXAMPLES = """examples:
  python launch/clean.py                    what could be deleted, of all runs
  python launch/clean.py first second --yes
  python launch/clean.py --keep 1 --yes     only the newest and the best checkpoint of each run
"""
OURS = re.compile(r"(epoch|iter)_\d+\.pth")
LEFTOVER = re.compile(
    r"\..+\.tmp|.+\.save_tmp|.+\.damaged(\.json|-\d+|\.\d+)?|(epoch|iter)_\d+\.pth\..*tmp.*"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or paths (default: all runs)")
    parser.add_argument(
        "--keep", type=int, default=2, metavar="N", help="newest checkpoints to keep (default 2)"
    )
    parser.add_argument("--yes", action="store_true", help="delete, instead of only telling")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        raise UserError("--keep must be 1 or more: without a checkpoint a run cannot go on")
    chosen = [runs.find(name) for name in arguments.runs] if arguments.runs else runs.all_runs()
    pasts = [history.read(run) for run in chosen]
    answer = slurm_queries.ask(id for past in pasts for id in states.jobs_to_ask(past))
    found: list[tuple[Run, Path, str, int]] = []
    skipped: list[tuple[str, str]] = []
    for run, past in zip(chosen, pasts, strict=True):
        state = states.judge(run, past, answer, history.progress(run), time.time())
        if state.lives or state.code == "stuck":
            skipped.append((run.name, state.words))
            continue
        found += [(run, path, why, path.stat().st_size) for path, why in removable(run, arguments.keep)]
    total = sum(size for *_, size in found)
    if arguments.yes:
        for _, path, _, _ in found:
            path.unlink(missing_ok=True)
    if arguments.json:
        files = [
            {"run": run.name, "path": str(path), "why": why, "bytes": size} for run, path, why, size in found
        ]
        print(json.dumps({"deleted": arguments.yes, "bytes": total, "files": files, "skipped": skipped}))
        return 0
    if found:
        rows = [
            [run.name, str(path.relative_to(run.path)), words.size(size), why]
            for run, path, why, size in found
        ]
        tables.show(("run", "file", ">size", "why"), rows)
    for name, why in skipped:
        print(f"left alone: {name} ({why})")
    if arguments.yes:
        print(f"deleted {words.plural(len(found), 'file')}, {words.size(total)}")
    elif found:
        print(f"nothing deleted; {words.size(total)} would be free: the same command with --yes")
    else:
        print("nothing to delete")
    return 0


def removable(run: Run, keep: int) -> list[tuple[Path, str]]:
    """(file, why it may go) of a run that is not on its way.

    Of the checkpoints only whole ones count as newest; one without a manifest never counts at all.
    """
    if not run.checkpoints.is_dir():
        return []
    valid = checkpoints.listed(run.checkpoints)
    best = checkpoints.best(run.checkpoints)
    kept = {one.path.name for one in valid[-keep:]} | ({best.path.name} if best else set())
    whole = {one.path.name for one in valid}
    found = []
    for path in sorted(run.checkpoints.iterdir()):
        name = path.name.removesuffix(".json")
        if LEFTOVER.fullmatch(path.name):
            found.append((path, "unfinished or damaged"))
        elif OURS.fullmatch(name) and name not in kept:
            # With no whole checkpoint left, a doubtful one may be all there is of the run.
            if name in whole:
                found.append((path, "older checkpoint"))
            elif valid:
                found.append((path, "unfinished: no valid manifest"))
    return found


if __name__ == "__main__":
    run_command(main)
