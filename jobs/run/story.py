"""The one reducer of a run's events, both for decisions and for display.

The resulting `History` (past.py) answers every question; launch/observe/history.py adds what progress.json
and Slurm's accounting say, for display.
"""

# ruff: noqa: ARG001 -- the handlers of events share one shape
from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobs.run import kinds
from jobs.run.events import of_line
from jobs.run.kinds import Event
from jobs.run.metrics import USUAL, Figure
from jobs.run.past import Attempt, History, Incarnation, StageJob, moment
from jobs.run.records import Clock, Mark, number, read_events


def read(path: Path) -> History:
    """The history that a run's events tell. Raises OSError if the file exists but cannot be read."""
    return build(read_events(path))


def attempt(path: Path) -> History | None:
    """As `read`, but None if the file cannot be read, which is not the same as no events."""
    try:
        return read(path)
    except OSError:
        return None


# These come by the thousand and only report progress.
_FREQUENT = {"epoch", "checkpoint"}


def build(lines: Iterable[tuple[Mark, bytes]]) -> History:
    """The history told by events in the order written. Unknown events and fields are ignored, and so are
    events with an invalid time."""
    lines = list(lines)
    try:
        return _build(lines)
    except (ValueError, OverflowError, IndexError):
        return _build([(mark, line) for mark, line in lines if moment(mark) is not None])


def _build(lines: Iterable[tuple[Mark, bytes]]) -> History:
    history = History()
    starts: dict[int, Incarnation] = {}
    clock = Clock()
    last = ""
    for mark, line in lines:
        name, start = mark.event, mark.start
        incarnation = starts.get(start) if start is not None and mark.stage == "train" else None
        if incarnation is not None:
            incarnation.marks.append(mark)
            if name in _FREQUENT:
                continue
        try:
            time = clock(mark.time)
            if mark.time > last:
                last = mark.time
            if (event := of_line(line)) is not None:
                _take(history, starts, incarnation, event, time)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError):
            continue  # one of our events with a field of the wrong type
    history.last = clock(last) if last else 0.0
    for one in starts.values():
        _sum_up(history, one)
    _settle(history)
    return history


def _take(
    history: History,
    starts: dict[int, Incarnation],
    incarnation: Incarnation | None,
    event: Event,
    time: float,
) -> None:
    history.latest = event
    if event.job:
        history.named.add(event.job)
    if type(event) in _NAME_JOBS:
        _name_jobs(history, event)
    if event.stage == "train" and event.start is not None:
        history.starts_named.add(event.start)
    if event.stage == "train" and type(event) in _OF_ATTEMPTS:
        _attempts(history, event)
    if isinstance(event, kinds.Started):
        _started(history, starts, event, time)
    elif incarnation is not None:
        _happened(history, incarnation, event, time)
    _jobs(history, event, time)
    if ending := _ENDINGS.get(type(event)):
        ending(history, incarnation, event, time)


_NAME_JOBS = {kinds.Submitted, kinds.Started, kinds.Requeued}
_OF_ATTEMPTS = {
    *(kinds.Submitted, kinds.Started, kinds.Failed, kinds.Signal, kinds.Preempted, kinds.Finished),
    *(kinds.Superseded, kinds.Checkpoint, kinds.Epoch),
}


def _name_jobs(history: History, event: Event) -> None:
    """Records each stage's newest job, and which job continues which."""
    if not isinstance(event, kinds.Requeued):  # a job of plain sbatch reports only its start
        history.newest[event.stage] = event.job or history.newest.get(event.stage, "")
    elif event.successor:
        history.named.add(event.successor)
        history.newest[event.stage] = event.successor
        history.successions.append((event.job, event.successor))


def _attempts(history: History, event: Event) -> None:
    """Records the outcome of each start of the training, for the budgets."""
    attempts, number = history.attempts, event.start
    # A start that a later one has fenced off may still write events.
    one = next((one for one in reversed(attempts) if one.number == number), None)
    if isinstance(event, kinds.Submitted):
        attempts.clear()
    elif isinstance(event, kinds.Started):
        history.last_start = number
        attempts.append(Attempt(number=number, hosts=event.hosts))
    elif isinstance(event, kinds.Failed) and (one is None or (one.failures and event.rank is None)):
        # It never reached `started`: the ranks did not meet, or srun itself failed.
        attempts.append(Attempt(number=number, failures=[event]))
    elif attempts:
        _add(one or attempts[-1], event)
    if isinstance(event, kinds.Checkpoint | kinds.Epoch):  # of a start without a `started` event
        if attempts and event.step > history.furthest:
            (one or attempts[-1]).progress = True
        history.furthest = max(history.furthest, event.step)
    if isinstance(event, kinds.Checkpoint):
        history.checkpoint = event.step, event.epoch


def _add(one: Attempt, event: Event) -> None:
    if isinstance(event, kinds.Signal | kinds.Preempted):
        one.preempted = True
    elif isinstance(event, kinds.Finished):
        one.finished = True
    elif isinstance(event, kinds.Superseded):
        one.superseded = True
    elif isinstance(event, kinds.Failed):
        one.failures.append(event)


