"""What takes up space in a run needlessly, such as old checkpoints, and why a run must be left alone."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from jobs.run import checkpoint_files, files
from jobs.run.directory import Run
from jobs.run.errors import refusal
from jobs.run.past import History
from jobs.slurm import queries as slurm_queries
from launch.observe import history, local_jobs, states
from launch.observe.doctor import probe as probe_job
from launch.submit import identity

OURS = re.compile(r"(epoch|iter)_\d+\.pth")
LEFTOVER = re.compile(
    r"\..+\.tmp|.+\.save_tmp|.+\.damaged(\.json|-\d+|\.\d+)?|(epoch|iter)_\d+\.pth\..*tmp.*"
)
WEIGHTS = re.compile(r"[^/'\"\n]+/checkpoints/(epoch|iter)_\d+\.pth")
OLDER = "older checkpoint"
"""Why an intact checkpoint may be deleted."""
Found = list[tuple[str, Path, str, int]]
"""(run, path, why, bytes) of each that may be deleted."""
TEMPORARY_SECONDS = 600.0
"""Minimum age of an unfinished file: a command at work right now (a report) has younger ones."""
PROBE_SECONDS = 86400.0
"""Minimum age of a probe's folder: no probe waits so long for its nodes."""


def open_jobs(past: History) -> list[str]:
    """Slurm jobs that may be alive: all but those that reported themselves that they had finished.
    `cancelled` does not count: the job may still be writing its last checkpoint."""
    jobs = [job.id for job in past.jobs.values() if job.state != "finished"]
    done = {job.id for job in past.jobs.values() if job.state == "finished"}
    return [id for id in dict.fromkeys([*jobs, *(one.job for one in past.incarnations)]) if id not in done]


def in_use(run: Run, past: History, answer: slurm_queries.Answer) -> str:
    """Why nothing in the run may be touched now; "" if it may."""
    answer = identity.mine(run, past, answer)
    state = states.judge(run, past, answer, history.progress(run), time.time())
    if state.lives or state.code == "stuck":
        return state.words
    alive = [id for id in open_jobs(past) if answer.job(id).alive]
    if alive:
        return f"{state.words}; job {', '.join(alive)} is still there"
    chains = local_jobs.local_chains(run)
    if chains:
        return f"{state.words}; {', '.join(chains)} is still there"
    for job in past.jobs.values():
        host = local_jobs.elsewhere(run, job.id) if job.state != "finished" else ""
        if host:
            return f"{state.words}; {job.id} was started on {host}, and may live there"
    asked = any(slurm_queries.is_slurm(id) for id in open_jobs(past))
    silent = next((text for text in answer.problems if text.startswith("squeue")), "")
    if asked and silent:
        return f"{state.words}; whether its jobs live is unknown: {silent}"
    return ""


def weights_in_configs(runs: Iterable[Run]) -> set[str]:
    """RUN/checkpoints/NAME of each checkpoint that the config of one of `runs` names, as `load_from` does.
    Only a run that has no checkpoint of its own yet needs it."""
    found: set[str] = set()
    for run in runs:
        if any(run.checkpoints.glob("*.pth.json")):
            continue
        try:
            text = run.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found.update(one[0] for one in WEIGHTS.finditer(text))
    return found


def doubtful(run: Run, keep: int = 0, named: Collection[str] = ()) -> dict[str, list[str]]:
    """Reason -> checkpoints kept for it, because they may be worth more than they seem. Raises OSError.

    `named`: from `weights_in_configs`. `keep`: if others would be deleted, at least one of that many newest
    ones has to be intact, which is checked by reading it; 0: none is read.
    """
    if not run.checkpoints.is_dir():
        return {}
    present = sorted(run.checkpoints.iterdir())
    damaged = [
        path.name
        for path in present
        if OURS.fullmatch(path.name)
        and checkpoint_files.beside(path).exists()
        and checkpoint_files.read(checkpoint_files.beside(path)) is None
    ]
    found = {"a damaged manifest, and it may be whole": damaged} if damaged else {}
    folder = f"{run.path.name}/{run.checkpoints.name}"
    if weights := [path.name for path in present if f"{folder}/{path.name}" in named]:
        found["a run that has none yet begins with it"] = weights
    told = checkpoint_files.told_best(run.checkpoints) if _lacks_its_note(run) else None
    if told and checkpoint_files.of_told_best(run.checkpoints) is None:
        listed = [one.path.name for one in checkpoint_files.listed(run.checkpoints)]
        found[f"{files.BEST} is damaged or missing, and one may be the best"] = listed
    if keep and any(why == OLDER for _, why in removable(run, keep, found)):
        valid = checkpoint_files.listed(run.checkpoints)
        if spoilt := list(itertools.takewhile(_is_spoilt, valid[::-1])):
            names = [one.path.name for one in valid[-len(spoilt) - 1 :]]
            found["the newest does not match its digest, so the newest that does is kept, too"] = names
    return found


