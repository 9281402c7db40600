"""Ends all jobs of runs, including those that are submitted or requeued meanwhile."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

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


class Jobs(msgspec.Struct):
    """The jobs of a run that may be alive."""

    run: Run
    past: History
    far: dict[str, str]
    """Local ones on other machines, which cannot be ended from here: job -> host."""
    chains: dict[str, int]
    """Local ones on this machine: job -> pid."""
    others: dict[str, list[str]]
    """Those of further executors."""
    queued: list[str] = []
    """Slurm's."""

    @property
    def all(self) -> list[str]:
        others = (job for jobs in self.others.values() for job in jobs)
        return list(dict.fromkeys([*self.queued, *self.chains, *others, *self.far]))


def cancel(chosen: Sequence[Run], lost: bool = False) -> tuple[list[tuple[Run, list[str]]], list[UserError]]:
    """Cancels runs. Returns the jobs of each that were told to end (`wait` handles those that come back), and
    why other runs were not cancelled: Slurm cannot be asked or refuses, or a local job is on another machine.

    Slurm is asked once and told once, since a sweep has up to a thousand runs. All marks are written first: a
    job that is exiting at this moment sees its run's and submits no successor.

    `lost`: local jobs on other machines count as ended.
    """
    found: list[Jobs] = []
    refused: list[UserError] = []

    def done(work: Callable[[], None]) -> bool:
        try:
            work()
        except UserError as error:  # the others are still cancelled
            refused.append(error)
            return False
        return True

    for run in chosen:
        done(partial(lambda run: found.append(_outside_slurm(run, lost)), run))
    answer = slurm_queries.ask({id for one in found for id in _slurm_ids(one.run, one.past)}, patience=60)
    found = [one for one in found if done(partial(_add_queued, one, answer))]
    by = machine.user()
    found = [one for one in found if not one.all or done(partial(_mark, one.run, by))]
    told = _told_together([one for one in found if one.queued])
    found = [one for one in found if not one.all or done(partial(_end, one, by, told))]
    return [(one.run, one.all) for one in found], refused


def _outside_slurm(run: Run, lost: bool) -> Jobs:
    """Raises UserError for a run that cannot be read, and, unless `lost`, for a job on another machine."""
    past = states.past_of(run)
    far = _far_away(run, past)
    if far and not lost:
        raise UserError(
            f"{run.name} was started on {', '.join(far.values())}: run this command there; if that machine "
            "is gone for good, add --lost"
        )
    return Jobs(run, past, far, _local_chains(run, past), _of_other_executors(run, past))


def _add_queued(one: Jobs, answer: slurm_queries.Answer) -> None:
    """Adds the run's Slurm jobs that are alive. Raises UserError if the queue cannot be seen."""
    run, ids = one.run, _slurm_ids(one.run, one.past)
    for problem in answer.problems if ids else ():
        if problem.startswith("squeue"):
            raise UserError(
                f"cannot tell whether the jobs of {run.name} are alive: {problem}; try again where Slurm "
                "works"
            )
    answer, strangers = _own(run, one.past, ids, answer)
    for stranger in strangers:
        what = f"{stranger.user or 'somebody'}'s {stranger.name or stranger.command}"
        print(
            f"{run.name}: job {stranger.id} now belongs to something else ({what}), so it is left alone "
            f"(scancel {stranger.id} would end it)",
            file=sys.stderr,
        )
    one.queued = sorted(id for id in ids if answer.job(id).alive)


def _told_together(found: Sequence[Jobs]) -> bool:
    """Ends the Slurm jobs of several runs by one call. False if that failed for any: each is then told on its
    own, so that an error is about its run alone."""
    if len(found) < 2:
        return False
    try:
        executors.named("slurm").end(found[0].run, [id for one in found for id in one.queued])
    except UserError:
        return False
    return True


def _end(one: Jobs, by: str, told: bool) -> None:
    """Ends the jobs of a marked run; with `told`, Slurm's know already. Raises UserError if one refuses."""
    try:
        for executor, jobs in (("local", list(one.chains)), ("slurm", one.queued), *one.others.items()):
            if jobs and not (told and executor == "slurm"):
                executors.named(executor).end(one.run, jobs)
    except UserError:
        with contextlib.suppress(OSError):
            (one.run.job / files.CANCELLED()).unlink(missing_ok=True)  # the run goes on
        raise
    # Also if the run was cancelled before: what was alive now has been submitted since.
    with contextlib.suppress(OSError):  # the mark and the jobs say so, too
        events.append(one.run.events, "cancelled", by=by)


def _mark(run: Run, by: str) -> None:
    """Marks the run as cancelled. Raises UserError for another user's."""
    mark = json.dumps({"time": events.now(), "by": by}).encode()
    try:
        run.job.mkdir(exist_ok=True)
        write_atomically(run.job / files.CANCELLED(), mark)
    except PermissionError:
        raise UserError(f"{run.path} belongs to another user: only that user can cancel the run") from None
    except OSError as error:  # the disk may be full: all the more reason to end what fills it
        print(f"{run.name}: {refusal(error)}; its jobs are told to end all the same", file=sys.stderr)


def wait(ended: Sequence[tuple[Run, list[str]]]) -> list[list[str]]:
    """Waits, PATIENCE at most, until all jobs of the cancelled runs are gone. Reads their events again each
    time (there may be a successor by now) and cancels pending jobs again (one may have been requeued).

    Adds the jobs found alive to those of each run; returns what is left of each."""
    give_up = time.monotonic() + PATIENCE
    pause = 0.2
    left: list[list[str]] = [[] for _ in ended]
    open_runs = [at for at, (_, jobs) in enumerate(ended) if jobs]
    while open_runs:
        pasts = {at: history.read(ended[at][0]) for at in open_runs}
        ids = {at: _slurm_ids(ended[at][0], past) for at, past in pasts.items()}
        answer = slurm_queries.ask(set().union(*ids.values()), patience=60)
        waiting = []
        for at, past in pasts.items():
            run, jobs = ended[at]
            own, _ = _own(run, past, ids[at], answer)
            queued = sorted(id for id in ids[at] if own.job(id).alive)
            again = [id for id in queued if own.job(id).state != "COMPLETING"]
            # A job that is still running has had its signal; one that was requeued meanwhile has not, nor has
            # a successor.
            waiting += [id for id in again if own.job(id).pending or id not in jobs]
            jobs += [id for id in again if id not in jobs]
            others = (job for them in _of_other_executors(run, past).values() for job in them)
            left[at] = [*queued, *local_jobs.local_chains(run), *others]
        open_runs = [at for at in open_runs if left[at]]
        if not open_runs or time.monotonic() > give_up:
            break
        if waiting:
            executors.named("slurm").end(ended[open_runs[0]][0], waiting)
        time.sleep(pause)
        pause = min(2.0, pause * 1.5)
    return left


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