def _happened(history: History, one: Incarnation, event: Event, time: float) -> None:
    """Adds what an event says about a start before its end."""
    if isinstance(event, kinds.Resumed):
        one.resumed_step, one.epoch = event.step, event.epoch
    elif isinstance(event, kinds.FirstStep):
        one.first_step = time
        if one.resumed_step is None:
            one.resumed_step = max(0, event.step - 1)
    elif isinstance(event, kinds.Validated):
        _validated(history, event)
    elif isinstance(event, kinds.Suspended):
        _suspended(one, time, event.seconds)
    elif isinstance(event, kinds.Signal):
        one.signals.append((time, event.signal))


def _sum_up(history: History, one: Incarnation) -> None:
    """Sums up a start's marks. Signals and failures say nothing about steps done, and are left out."""
    if not one.marks:
        return
    times = (moment(mark) for mark in reversed(one.marks))
    one.last_seen = max(one.last_seen, next((time for time in times if time is not None), 0.0))
    history.last = max(history.last, one.last_seen)
    one.marks = [mark for mark in one.marks if mark.event in _STEPS]
    one.step = max((mark.step for mark in one.marks if mark.step is not None), default=None)
    one.epoch = next((mark.epoch for mark in reversed(one.marks) if mark.epoch is not None), one.epoch)


_STEPS = {"first_step", "epoch", "validated", "checkpoint", "preempted", "finished"}


def _started(history: History, starts: dict[int, Incarnation], event: kinds.Started, time: float) -> None:
    if event.stage != "train":
        return
    history.ends_finished, history.finished_by = False, None
    if event.start is None:
        return
    starts[event.start] = new = Incarnation(
        start=event.start,
        job=event.job or "",
        began=time,
        last_seen=time,
        hosts=event.hosts,
        world_size=event.world_size,
        restart=event.restart or 0,
    )
    history.incarnations.append(new)
    history.failed, history.stopped, history.stopped_at = None, "", None


def _suspended(one: Incarnation, until: float, seconds: float) -> None:
    """Adds a suspension. Its event is written when the start continues."""
    before = one.suspensions[-1][1] if one.suspensions else one.began
    since = max(before, until - max(0.0, seconds))
    if until > since:
        one.suspensions.append((since, until))


def _validated(history: History, event: kinds.Validated) -> None:
    metric = event.metric or USUAL
    value = number(event.metrics.get(metric))
    if value is None:
        return
    found = Figure(metric, float(value), event.step, event.less)
    if found.beats(history.best):
        history.best = found


_BEGINS_ANEW = (kinds.Submitted, kinds.Started, kinds.Evaluated, kinds.Prepared)
_PREPARATION_ENDS = (kinds.Prepared, kinds.Verified, kinds.Failed, kinds.Cancelled, kinds.Stopped)
_UNANNOUNCED = (kinds.Started, kinds.Evaluated, kinds.Prepared, kinds.Verified, kinds.Finished)


def _jobs(history: History, event: Event, time: float) -> None:
    """Updates the list of jobs: which were submitted, and what became of each."""
    id, stage = event.job or "", event.stage
    if isinstance(event, kinds.Submitted):
        history.preparation_has_ended = False
    elif isinstance(event, _PREPARATION_ENDS):
        history.preparation_has_ended = True
    if isinstance(event, _BEGINS_ANEW) and history.failed and history.failed.stage == stage:
        history.failed = None
    if isinstance(event, kinds.Submitted):
        new = StageJob(id=id, stage=stage, submitted=time, executor=event.executor)
        new.after, new.cluster = event.after or "", event.cluster or ""
        history.element |= event.element is not None
        history.jobs.pop(f"{stage} {id}", None)  # the newest submission comes last
        history.jobs[f"{stage} {id}"] = new
        if stage == "train":
            _resubmitted(history, time)
        return
    job = history.jobs.get(f"{stage} {id}")
    if job is None:
        if not id or not isinstance(event, _UNANNOUNCED):
            return
        # A job from plain `sbatch` of the script has no event `submitted`.
        history.element |= "_" in id
        job = history.jobs[f"{stage} {id}"] = StageJob(id=id, stage=stage, submitted=time)
    if isinstance(event, kinds.Started):
        job.started, job.ended, job.state, job.why = time, None, "started", ""
    elif isinstance(event, _UNANNOUNCED):
        job.state, job.ended = "finished", time
    elif isinstance(event, kinds.Failed | kinds.Stopped):
        job.state = "failed" if isinstance(event, kinds.Failed) else "stopped"
        job.ended, job.why = time, event.reason
    elif isinstance(event, kinds.Superseded):
        job.state, job.ended = "superseded", time
    elif isinstance(event, kinds.Requeued):
        job.state, job.ended = "requeued", time
        if successor := event.successor:
            history.jobs.setdefault(
                f"{stage} {successor}",
                StageJob(id=successor, stage=stage, submitted=time, executor=job.executor),
            )


