"""What the batch script does when srun has ended: `python -m jobs.train.afterwards RUN --exit-code N`.

Its own exit code says how the batch script goes on: 75 start the ranks again in this allocation; anything
else is the job's exit code: 0 only when the training is finished, since the evaluation depends on it.

A training that saved and left (85) must come back, by whichever way the cluster allows: Slurm has requeued
the job already; `scontrol requeue`; or, where requeueing is forbidden or the partition cancels, a successor:
the same script submitted again. Whoever waits for this job is moved to the successor while this job still
lives, for a dependency that can never be fulfilled would be cancelled at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import events, exit_codes, notify
from jobs.errors import run_command
from jobs.run_directory import Run
from jobs.train import budget
from jobs.train.checkpoints import newest_start
from jobs.train.task import job_id

AGAIN_HERE = 75
COMMAND_SECONDS = 60.0
UNREADABLE_SECONDS = 60.0
EXCLUDE_SECONDS = 5.0

# What Slurm says to a requeue of a job that it has requeued itself.
ALREADY = re.compile(r"pending execution", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """The answer to the batch script, and what to tell the reader of the job's log."""

    code: int
    words: str


@dataclass(frozen=True)
class Answer:
    ok: bool
    text: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.train.afterwards", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--exit-code", type=int, help="the exit code of srun")
    parser.add_argument(
        "--presubmit",
        action="store_true",
        help="before the training: submit the successor already, for a partition that kills without grace",
    )
    arguments = parser.parse_args()
    run = Run(arguments.run.resolve())
    if arguments.presubmit:
        outcome = presubmit(run)
    elif arguments.exit_code is None:
        parser.error("--exit-code or --presubmit is required")
    else:
        outcome = after_srun(run, arguments.exit_code)
    print(f"baton: {outcome.words}", flush=True)
    return outcome.code


def after_srun(run: Run, code: int) -> Outcome:
    """What follows on srun's exit code. Writes the events, does the requeueing, tells who wants to know."""
    outcome = _after_srun(run, code)
    if code == exit_codes.FINISHED:
        notify.about(run, "finished", outcome.words)
    elif outcome.words.startswith("stopped"):
        notify.about(run, "stopped", outcome.words)
    elif outcome.code == AGAIN_HERE:
        notify.about(run, "failed", outcome.words)
    return outcome


def _after_srun(run: Run, code: int) -> Outcome:
    if code == exit_codes.FINISHED:
        _withdraw_presubmitted(run)
        return Outcome(0, "training is finished")
    job = job_id() or "unknown"
    if by := _cancelled(run, job):
        _withdraw_presubmitted(run)
        return Outcome(code, f"cancelled by {by}: not started again")
    if code == exit_codes.SUPERSEDED or _later_start(run, job):
        return _give_way(run, job, code)
    if code == exit_codes.RESUME:
        return _come_back(run, job, code, exclude=())
    state = job_state()
    if state not in ("RUNNING", "UNKNOWN"):
        # Preempted without grace, timed out, a node lost: Slurm has ended it, the failure is none of ours.
        return _come_back(run, job, code, exclude=())
    return _after_failure(run, job, code)


def _after_failure(run: Run, job: str, code: int) -> Outcome:
    records = _read_patiently(run.events)
    if records is not None:
        _record_failure(run, job, code, records)
        records = budget.read(run.events)
    verdict = budget.verdict(records)
    if records and records[-1]["event"] == "stopped":
        _withdraw_presubmitted(run)
        return Outcome(code, f"stopped: {records[-1]['reason']}")
    if code == exit_codes.USER_ERROR or verdict.stop:
        reason = verdict.stop or "the configuration is wrong; the log says where"
        events.append(
            run.events, "stopped", stage="train", job=job, start=_last_start(records), reason=reason
        )
        _withdraw_presubmitted(run)
        return Outcome(code, f"stopped: {reason}")
    if not verdict.known:
        # Perhaps another node can read it. Nothing is known, so it is neither the end nor a fresh start here.
        return _come_back(run, job, code, exclude=())
    others = [node for node in verdict.exclude if os.environ.get("SLURM_JOB_ID")]
    if others:
        return _come_back(run, job, code, exclude=others)
    return Outcome(AGAIN_HERE, f"a rank failed (exit code {code}): starting again in this allocation")


