"""What the batch script does when srun has ended: `python -m jobs.supervise.afterwards RUN --exit-code N`.

Its own exit code says how the batch script goes on: 75 start the ranks again in this allocation; anything
else is the job's exit code: 0 only when the training is finished, since the evaluation depends on it.

A training that saved and left (85) must come back, by whichever way the cluster allows: Slurm has requeued
the job already, or does so when it ends (`slurm.fate`); `scontrol requeue`; or, where requeueing is forbidden
or the partition cancels, a successor (successor.py). Whoever waits for this job is moved to the successor
while this job still lives, for a dependency that can never be fulfilled would be cancelled at its end.

Within a grace time the same may happen to a training that is finished (0): then the requeued job, or the
successor, finds that there is nothing left to do (jobs/train/__main__.py) and ends with 0 at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.run import events, exit_codes, files, notify, story
from jobs.run.directory import Run, newest_start_seen, write_atomically
from jobs.run.errors import MALFORMED, run_command
from jobs.run.past import History
from jobs.run.streams import TolerantStream
from jobs.run.task import job_id, slurm_id
from jobs.slurm import calls as slurm
from jobs.slurm import successor
from jobs.supervise import budget

AGAIN_HERE = 75
UNREADABLE_SECONDS = 60.0
UNWRITABLE_SECONDS = 5.0
EXCLUDE_SECONDS = 5.0

NO_PROGRAM = {
    126: " (a program could not be run on the node; the log names it)",
    127: " (a program, or a library of its own, was not found on the node; the log names it)",
}

# Slurm's answer to a requeue of a job that it has requeued itself.
ALREADY = re.compile(r"pending execution", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """The exit code for the batch script, and the message for the job's log."""

    code: int
    message: str
    notice: str = ""
    """What to notify the user of: finished, failed or stopped; "" for nothing."""


def main() -> int:
    sys.stdout, sys.stderr = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m jobs.supervise.afterwards", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--exit-code", type=int, help="the exit code of srun")
    parser.add_argument(
        "--presubmit",
        action="store_true",
        help="before the training: submit the successor already, for a partition that kills without grace",
    )
    parser.add_argument("--if-ending", action="store_true", help="--presubmit only near the job's end")
    arguments = parser.parse_args()
    run = Run(arguments.run.resolve())
    if arguments.presubmit:
        print(f"baton: {successor.presubmit(run, arguments.if_ending)}", flush=True)
        return 0
    if arguments.exit_code is None:
        parser.error("--exit-code or --presubmit is required")
    outcome = after_srun(run, arguments.exit_code)
    print(f"baton: {outcome.message}", flush=True)
    return outcome.code


def after_srun(run: Run, code: int) -> Outcome:
    """Acts on srun's exit code: writes the events, requeues, notifies the user."""
    outcome = _after_srun(run, code)
    if outcome.notice:
        notify.about(run, outcome.notice, outcome.message)
    return outcome


def _after_srun(run: Run, code: int) -> Outcome:
    job = job_id() or "unknown"
    if code == exit_codes.FINISHED and os.environ.get("SLURM_JOB_ID") and not _finished(run):
        # srun also returns 0 if Slurm ends its job step (at the time limit) before the tasks could react.
        code = exit_codes.FAILED
    if code == exit_codes.FINISHED:
        return _finish(run, job)
    if by := _cancelled(run, job):
        _stay_away(run, job)
        return Outcome(code, f"cancelled by {by}: not started again")
    if code == exit_codes.SUPERSEDED or _later_start(run, job):
        return _give_way(run, job, code)
    if code == exit_codes.RESUME:
        return _come_back(run, job, code)
    state = slurm.state()
    if state not in ("RUNNING", "UNKNOWN"):
        # Preempted without grace time, timed out, a node lost: Slurm ended it, so this is not our failure.
        return _come_back(run, job, code)
    return _after_failure(run, job, code)


def _after_failure(run: Run, job: str, code: int) -> Outcome:
    past = _read_with_retries(run.events)
    if past is not None and past.ends_finished and past.finished_by == job:
        # The final state is on disk: something failed at exit, such as a library.
        done = _finish(run, job)
        return dataclasses.replace(done, message=f"{done.message} (after that a rank failed: {code})")
    counted = past is not None and _record_failure(run, job, code, past)
    if counted:
        past = story.attempt(run.events)
    verdict = budget.verdict(past)
    if past and (stopped := past.ends_stopped()):
        _stay_away(run, job)
        return Outcome(code, f"stopped: {stopped}", "stopped")
    if code == exit_codes.USER_ERROR or verdict.stop:
        reason = verdict.stop or "the configuration is wrong; the log says where"
        _say(run, job, "stopped", start=past and past.last_start, reason=reason)
        _stay_away(run, job)
        return Outcome(code, f"stopped: {reason}", "stopped")
    on_slurm = bool(os.environ.get("SLURM_JOB_ID"))
    if not verdict.known or (not counted and on_slurm):
        # Perhaps another node can access it. Restarts that cannot be counted must not repeat here for ever.
        outcome = _come_back(run, job, code)
    elif verdict.exclude and on_slurm:
        outcome = _come_back(run, job, code, verdict.exclude)
    else:
        outcome = Outcome(AGAIN_HERE, f"a rank failed (exit code {code}): starting again in this allocation")
    return dataclasses.replace(outcome, notice=outcome.notice or "failed")