def _resubmitted(history: History, time: float) -> None:
    """The first submission begins the run; one after a cancellation or a stop resumes it."""
    if history.submitted is None:
        history.submitted = time
    resting = history.cancelled or history.stopped_at or history.finished
    if resting is not None:
        history.paused += max(0.0, time - resting)
        history.rests.append((resting, time))
    history.cancelled, history.stopped_at, history.stopped, history.failed = None, None, "", None
    history.finished, history.not_finite = None, None
    history.finished_by, history.cancelled_by = None, None


def _end(one: Incarnation | None, time: float, ending: str, why: str) -> None:
    """Ends a start. The first event about an ending counts, except that `finished` overrides any other."""
    if one is not None and (not one.ending or ending == "finished"):
        one.ended, one.ending, one.why = time, ending, why
    elif one is not None and one.ended is not None and one.ending != "finished":
        one.ended = max(one.ended, time)


def _preempted(history: History, one: Incarnation | None, event: kinds.Preempted, time: float) -> None:
    if one is None:
        return
    names = " and ".join(dict.fromkeys(name for _, name in one.signals)) or "asked to leave"
    _end(one, time, "preempted", f"preempted ({names}), saved at step {event.step}")


def _hang(history: History, one: Incarnation | None, event: kinds.Hang, time: float) -> None:
    _end(one, time, "hang", f"stood still for {event.seconds or 0:.0f} s; stacks in {event.stacks}")


def _failure(history: History, one: Incarnation | None, event: kinds.Failed, time: float) -> None:
    where = "" if event.rank is None else f"rank {event.rank}"
    where += f" on {event.host}" if event.host else ""
    text = event.error or event.reason
    history.failures[event.stage] = history.failures.get(event.stage, 0) + 1
    if history.failed is None:
        history.failed = event
    _end(one, time, "failed", f"{where}: {text}" if where else text)


def _requeued(history: History, one: Incarnation | None, event: kinds.Requeued, time: float) -> None:
    if one is None and event.stage == "train" and history.incarnations:
        one = history.incarnations[-1]
    if one is not None and not one.ending and one.signals:
        _end(one, time, "preempted", f"preempted ({one.signals[-1][1]})")
    else:
        _end(one, time, "killed", "ended without saying why")


def _superseded(history: History, one: Incarnation | None, event: kinds.Superseded, time: float) -> None:
    _end(one, time, "superseded", f"start {event.by} of the run goes on instead")


def _stopped(history: History, one: Incarnation | None, event: kinds.Stopped, time: float) -> None:
    if event.stage != "train":
        return
    history.stopped, history.stopped_at = event.reason, time
    history.stops += 1
    if one is None and history.incarnations:
        one = history.incarnations[-1]
    _end(one, time, "failed", history.stopped)


def _cancelled(history: History, one: Incarnation | None, event: kinds.Cancelled, time: float) -> None:
    history.cancelled_by = event.by or "the user"
    # A finished training stays finished: its evaluation was cancelled.
    if history.finished is None and history.cancelled is None:
        history.cancelled = time
    if history.incarnations:
        last = history.incarnations[-1]
        _end(last, time, "cancelled", "cancelled" + (f" by {event.by}" if event.by else ""))
    for job in history.jobs.values():
        if job.state in ("submitted", "started", "requeued"):
            job.state, job.ended = "cancelled", time


def _finished(history: History, one: Incarnation | None, event: kinds.Finished, time: float) -> None:
    history.finishes.append(event)
    if event.stage != "train":
        return
    step = event.step or 0
    # If a finished training is started again, it ends at once, at the same step.
    history.is_evaluated &= step <= history.finished_step
    history.finished_step = max(history.finished_step, step)
    history.ends_finished, history.finished_by = True, event.job
    history.finished = time
    history.failed, history.stopped, history.cancelled = None, "", None
    _end(one, time, "finished", "finished")


def _evaluated(history: History, one: Incarnation | None, event: kinds.Evaluated, time: float) -> None:
    history.evaluations.append(event)
    history.is_evaluated = True


def _prepared(
    history: History, one: Incarnation | None, event: kinds.Prepared | kinds.Verified, time: float
) -> None:
    history.prepared = event


def _not_finite(history: History, one: Incarnation | None, event: kinds.NotFinite, time: float) -> None:
    history.not_finite = event.step


_ENDINGS: dict[type, Callable[[History, Incarnation | None, Any, float], None]] = {
    kinds.NotFinite: _not_finite,
    kinds.Preempted: _preempted,
    kinds.Hang: _hang,
    kinds.Failed: _failure,
    kinds.Requeued: _requeued,
    kinds.Superseded: _superseded,
    kinds.Stopped: _stopped,
    kinds.Cancelled: _cancelled,
    kinds.Finished: _finished,
    kinds.Evaluated: _evaluated,
    kinds.Prepared: _prepared,
    kinds.Verified: _prepared,
}


def _settle(history: History) -> None:
    """Ends every start that another one followed, even if it could not report its end."""
    for one, following in zip(history.incarnations, history.incarnations[1:], strict=False):
        if one.ended is None:
            one.ended, one.ending = min(one.last_seen, following.began), "killed"
            if one.signals:
                one.why = f"killed after {one.signals[-1][1]}, before it could save"
            else:
                one.why = "killed without warning (node failure, or no signal before the kill)"