# How to give way, and how to come back


def _give_way(run: Run, job: str, code: int) -> Outcome:
    """A later start of the run is under way, in another job or in this one after a requeue that it missed.
    Coming back would fence that one off in turn."""
    _withdraw_presubmitted(run)
    owner = str((_later_start(run, job) or {}).get("job") or "")
    moved: list[str] = []
    if owner not in ("", job) and os.environ.get("SLURM_JOB_ID"):
        # What waits for the training waits for the job that goes on with it.
        moved = _move_dependents(job, lambda text: _rename(text, job, owner), but=owner)
    words = f"a later start of the run{f' (job {owner})' if owner else ''} goes on: this one ends"
    followers = f"; {', '.join(moved)} now wait{'s' * (len(moved) == 1)} for it" if moved else ""
    return Outcome(code if code != exit_codes.RESUME else exit_codes.SUPERSEDED, words + followers)


def _later_start(run: Run, job: str) -> dict[str, Any] | None:
    """Who holds the run's newest start (`claim_start` in __main__.py), if that came after this job's own."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    newer = None
    for number in range(newest_start(run.job), 0, -1):
        try:
            owner = json.loads((run.job / f"start-{number}").read_bytes())
            if owner["job"] == job and (owner["restart"] <= restart or not os.environ.get("SLURM_JOB_ID")):
                return newer
        except (OSError, ValueError, KeyError, TypeError):
            continue  # torn, on a full disk: it says nothing
        newer = newer or owner
    return None


def _come_back(run: Run, job: str, code: int, exclude: Sequence[str]) -> Outcome:
    """Sees to it that the job runs again; the batch script then ends with `code`."""
    if not os.environ.get("SLURM_JOB_ID"):
        return Outcome(code, "saved; start it again to go on")
    if waiting := _presubmitted(run, job):
        # It waits for this job to end in any way but success.
        _note_requeue(run, job, "successor", successor=waiting)
        return Outcome(code, f"job {waiting} was submitted in advance and goes on")
    answer = _call(["scontrol", "requeue", job])
    if answer.ok:
        if exclude and not _exclude(exclude):
            exclude = ()
        _note_requeue(run, job, "scontrol", exclude=exclude)
        return Outcome(code, "requeued" + (f", away from {', '.join(exclude)}" if exclude else ""))
    if ALREADY.search(answer.text):
        _note_requeue(run, job, "slurm")
        return Outcome(code, "Slurm has requeued the job already")
    print(f"baton: requeueing is refused ({answer.text}); submitting a successor", flush=True)
    options = [f"--exclude={','.join(exclude)}"] if exclude else []
    successor, text = _submit_successor(run, f"afterany:{job}", options)
    if successor is None:
        command = f"sbatch {_script(run)}"
        reason = f"could neither requeue the job ({answer.text}) nor submit a successor ({text})"
        events.append(run.events, "stopped", stage="train", job=job, reason=f"{reason}; to go on: {command}")
        return Outcome(code, f"{reason}; to go on, type: {command}")
    # First the dependents, then everything else: there may be little time left.
    moved = _move_dependents(job, lambda text: _rename(text, job, successor), but=successor)
    _note_requeue(run, job, "successor", successor=successor, exclude=exclude)
    followers = f"; {', '.join(moved)} now wait{'s' * (len(moved) == 1)} for it" if moved else ""
    return Outcome(code, f"submitted job {successor}, which goes on{followers}")


def presubmit(run: Run) -> Outcome:
    """Submits the successor while nothing is wrong yet, for partitions that end a job without any notice.

    It runs if this job ends in any way but success, and is cancelled by Slurm if this job succeeds. Who
    depends on this job is content with either.
    """
    job = job_id() or "unknown"
    if not os.environ.get("SLURM_JOB_ID") or _cancelled(run, job) or _presubmitted(run, job):
        return Outcome(0, "no successor to submit")
    successor, text = _submit_successor(run, f"afternotok:{job}", ["--kill-on-invalid-dep=yes"])
    if successor is None:
        return Outcome(0, f"could not submit a successor in advance: {text}")
    (run.job / f"presubmitted-{job}").write_text(successor)
    _move_dependents(job, lambda text: _either(text, job, successor), but=successor)
    return Outcome(0, f"submitted job {successor} in advance; it goes on if this one is killed")


def _submit_successor(run: Run, dependency: str, options: Sequence[str]) -> tuple[str | None, str]:
    """Submits the run's script once more: (job id, what sbatch said). Overrides the header's dependency, for
    what the first job waited for (the preparation) is long gone."""
    command = ["sbatch", "--parsable", f"--dependency={dependency}", *options]
    if element := os.environ.get("SLURM_ARRAY_TASK_ID"):
        command.append(f"--array={element}")
    answer = _call([*command, str(_script(run))], clean_environment(os.environ))
    if not answer.ok:
        return None, answer.text
    identifier = answer.text.splitlines()[-1].split(";")[0].strip()
    return (f"{identifier}_{element}" if element else identifier), answer.text


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what belongs to this job: a successor that inherited SLURM_RESTART_COUNT or a
    node list would take itself for this one."""
    ours = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "PMI")
    names = ("BATON_JOB", "BATON_RESTART", "BATON_START", "BATON_RUN", "BATON_HEARTBEAT_FD")
    return {
        name: value
        for name, value in environ.items()
        if name == "SLURM_CONF" or not (name.startswith(ours) or name in names)
    }