# Ending, giving way, and coming back


def _finish(run: Run, job: str) -> Outcome:
    """Makes the job end as COMPLETED, at once or after it, or its successor, has started again and ended."""
    notice = "" if _found_finished(run) else "finished"
    own = slurm_id()
    fate = slurm.fate(slurm.this_job()) if own else "own"
    message = "training is finished"
    if own and fate == "preempted" and slurm.forbid_requeue(own).ok:
        outcome = _succeed(run, job, 0, f"{message}, but this preemption ends the job for good")
        return dataclasses.replace(outcome, message=f"{message}; {outcome.message}", notice=notice)
    successor.withdraw(run, job)
    if fate == "requeued":
        _note_requeue(run, job, "slurm")
        message += "; preempted as it was, Slurm requeues the job once more, which then ends at once"
    return Outcome(0, message, notice)


def _found_finished(run: Run) -> bool:
    """Whether an earlier start finished the training, and reported it."""
    newest = newest_start_seen(run.job)
    finishes = [one for one in _past(run).finishes if one.stage == "train"]
    return bool(finishes) and (finishes[-1].start or newest) < newest


def _stay_away(run: Run, job: str) -> None:
    """Keeps this job from coming back, and any successor, too."""
    successor.withdraw(run, job)
    own = slurm_id()
    if own and slurm.fate(slurm.this_job()) != "own":
        slurm.forbid_requeue(own)


def _give_way(run: Run, job: str, code: int) -> Outcome:
    """Ends for good, because a later start of the run is under way: in another job, or in this one after a
    requeue that it missed. Coming back would fence that one off in turn."""
    _stay_away(run, job)
    owner = str((_later_start(run, job) or {}).get("job") or "")
    moved: list[str] = []
    if owner not in ("", job) and os.environ.get("SLURM_JOB_ID"):
        # Jobs that depend on the training now depend on the job that continues it.
        moved = successor.move_dependents(job, lambda text: successor.rename(text, job, owner), but=owner)
    message = f"a later start of the run{f' (job {owner})' if owner else ''} goes on: this one ends"
    return Outcome(code if code != exit_codes.RESUME else exit_codes.SUPERSEDED, message + _followers(moved))


