"""A run's history, for display: what its events say, and what progress.json adds."""

from __future__ import annotations

import os
from typing import Any

from jobs.run import files, story
from jobs.run.directory import Run
from jobs.run.events import seconds_of
from jobs.run.metrics import USUAL, Figure, less_is_better
from jobs.run.past import History, Incarnation
from jobs.run.records import content, number, read_json


def read(run: Run) -> History:
    history = story.read(run.events)
    add_progress(history, progress(run))
    training = [job.id for job in history.jobs.values() if job.stage == "train"]
    history.reserve = reserve(run, training[-1]) if training and history.finished is None else None
    return history


def attempt(run: Run) -> History | Exception:
    """As `read`, but returns the exception: one run that cannot be read must not hide the others."""
    try:
        os.scandir(run.path).close()  # raises if the folder is not readable for us
        return read(run)
    except Exception as error:
        return error


def reserve(run: Run, job: str) -> str | None:
    """The job submitted in advance to continue if `job` is killed; None if there is none."""
    try:
        return content(run.job / files.PRESUBMITTED(JOB=job)).decode().strip() or None
    except (OSError, ValueError):
        return None


def progress(run: Run) -> dict[str, Any]:
    """`progress.json`, with `time` as seconds since the epoch, and `diverged`.

    A field that is missing, or not a number although it should be, is None.
    """
    found = read_json(run.path / files.PROGRESS())
    try:
        found["time"] = seconds_of(found["time"])
    except (KeyError, TypeError, ValueError, AttributeError):
        found["time"] = None
    for key in ("start", "step", "epoch", "max_steps", "max_epochs"):
        found[key] = found.get(key) if isinstance(found.get(key), int) else None
    # The loss of a finished step is finite unless the training diverged (NaN, infinite, or null: strict JSON
    # has neither), or nothing has logged one, as in a training of one's own.
    found["diverged"] = (
        "loss" in found
        and number(found.get("seconds_per_step")) is not None
        and number(found.get("loss")) is None
    )
    for key in ("seconds_per_step", "loss", "lr"):
        found[key] = number(found.get(key))
    best = one if isinstance(one := found.get("best"), dict) else {}
    metric, value = str(best.get("metric") or USUAL), number(best.get("value"))
    found["best"] = None if value is None else Figure(metric, float(value), less=less_is_better(metric))
    return found


def add_progress(history: History, progress: dict[str, Any]) -> None:
    """Adds what the newest `progress.json` has beyond the events: how far a start got, and when."""
    for one in reversed(history.incarnations):
        if one.start == progress.get("start") and isinstance(progress.get("time"), float):
            time = progress["time"]
            if one.ending in ("", "killed", "cancelled"):
                one.last_seen = max(one.last_seen, time)
                if one.ended is not None and one.ending == "killed":
                    one.ended = max(one.ended, time)
            step = progress.get("step")
            if isinstance(step, int) and (one.step is None or step > one.step):
                one.step, one.seen_at = step, (time, step)
                one.epoch = progress.get("epoch") or one.epoch
            return


def furthest(past: History, progress: dict[str, Any]) -> tuple[int | None, int | None]:
    """(step, epoch) that the run is at, from its newest start; before that reports anything, from the newest
    checkpoint, from which it resumes."""
    if not past.incarnations:
        return progress.get("step"), progress.get("epoch")
    last = past.incarnations[-1]
    if last.step is not None:
        return last.step, last.epoch
    if last.resumed_step is not None:
        return last.resumed_step, last.epoch
    saved = [
        (mark.step, mark.epoch)
        for one in past.incarnations
        for mark in one.marks
        if mark.event in ("checkpoint", "preempted") and mark.step is not None
    ]
    return max(saved, key=lambda pair: pair[0], default=(progress.get("step"), progress.get("epoch")))


def still_suspended(one: Incarnation, now: float) -> None:
    """Adds a suspension that has not ended: its event is written only at its end."""
    since = max([one.last_seen, *(to for _, to in one.suspensions)])
    if now > since:
        one.suspensions.append((since, now))


def gone_silently(one: Incarnation) -> None:
    """Ends a start that is no longer alive: its own event will never come."""
    one.ended, one.ending, one.why = one.last_seen, "killed", "ended without saying why"