def _script(run: Run) -> Path:
    return Path(os.environ.get("BATON_SCRIPT") or run.job / "train.sbatch")


def _exclude(nodes: Sequence[str]) -> bool:
    """Keeps the job, just requeued, off these nodes, beside those it avoids already. False if Slurm refuses.

    Only a pending job can be told so, and it may take a moment until the requeued one counts as that.
    """
    job = os.environ["SLURM_JOB_ID"]
    shown = _call(["scontrol", "show", "job", "-o", job])
    before = re.search(r"\bExcNodeList=(\S+)", shown.text)
    names = [before[1]] if before and before[1] != "(null)" else []
    command = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join([*names, *nodes])}"]
    deadline = time.monotonic() + EXCLUDE_SECONDS
    while not (answer := _call(command)).ok and time.monotonic() < deadline:
        time.sleep(0.2)
    if not answer.ok:
        print(f"baton: could not exclude {', '.join(nodes)}: {answer.text}", flush=True)
    return answer.ok


# Who waits for this job


def _move_dependents(job: str, change: Callable[[str], str], but: str = "") -> list[str]:
    """Changes the dependency of every job of ours that names `job`; returns the ids of those changed."""
    shown = _call(["squeue", "--me", "--noheader", "--states=PENDING", "--format=%i %E"])
    if not shown.ok:
        print(f"baton: cannot see which jobs depend on this one: {shown.text}", flush=True)
    moved = []
    for line in shown.text.splitlines() if shown.ok else []:
        identifier, _, dependency = line.partition(" ")
        before = re.sub(r"\([^)]*\)", "", dependency.strip())
        after = change(before)
        if identifier == but or after == before:
            continue
        answer = _call(["scontrol", "update", f"JobId={identifier}", f"Dependency={after}"])
        if answer.ok:
            moved.append(identifier)
        else:
            print(f"baton: job {identifier} still depends on {job}: {answer.text}", flush=True)
    return moved


def _rename(dependency: str, job: str, successor: str) -> str:
    """`dependency` with `successor` in the place of `job`; afternotok and the like are renamed with it."""
    return re.sub(rf"(?<![\d_]){re.escape(job)}(?![\d_])", successor, dependency)


