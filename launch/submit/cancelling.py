"""Ends all jobs of a run, including those that are submitted or requeued meanwhile."""

from __future__ import annotations

import contextlib
import json
import sys
import time

from jobs.run import events, files
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UserError, refusal
from jobs.run.past import History
from jobs.slurm import queries as slurm_queries
from launch.observe import history, local_jobs, states
from launch.submit import executors, identity, machine

PATIENCE = 180.0
"""Seconds to wait for the jobs to be gone: Slurm's KillWait, plus a requeue that was on its way."""

STARTING = 30.0
"""Seconds that a local chain may take from its submission until it has recorded its process id."""


def cancel(run: Run, lost: bool = False) -> list[str]:
    """Cancels a run, and returns the jobs that were told to end; `wait` handles those that come back.

    The mark is written first: a job that is exiting at this moment sees it and submits no successor.

    `lost`: local jobs on other machines, which cannot be ended from here, count as ended.

    Raises UserError if Slurm cannot be asked or refuses, and for a local job on another machine.
    """
    past = states.past_of(run)
    far = _far_away(run, past)
    if far and not lost:
        raise UserError(
            f"{run.name} was started on {', '.join(far.values())}: run this command there; if that machine "
            "is gone for good, add --lost"
        )
    chains = _local_chains(run, past)
    alive = _in_the_queue(run, past)
    others = _of_other_executors(run, past)
    if not alive and not chains and not others and not far:
        return []
    by = machine.user()
    try:
        _mark(run, by)
    except OSError as error:  # the disk may be full: all the more reason to end what fills it
        print(f"{run.name}: {refusal(error)}; its jobs are told to end all the same", file=sys.stderr)
    try:
        for executor, jobs in (("local", list(chains)), ("slurm", alive), *others.items()):
            if jobs:
                executors.named(executor).end(run, jobs)
    except UserError:
        with contextlib.suppress(OSError):
            (run.job / files.CANCELLED()).unlink(missing_ok=True)  # the run goes on
        raise
    # Also if the run was cancelled before: what was alive now has been submitted since.
    with contextlib.suppress(OSError):  # the mark and the jobs say so, too
        events.append(run.events, "cancelled", by=by)
    return list(dict.fromkeys([*alive, *chains, *(job for jobs in others.values() for job in jobs), *far]))


def _in_the_queue(run: Run, past: History) -> list[str]:
    """The run's Slurm jobs that are alive. Raises UserError if the queue cannot be seen."""
    ids = _slurm_ids(run, past)
    answer = slurm_queries.ask(ids, patience=60)
    for problem in answer.problems:
        if problem.startswith("squeue"):
            raise UserError(
                f"cannot tell whether the jobs of {run.name} are alive: {problem}; try again where Slurm "
                "works"
            )
    answer, strangers = _own(run, past, ids, answer)
    for stranger in strangers:
        what = f"{stranger.user or 'somebody'}'s {stranger.name or stranger.command}"
        print(
            f"{run.name}: job {stranger.id} now belongs to something else ({what}), so it is left alone "
            f"(scancel {stranger.id} would end it)",
            file=sys.stderr,
        )
    return sorted(id for id in ids if answer.job(id).alive)


def _mark(run: Run, by: str) -> None:
    """Marks the run as cancelled: a job that is exiting at this moment sees it and submits no successor."""
    mark = json.dumps({"time": events.now(), "by": by}).encode()
    try:
        run.job.mkdir(exist_ok=True)
        write_atomically(run.job / files.CANCELLED(), mark)
    except PermissionError:
        raise UserError(f"{run.path} belongs to another user: only that user can cancel the run") from None


def wait(run: Run, ended: list[str]) -> list[str]:
    """Waits, PATIENCE at most, until all jobs of a cancelled run are gone. Reads its events again each time
    (there may be a successor by now) and cancels pending jobs again (one may have been requeued).

    Adds the jobs found alive to `ended`; returns what is left."""
    give_up = time.monotonic() + PATIENCE
    pause = 0.2
    while True:
        past = history.read(run)
        ids = _slurm_ids(run, past)
        answer, _ = _own(run, past, ids, slurm_queries.ask(ids, patience=60))
        left = sorted(id for id in ids if answer.job(id).alive)
        again = [id for id in left if answer.job(id).state != "COMPLETING"]
        ended += [id for id in again if id not in ended]
        left += local_jobs.local_chains(run)
        left += [job for jobs in _of_other_executors(run, past).values() for job in jobs]
        if not left or time.monotonic() > give_up:
            return left
        # A job that is still running has had its signal; one that was requeued meanwhile has not.
        waiting = [id for id in again if answer.job(id).pending]
        if waiting:
            executors.named("slurm").end(run, waiting)
        time.sleep(pause)
        pause = min(2.0, pause * 1.5)


def _own(
    run: Run, past: History, ids: set[str], answer: slurm_queries.Answer
) -> tuple[slurm_queries.Answer, list[slurm_queries.Job]]:
    """(the answer without jobs that are not this run's, those of them that are alive): ids are reused."""
    noted = {job.id: job for job in past.jobs.values()}
    strange = {id for id in ids if identity.is_stranger(run, past, answer.job(id), noted.get(id))}
    living = [answer.job(id) for id in sorted(strange) if answer.job(id).alive]
    return identity.without(answer, strange), living


def _of_other_executors(run: Run, past: History) -> dict[str, list[str]]:
    """The jobs alive in executors other than Slurm and this machine, by executor."""
    found: dict[str, list[str]] = {}
    for job in past.jobs.values():
        other = job.executor in executors.names() and job.executor not in ("slurm", "local")
        if other and executors.named(job.executor).is_alive(run, job.id):
            found.setdefault(job.executor, []).append(job.id)
    return found


def _far_away(run: Run, past: History) -> dict[str, str]:
    """Local jobs that may be alive on another machine: job -> its host."""
    jobs = [job.id for job in past.jobs.values() if job.state in ("submitted", "started", "requeued")]
    hosts = {job: local_jobs.elsewhere(run, job) for job in jobs}
    return {job: host for job, host in hosts.items() if host}


def _slurm_ids(run: Run, past: History) -> set[str]:
    """Every Slurm job of the run that may be alive, including successors submitted in advance."""
    over = {job.id for job in past.jobs.values() if job.state == "finished"}
    ids = {job.id for job in past.jobs.values()} | {one.job for one in past.incarnations}
    ids = {id for id in ids - over if slurm_queries.is_slurm(id)}
    for path in run.job.glob(files.PRESUBMITTED(JOB="*")):
        try:
            ids.add(path.read_text().strip())
        except FileNotFoundError:  # its job has just removed it
            continue
    return {id for id in ids if slurm_queries.is_slurm(id)}


def _local_chains(run: Run, past: History) -> dict[str, int]:
    """The local chains to end, job -> pid; waits for one that is only just starting."""
    give_up = time.monotonic() + STARTING
    while True:
        chains = local_jobs.local_chains(run)
        starting = (job.id for job in past.jobs.values() if job.id.startswith("local-"))
        if all(id in chains or not local_jobs.local_job(run, id) for id in starting):
            return chains
        if time.monotonic() > give_up:
            return chains
        time.sleep(0.1)  # until it has recorded its process id