def _later_start(run: Run, job: str) -> dict[str, Any] | None:
    """The owner of the run's newest start, if it came after this job's own; else None."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    newer = None
    for number in range(newest_start_seen(run.job), 0, -1):
        try:
            owner = json.loads((run.job / files.START(N=number)).read_bytes())
            if owner["job"] == job and (owner["restart"] <= restart or not os.environ.get("SLURM_JOB_ID")):
                return newer
        except (OSError, *MALFORMED):
            continue  # torn on a full disk
        newer = newer or owner
    return None


def _come_back(run: Run, job: str, code: int, exclude: Sequence[str] = ()) -> Outcome:
    """Makes the job run again; the batch script then ends with `code`."""
    own = slurm_id()
    if not own:
        return Outcome(code, "saved; start it again to go on")
    fate = slurm.fate(slurm.this_job())
    if fate == "requeued":
        # A successor submitted in advance may wait until the job is back.
        _note_requeue(run, job, "slurm")
        return Outcome(code, "preempted: Slurm requeues the job as it ends")
    if fate == "preempted" and slurm.forbid_requeue(own).ok:
        return _succeed(run, job, code, "this preemption ends the job for good", exclude)
    answer = slurm.call(["scontrol", "requeue", own])
    if answer.ok or ALREADY.search(answer.text):
        if exclude and not _exclude(own, exclude):
            exclude = ()
        successor.withdraw(run, job)
        _note_requeue(run, job, "scontrol" if answer.ok else "slurm", exclude=exclude)
        message = "requeued" if answer.ok else "Slurm has requeued the job already"
        return Outcome(code, message + (f", away from {', '.join(exclude)}" if exclude else ""))
    return _succeed(run, job, code, f"requeueing is refused: {answer.text}", exclude)


def _succeed(run: Run, job: str, code: int, why: str, exclude: Sequence[str] = ()) -> Outcome:
    """Makes another job continue, since this one cannot come back (`why`)."""
    if waiting := successor.presubmitted(run, job):
        # It waits for this job to end without success.
        if exclude and not _exclude(waiting, exclude):
            exclude = ()
        # Those that depend only on this job already accept either.
        change = lambda text: text if "?" in text else successor.rename(text, job, waiting)  # noqa: E731
        moved = successor.move_dependents(job, change, but=waiting)
        _note_requeue(run, job, "successor", waiting, exclude)
        return Outcome(code, f"job {waiting} was submitted in advance and goes on{_followers(moved)}")
    print(f"baton: {why}; submitting a successor", flush=True)
    options = [f"--exclude={','.join(exclude)}"] if exclude else []
    new, text = successor.submit(run, f"afterany:{job}", options)
    if new is None and code == exit_codes.FINISHED:
        command = f"python launch/evaluate.py {run.name}"
        return Outcome(code, f"no successor could be submitted ({text}); to evaluate: {command}")
    if new is None:
        command = f"sbatch {successor.own_script(run)}"
        reason = f"the job cannot come back ({why}), nor could a successor be submitted ({text})"
        _say(run, job, "stopped", reason=f"{reason}; to go on: {command}")
        return Outcome(code, f"stopped: {reason}; to go on, type: {command}", "stopped")
    # The dependents first: there may be little time left.
    moved = successor.move_dependents(job, lambda text: successor.rename(text, job, new), but=new)
    _note_requeue(run, job, "successor", new, exclude)
    return Outcome(code, f"submitted job {new}, which goes on{_followers(moved)}")


def _followers(moved: Sequence[str]) -> str:
    return f"; {', '.join(moved)} now wait{'s' * (len(moved) == 1)} for it" if moved else ""


def _exclude(job: str, nodes: Sequence[str]) -> bool:
    """Excludes nodes from a job, in addition to those already excluded. False if Slurm refuses.

    That is possible only for a pending job, and it may take a moment until a requeued one is pending.
    """
    shown = slurm.call(["scontrol", "show", "job", "-o", job])
    before = re.search(r"\bExcNodeList=(\S+)", shown.text)
    names = [before[1]] if before and before[1] != "(null)" else []
    command = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join([*names, *nodes])}"]
    deadline = time.monotonic() + EXCLUDE_SECONDS
    while not (answer := slurm.call(command)).ok and time.monotonic() < deadline:
        time.sleep(0.2)
    if not answer.ok:
        print(f"baton: could not exclude {', '.join(nodes)}: {answer.text}", flush=True)
    return answer.ok


# What is known about this job


def cancelled_by(run: Run) -> str | None:
    """Who cancelled the run since it was last submitted; None if nobody did."""
    if os.path.exists(run.job / files.CANCELLED()):  # False if it cannot be read: then the job comes back
        return "the user"
    return _past(run).cancelled_by


def _past(run: Run) -> History:
    """The history in the run's events; an empty one if they cannot be read."""
    return story.attempt(run.events) or History()


def _cancelled(run: Run, job: str) -> str | None:
    """As `cancelled_by`, but also detects a plain scancel, and records it as cancel.py does."""
    by = cancelled_by(run)
    if by is None and slurm.is_cancelled(slurm.this_job()):
        by = "scancel"
        with contextlib.suppress(OSError):  # the event says so, too
            (run.job / files.CANCELLED()).touch()
        _say(run, job, "cancelled", by=by)
    return by


def _finished(run: Run) -> bool:
    """Whether the newest start of the training has reported that it is finished. If it could not write that,
    the next start, which finds everything done, will; if nothing can be read, srun's exit code counts."""
    past = _read_with_retries(run.events)
    return past is None or past.ends_finished


def _record_failure(run: Run, job: str, code: int, past: History) -> bool:
    """Makes this failure count: one that no supervisor survived to record is recorded here. False if it could
    not be written."""
    memory = run.job / files.FAILURES_NOTED()
    try:
        before = int(memory.read_text())
    except (OSError, ValueError):  # missing or torn
        before = 0
    now = past.failures_and_stops()
    noted = now > before
    try:
        write_atomically(memory, str(now if noted else now + 1).encode())
    except OSError as error:
        print(f"baton: {memory}: {error}", flush=True)
    if noted:
        return True
    number = f" (signal {code - 128})" if code > 128 else NO_PROGRAM.get(code, "")
    reason = f"srun ended with exit code {code}{number}, and no rank lived to say why"
    return _say(run, job, "failed", start=past.last_start, exit_code=code, reason=reason)


def _note_requeue(
    run: Run, job: str, how: str, successor: str | None = None, exclude: Sequence[str] = ()
) -> None:
    _say(run, job, "requeued", how=how, successor=successor, exclude=list(exclude) or None)


def _say(run: Run, job: str, event: str, **fields: Any) -> bool:
    """Appends an event. On a full disk, retries for some seconds, and then returns False: the event is lost,
    which must not keep the job from coming back."""
    writer = events.Writer(run.events, stage="train", job=job)
    writer.append(event, **fields)
    return writer.flush(UNWRITABLE_SECONDS)


def _read_with_retries(path: Path) -> History | None:
    """The history in a run's events; None if they cannot be read for a minute (a file server restart)."""
    deadline = time.monotonic() + UNREADABLE_SECONDS
    while (past := story.attempt(path)) is None and time.monotonic() < deadline:
        time.sleep(1.0)
    return past


if __name__ == "__main__":
    run_command(main)