def _either(dependency: str, job: str, successor: str) -> str:
    """`dependency` so that the success of either job will do. Only where that is all it waits for: Slurm does
    not mix "and" with "or"."""
    if dependency != f"afterok:{job}":
        return dependency
    return f"afterok:{job}?afterok:{successor}"


# What is known about this job


def job_state() -> str:
    """Slurm's state of this job, such as RUNNING; UNKNOWN outside of Slurm or when it cannot be asked."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return "UNKNOWN"
    answer = _call(["scontrol", "show", "job", "-o", job])
    match = re.search(r"\bJobState=(\w+)", answer.text)
    return match[1] if answer.ok and match else "UNKNOWN"


def cancelled_by(run: Run) -> str | None:
    """Who cancelled the run since it was last submitted, if anybody has."""
    if (run.job / "cancelled").exists():
        return "the user"
    by = None
    for record in budget.read(run.events) or []:
        if record["event"] == "cancelled":
            by = str(record.get("by") or "the user")
        elif record["event"] == "submitted" and record.get("stage", "train") == "train":
            by = None
    return by


def _cancelled(run: Run, job: str) -> str | None:
    """As `cancelled_by`, but sees a plain scancel too, and notes it as an event."""
    by = cancelled_by(run)
    if by is None and job_state() == "CANCELLED":
        by = "scancel"
        events.append(run.events, "cancelled", stage="train", job=job, by=by)
    return by


def _presubmitted(run: Run, job: str) -> str | None:
    path = run.job / f"presubmitted-{job}"
    return path.read_text().strip() if path.exists() else None


def _withdraw_presubmitted(run: Run) -> None:
    """The successor that was submitted in advance is not wanted any more."""
    if waiting := _presubmitted(run, job_id() or ""):
        _call(["scancel", waiting])


def _record_failure(run: Run, job: str, code: int, records: Sequence[Mapping[str, object]]) -> None:
    """Notes a failure that no supervisor lived to note, so that it counts."""
    memory = run.job / "failures-noted"
    before = int(memory.read_text()) if memory.exists() else 0
    now = sum(
        record["event"] in ("failed", "stopped") and record.get("stage") == "train" for record in records
    )
    noted = now > before
    memory.write_text(str(now if noted else now + 1))
    if noted:
        return
    start = _last_start(records)
    number = f" (signal {code - 128})" if code > 128 else ""
    events.append(
        run.events, "failed", stage="train", job=job, start=start, exit_code=code,
        reason=f"srun ended with exit code {code}{number}, and no rank lived to say why",
    )  # fmt: skip


def _last_start(records: Sequence[Mapping[str, object]] | None) -> int | None:
    found = [record["start"] for record in records or [] if record["event"] == "started"]
    return int(str(found[-1])) if found and found[-1] is not None else None


def _note_requeue(
    run: Run, job: str, how: str, successor: str | None = None, exclude: Sequence[str] = ()
) -> None:
    events.append(
        run.events, "requeued", stage="train", job=job, how=how, successor=successor,
        exclude=list(exclude) or None,
    )  # fmt: skip


def _read_patiently(path: Path) -> list[dict[str, object]] | None:
    """A run's events; None if they cannot be read for a whole minute (a file server that restarts)."""
    deadline = time.monotonic() + UNREADABLE_SECONDS
    while (records := budget.read(path)) is None and time.monotonic() < deadline:
        time.sleep(1.0)
    return records


def _call(command: Sequence[str], env: Mapping[str, str] | None = None) -> Answer:
    """Runs one of Slurm's commands; never raises, since there is always another way to try."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, env=env
        )
    except FileNotFoundError:
        return Answer(False, f"there is no {command[0]} on this node")
    except subprocess.TimeoutExpired:
        return Answer(False, f"{command[0]} gave no answer for {COMMAND_SECONDS:.0f} s")
    if done.returncode == 0:
        return Answer(True, done.stdout.strip())
    return Answer(False, " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}")


if __name__ == "__main__":
    run_command(main)
