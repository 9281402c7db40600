"""The states of all runs, with at most two queries to Slurm, and the table's row for each."""

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
    """The table's columns, and those that are dropped on a narrow terminal, least important first (`status.py
    RUN` and --json have them all). `best`, `evaluated`: figures.heads of its runs."""
    best, evaluated = f">{best}", f">{evaluated}"
    shown = ("run", "state", ">epoch", ">step", ">s/it", best, evaluated)
    spare = ("job", ">step", evaluated, ">efficiency", ">s/it", ">interrupted", best, ">left", ">epoch")
    return (*shown, ">interrupted", ">efficiency", ">left", "job"), spare


ASK = 10.0
"""Minimum seconds between queries to Slurm with --watch, however often it refreshes."""


class Slurm(NamedTuple):
    """The functions that query Slurm."""

    ask: Callable[[Iterable[str]], Answer] = slurm_queries.ask
    incarnations: Callable[[Iterable[str]], dict[str, list[Job]]] = slurm_queries.incarnations


def asked_now_and_then() -> Slurm:
    """For repeated use: queries Slurm every ASK seconds at most (about new jobs, at once), and not again
    about jobs that have ended."""
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


def all_statuses(now: float, slurm: Slurm, chosen: Sequence[Run]) -> tuple[list[states.Status], Answer]:
    """Every run and preparation, newest first, and Slurm's answer (at most two calls). `chosen`: only these,
    in their order."""
    everything = list(chosen) or [*runs.all_runs(runs.prepare_root()), *runs.all_runs()]
    pasts = [history.attempt(run) for run in everything]
    answer = slurm.ask(id for past in pasts if isinstance(past, History) for id in states.jobs_to_ask(past))
    found = [_status(run, past, answer, now) for run, past in zip(everything, pasts, strict=True)]
    if not chosen:
        found.sort(key=lambda pair: pair[0], reverse=True)
    return [one for _, one in found], answer


def _status(run: Run, past: History | Exception, answer: Answer, now: float) -> tuple[float, states.Status]:
    """(time of submission, status); 0.0 for a run that cannot be read."""
    if isinstance(past, Exception):
        return 0.0, states.unreadable(run, past)
    try:
        return past.submitted or past.last, states.status(run, past, answer, now)
    except Exception as error:
        return 0.0, states.unreadable(run, error)


def cells(one: states.Status, best: str, evaluated: str) -> list[str]:
    """The cells of a row of the table, for these heads."""
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
