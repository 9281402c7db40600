"""Frees disk space: old checkpoints and unfinished leftovers of runs that are not on their way.

Only lists what it would delete, unless --yes is given. Always kept: the newest checkpoints, the best one,
events, metrics, logs and evaluations; and everything of a run that lives, or of which nobody knows.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from jobs.run import environment

environment.enter()

from jobs.run import checkpoint_files
from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.slurm import queries as slurm_queries
from launch.observe import history, states, tables
from launch.observe import wording as words
from launch.observe.doctor import probe as probe_job
from launch.submit import identity, runs

EXAMPLES = """examples:
  python launch/clean.py                    what could be deleted, of all runs
  python launch/clean.py first second --yes
  python launch/clean.py --keep 1 --yes     only the newest and the best checkpoint of each run
"""
OURS = re.compile(r"(epoch|iter)_\d+\.pth")
LEFTOVER = re.compile(
    r"\..+\.tmp|.+\.save_tmp|.+\.damaged(\.json|-\d+|\.\d+)?|(epoch|iter)_\d+\.pth\..*tmp.*"
)

TEMPORARY_SECONDS = 600.0
"""A command that is at work right now (a report, a status) has younger temporary files."""
PROBE_SECONDS = 86400.0
"""A probe waits for its nodes for less."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or paths (default: all runs)")
    parser.add_argument(
        "--keep", type=int, default=2, metavar="N", help="newest checkpoints to keep (default 2)"
    )
    parser.add_argument("--yes", action="store_true", help="delete, instead of only listing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        raise UserError("--keep must be 1 or more: without a checkpoint a run cannot go on")
    chosen = [runs.find(name) for name in arguments.runs] if arguments.runs else runs.all_runs()
    pasts = [history.attempt(run) for run in chosen]
    answer = slurm_queries.ask(
        id for past in pasts if isinstance(past, history.History) for id in open_jobs(past)
    )
    found: list[tuple[str, Path, str, int]] = []
    skipped: list[tuple[str, str]] = []
    for run, past in zip(chosen, pasts, strict=True):
        if isinstance(past, Exception):
            skipped.append((run.name, states.unreadable(run, past).words))
            continue
        why = in_use(run, past, answer)
        if why:
            skipped.append((run.name, why))
            continue
        found += [(run.name, path, why, size_of(path)) for path, why in removable(run, arguments.keep)]
    if not arguments.runs:
        found += [("doctor", path, "a probe that is over", size_of(path)) for path in old_probes()]
    total = sum(size for *_, size in found)
    if arguments.yes:
        for _, path, _, _ in found:
            delete(path)
    if arguments.json:
        files = [
            {"run": name, "path": str(path), "why": why, "bytes": size} for name, path, why, size in found
        ]
        print(json.dumps({"deleted": arguments.yes, "bytes": total, "files": files, "skipped": skipped}))
        return 0
    if found:
        rows = [
            [name, str(path.relative_to(path.parents[1])), words.size(size), why]
            for name, path, why, size in found
        ]
        tables.show(("run", "file", ">size", "why"), rows)
    for name, why in skipped:
        print(f"left alone: {name} ({why})")
    if arguments.yes:
        print(f"deleted {words.plural(len(found), 'file')}, {words.size(total)}")
        print("next: python launch/status.py")
    elif found:
        typed = shlex.join(["python", "launch/clean.py", *sys.argv[1:], "--yes"])
        print(f"nothing deleted; {words.size(total)} would be free: {typed}")
    else:
        print("nothing to delete; next: python launch/status.py")
    return 0


def open_jobs(past: history.History) -> list[str]:
    """Slurm's jobs that may be alive: all but those that said themselves that they are done. One of a
    cancelled run may still be writing its last checkpoint, so that word is no proof."""
    jobs = [job.id for job in past.jobs.values() if job.state != "finished"]
    done = {job.id for job in past.jobs.values() if job.state == "finished"}
    return [id for id in dict.fromkeys([*jobs, *(one.job for one in past.incarnations)]) if id not in done]


def in_use(run: Run, past: history.History, answer: slurm_queries.Answer) -> str:
    """Why nothing of the run may be touched now; "" if it may."""
    answer = identity.mine(run, past, answer)
    state = states.judge(run, past, answer, history.progress(run), time.time())
    if state.lives or state.code == "stuck":
        return state.words
    alive = [id for id in open_jobs(past) if answer.job(id).alive]
    if alive:
        return f"{state.words}; job {', '.join(alive)} is still there"
    chains = states.local_chains(run)
    if chains:
        return f"{state.words}; {', '.join(chains)} is still there"
    for job in past.jobs.values():
        host = states.elsewhere(run, job.id) if job.state != "finished" else ""
        if host:
            return f"{state.words}; {job.id} was started on {host}, and may live there"
    asked = any(slurm_queries.is_slurm(id) for id in open_jobs(past))
    silent = next((text for text in answer.problems if text.startswith("squeue")), "")
    if asked and silent:
        return f"{state.words}; whether its jobs live is unknown: {silent}"
    return ""


def old_probes() -> list[Path]:
    """doctor's probe folders; not those of which a job may still write."""
    found = [path for path in probe_job.probes_root().glob("probe-*") if path.is_dir()]
    return [path for path in found if time.time() - path.stat().st_mtime > PROBE_SECONDS]


def size_of(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(inner) for inner in path.iterdir())
    return path.lstat().st_size


def delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def removable(run: Run, keep: int) -> list[tuple[Path, str]]:
    """(file, why it may go) of a run that is not on its way.

    Of the checkpoints only whole ones count as newest; one without a manifest never counts at all.
    """
    found = []
    for folder in (run.path, run.job):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            old = time.time() - path.lstat().st_mtime > TEMPORARY_SECONDS
            if LEFTOVER.fullmatch(path.name) and path.is_file() and old:
                found.append((path, "unfinished"))
    if not run.checkpoints.is_dir():
        return found
    valid = checkpoint_files.listed(run.checkpoints)
    best = checkpoint_files.best(run.checkpoints)
    kept = {one.path.name for one in valid[-keep:]} | ({best.path.name} if best else set())
    whole = {one.path.name for one in valid}
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
    tables.guard()
    run_command(main)