def _is_spoilt(one: checkpoint_files.Checkpoint) -> bool:
    return checkpoint_files.digest(one.path) != one.manifest.get("digest")


def _lacks_its_note(run: Run) -> bool:
    """Whether the file that names the best checkpoint is damaged, gone or not written yet. A run without a
    config never has one."""
    return run.config.exists() and not checkpoint_files.noted_name(run.checkpoints)


def _to_be_evaluated(run: Run) -> str:
    """The name of the checkpoint that the run's request has evaluated; "" if it names none."""
    try:
        text = run.request_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    # Not parsed as YAML, because hundreds are read at a time.
    found = re.search(r"^checkpoint: ['\"]?(.+?)['\"]?$", text, re.MULTILINE)
    return Path(found[1]).name if found else ""


def old_probes() -> list[Path]:
    """doctor's probe folders, except those into which a job may still write."""
    found = [path for path in probe_job.probes_root().glob("probe-*") if path.is_dir()]
    return [path for path in found if time.time() - path.stat().st_mtime > PROBE_SECONDS]


def size_of(path: Path) -> int:
    """The bytes that are free once it is deleted: none of a file that has another name, as in a copy by
    `cp -al`."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(inner) for inner in path.iterdir())
    found = path.lstat()
    return found.st_size if found.st_nlink == 1 else 0


def delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def mark(run: Run) -> tuple[int, int] | None:
    """Changes with whatever happens to the run: each of its jobs, from its submission on, writes events."""
    try:
        found = run.events.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def delete_all(
    found: Found, marks: Sequence[tuple[Run, tuple[int, int] | None]]
) -> tuple[Found, dict[str, str], list[tuple[str, str]]]:
    """Deletes. Returns what was deleted; run -> why it refused (the rest of that run is skipped); and the
    runs left alone because something has happened to them since their `marks` were taken: verifying
    checkpoints takes minutes, in which a run may have been resumed."""
    deleted: Found = []
    refused: dict[str, str] = {}
    active: dict[str, str] = {}
    for name, path, why, size in found:
        if any(run.name == name and mark(run) != before for run, before in marks):
            active[name] = "something has happened to it just now"
        if name in refused or name in active:
            continue
        try:
            delete(path)
            deleted.append((name, path, why, size))
        except OSError as error:
            refused[name] = refusal(error)
    return deleted, refused, list(active.items())


def removable(run: Run, keep: int, doubts: dict[str, list[str]]) -> list[tuple[Path, str]]:
    """(file, why it may be deleted) for a run that is not active. `doubts`: from `doubtful`. Raises OSError.

    Only checkpoints of the right size count among the newest; those without a manifest never do.
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
    kept = {one.path.name for one in valid[-keep:]}.union(*doubts.values())
    kept.add(checkpoint_files.noted_name(run.checkpoints) or "")
    kept.add(_to_be_evaluated(run))
    lacks = _lacks_its_note(run)
    if best := (checkpoint_files.of_told_best if lacks else checkpoint_files.best)(run.checkpoints):
        kept.add(best.path.name)
    whole = {one.path.name for one in valid}
    for path in sorted(run.checkpoints.iterdir()):
        name = path.name.removesuffix(".json")
        if LEFTOVER.fullmatch(path.name):
            found.append((path, "unfinished or damaged"))
        elif OURS.fullmatch(name) and name not in kept:
            # With no intact checkpoint left, a doubtful one may be all that the run has.
            if name in whole:
                found.append((path, OLDER))
            elif valid:
                found.append((path, "unfinished: no valid manifest"))
    return found
