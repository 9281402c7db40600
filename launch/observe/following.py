"""Follows a run's logs across requeues, ranks and jobs, to the end of the run."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from jobs.run.directory import Run
from jobs.run.errors import MALFORMED
from jobs.slurm import queries as slurm_queries
from launch.observe import history, log_files, states
from launch.observe.log_files import Growing, LogFile
from launch.submit import runs

LOOK = 0.3
"""Seconds between reads of the log files."""
ASK = 15.0
"""Seconds between queries to Slurm."""


def follow(run: Run, arguments: argparse.Namespace, shown: list[str]) -> int:
    """Prints the logs so far and then as they grow, until the run (or the job asked for) has ended.

    `shown`: the first error, if it has been shown already. Returns 0 if the run ended well, else 1.
    """
    seen: dict[Path, Growing] = {}
    sieve = log_files.Sieve()
    events = Growing(run.events)
    begun = time.monotonic()
    asked, state = -ASK, None
    while True:
        past = history.read(run)
        open_jobs = states.jobs_to_ask(past)
        if time.monotonic() - asked > ASK or not open_jobs:  # without open jobs, nothing is queried
            answer = slurm_queries.ask(open_jobs)
            asked = time.monotonic()
            state = states.judge(run, past, answer, history.progress(run), time.time())
        # Decided before the last read, so that the last lines are not missed.
        ended = state is not None and not state.lives and state.code != "stuck"
        trained = arguments.job == "train" and past.finished is not None
        ended = ended or trained
        files = log_files.find(run, past, arguments.job or "", arguments.rank)
        for file in files:
            if file.path not in seen:
                first = time.monotonic() - begun < LOOK / 2 or not seen
                seen[file.path] = growing = Growing(file.path)
                there = _sifted(sieve, file, growing.lines(), arguments.all)
                for line in there[-arguments.lines :] if first and arguments.lines else there:
                    print(_prefix(file, len(files) > 1) + line, flush=True)
        for file in files:
            for line in _sifted(sieve, file, seen[file.path].lines(last=ended), arguments.all):
                print(_prefix(file, len(files) > 1) + line, flush=True)
        for line in events.lines():
            text = _line_of(line)
            if text:
                print(text, flush=True)
        if ended and state is not None:
            error = log_files.first_error(run, history.read(run), arguments.job or "")
            if error and error != shown:
                print("\n".join(error))
            left = sieve.left_out()
            if left:
                print(f"-- left out: {left}; --all shows them")
            print(f"-- {state.words}; next: python launch/status.py {runs.typed(run)}")
            return 0 if trained or state.code == "finished" else 1
        time.sleep(LOOK)


def _sifted(sieve: log_files.Sieve, file: LogFile, lines: list[str], everything: bool) -> list[str]:
    return lines if everything else sieve.take(file.path, lines)


def _prefix(file: LogFile, several: bool) -> str:
    if not several:
        return ""
    return f"[{file.stage or file.job} {'batch' if file.rank is None else file.rank}] "


WORDS = {
    "started": "start {start} on {hosts}",
    "resumed": "goes on from step {step}",
    "staged": "reads {path} from the copy on {host}",
    "not_staged": "no copy of {path} on {host}, on from the shared file: {reason}",
    "preempted": "preempted, saved at step {step}",
    "hang": "no progress for {seconds} s",
    "suspended": "goes on after {seconds} s for which it was suspended",
    "failed": "failed: {reason}",
    "requeued": "requeued ({how})",
    "superseded": "ended: start {by} of the run goes on instead",
    "stopped": "stopped: {reason}",
    "cancelled": "cancelled",
    "finished": "training finished",
    "evaluated": "evaluated: {metrics}",
}


def _line_of(line: str) -> str:
    """The line, between those of the logs, for an event that changes the run's state; else ""."""
    try:
        event: Any = json.loads(line)
        if event["event"] == "failed":
            event["reason"] = event.get("error") or event["reason"]
        text = WORDS[event["event"]].format(**event)
        return f"-- {event['time'][:19]} {event.get('stage', '')} {text}"
    except MALFORMED:
        return ""
