"""How all runs stand, with at most two questions to Slurm, and a row of the table for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jobs.run.directory import Run
from jobs.run.past import History
from jobs.slurm import queries as slurm_queries
from jobs.slurm.queries import Answer, Job
from launch.observe import figures, history, states, wording
from launch.submit import runs


def columns(best: str, evaluated: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The table's columns, and which of them a narrow terminal does without, the least needed first
    (`status.py RUN` and --json have it all). `best`, `evaluated`: figures.heads of its runs."""
    best, evaluated = f">{best}", f">{evaluated}"
    shown = ("run", "state", ">epoch", ">step", ">s/it", best, evaluated)
    spare = ("job", ">step", evaluated, ">efficiency", ">s/it", ">interrupted", best, ">left", ">epoch")
    return (*shown, ">interrupted", ">efficiency", ">left", "job"), spare


ASK = 10.0
"""Seconds between two questions to Slurm of --watch, however often it looks at the runs."""


class Slurm(NamedTuple):
    """How Slurm is asked."""

    ask: Callable[[Iterable[str]], Answer] = slurm_queries.ask
    incarnations: Callable[[Iterable[str]], dict[str, list[Job]]] = slurm_queries.incarnations


def asked_now_and_then() -> Slurm:
    """For one who looks again and again: Slurm is asked every ASK seconds at most (of jobs that are new, at
    once), and whether a job has ended is not asked twice."""
    ended: dict[str, Job] = {}
    asked_of: set[str] = set()
    answer, asked = Answer(), -ASK

    def ask(ids: Iterable[str]) -> Answer:
        nonlocal answer, asked, asked_of
        wanted = set(ids)
        if wanted <= asked_of and time.monotonic() - asked < ASK:
            return answer
        answer = slurm_queries.ask(wanted - ended.keys())
        asked, asked_of = time.monotonic(), wanted
        for job in answer.jobs.values():
            if not job.alive and job.state != slurm_queries.UNKNOWN:
                ended[job.id] = job
        answer.jobs = ended | answer.jobs
        return answer

    remembered: dict[frozenset[str], tuple[float, dict[str, list[Job]]]] = {}

    def incarnations(ids: Iterable[str]) -> dict[str, list[Job]]:
        wanted = frozenset(ids)
        if wanted not in remembered or time.monotonic() - remembered[wanted][0] > ASK:
            remembered[wanted] = (time.monotonic(), slurm_queries.incarnations(wanted))
        return remembered[wanted][1]

    return Slurm(ask, incarnations)


def all_statuses(now: float, slurm: Slurm, chosen: Sequence[Run] = ()) -> tuple[list[states.Status], Answer]:
    """Every run and preparation, newest first, and what Slurm said (at most two calls). `chosen`: only these,
    in their order."""
    everything = list(chosen) or [*runs.all_runs(runs.prepare_root()), *runs.all_runs()]
    pasts = [history.attempt(run) for run in everything]
    answer = slurm.ask(id for past in pasts if isinstance(past, History) for id in states.jobs_to_ask(past))
    found = [_status(run, past, answer, now) for run, past in zip(everything, pasts, strict=True)]
    if not chosen:
        found.sort(key=lambda pair: pair[0], reverse=True)
    return [one for _, one in found], answer


def _status(run: Run, past: History | Exception, answer: Answer, now: float) -> tuple[float, states.Status]:
    """(when it was submitted, how it stands)."""
    if isinstance(past, Exception):
        return 0.0, states.unreadable(run, past)
    try:
        return past.submitted or past.last, states.status(run, past, answer, now)
    except Exception as error:
        return 0.0, states.unreadable(run, error)


def cells(one: states.Status, best: str, evaluated: str) -> list[str]:
    """A row of the table, with these columns."""
    return [
        one.name,
        one.words,
        of_total(one.epoch, one.max_epochs),
        of_total(one.step, one.max_steps),
        f"{one.seconds_per_step:.2f}" if one.seconds_per_step else "",
        figures.cell(one.best, best),
        figures.cell(one.evaluated, evaluated),
        f"{one.interruptions}×" if one.interruptions else "",
        f"{one.efficiency:.2f}" if one.efficiency is not None else "",
        wording.span(one.eta_seconds) if one.eta_seconds else "",
        one.job,
    ]


def of_total(done: int | None, total: int | None) -> str:
    if done is None:
        return ""
    return f"{done}/{total}" if total else str(done)
