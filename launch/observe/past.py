"""What is known of a run's past: its starts one after the other, and the jobs behind them."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from jobs.run import events
from jobs.run.events import seconds_of
from launch.observe.records import Mark


class Incarnation(msgspec.Struct, kw_only=True):
    """One start of the training. Times are seconds since the epoch, spans are seconds."""

    start: int
    job: str
    began: float
    hosts: list[str] = []
    world_size: int = 1
    restart: int = 0
    resumed_step: int | None = None
    """The step it went on from; None until it has said so, 0 from scratch."""
    first_step: float | None = None
    """When its first step was done."""
    last_seen: float
    ended: float | None = None
    """When it ended, as far as anything says; None while nothing has followed it."""
    ending: str = ""
    """finished, preempted, timeout, failed, hang, cancelled, superseded, killed (no word of its own); "": it
    lives."""
    why: str = ""
    """How it ended, in words."""
    step: int | None = None
    """The last step it is known to have done."""
    epoch: int | None = None
    marks: list[Mark] = []
    """Its events first_step, epoch, validated, checkpoint, preempted and finished, in order."""
    seen_at: tuple[float, int] | None = None
    """(when, step) of the last word in progress.json, where that is later."""
    signals: list[tuple[float, str]] = []
    suspensions: list[tuple[float, float]] = []
    """(from, to) of the times for which its processes were stopped (SIGSTOP, `scontrol suspend`); none
    overlaps another."""

    @property
    def interrupted(self) -> bool:
        return self.ending not in ("", "finished", "cancelled")

    @property
    def validations(self) -> list[tuple[int, float]]:
        """(step, seconds) of each; what it stood still for is left out."""
        return [
            (mark.step or 0, self._net(mark, mark.seconds or 0.0))
            for mark in self.marks
            if mark.event == "validated"
        ]

    @property
    def saves(self) -> list[tuple[int, float, float]]:
        """(step, seconds it held the training up, seconds until it was on disk) of each; what it stood still
        for is left out."""
        return [
            (mark.step or 0, self._net(mark, _stall(mark)), self._net(mark, mark.seconds or 0.0))
            for mark in self.marks
            if mark.event == "checkpoint"
        ]

    def suspended(self, since: float, until: float) -> float:
        """Seconds between two moments for which it was stopped."""
        return sum(max(0.0, min(until, to) - max(since, begin)) for begin, to in self.suspensions)

    def _net(self, mark: Mark, seconds: float) -> float:
        """`seconds`, measured from where what the mark announces began, without those it was stopped for."""
        if not self.suspensions or (time := moment(mark)) is None:
            return seconds
        began = time - (mark.seconds or 0.0)
        return max(0.0, seconds - self.suspended(began, began + seconds))

    def points(self) -> list[tuple[float, int]]:
        """(when, steps done by then), in order. A step validated or saved after is there again, later: the
        last time is when the next step could begin."""
        found: list[tuple[float, int]] = []
        for mark in self.marks:
            if mark.step is None or (time := moment(mark)) is None:
                continue
            if mark.event == "checkpoint":
                # Written in the background, it is announced later than the step was done.
                time += _stall(mark) - (mark.seconds or 0.0)
            _point(found, time, mark.step)
        if self.seen_at is not None:
            _point(found, *self.seen_at)
        return found

    def when(self, step: int) -> float:
        """When `step` was done, with the validation and the save after it; between the known points."""
        points = self.points()
        right = bisect_right([known for _, known in points], step)
        if right == 0:
            return self.first_step or self.began
        before, known = points[right - 1]
        if known == step or right == len(points):
            return before
        after, later = points[right]
        return before + (after - before) * (step - known) / (later - known)


class StageJob(msgspec.Struct, kw_only=True):
    """A job that was submitted for the run (a successor too) and what the events say became of it."""

    id: str
    stage: str
    submitted: float
    after: str = ""
    executor: str = ""
    cluster: str = ""
    """Slurm's, if the launcher knew its name."""
    started: float | None = None
    ended: float | None = None
    state: str = "submitted"
    """submitted, started, finished, failed, requeued, superseded, stopped, cancelled."""
    why: str = ""


class History(msgspec.Struct, kw_only=True):
    """What happened to a run."""

    incarnations: list[Incarnation] = []
    jobs: dict[str, StageJob] = {}
    """By "stage id": stages of a local chain share one id."""
    element: bool = False
    """It is one of a sweep's."""
    reserve: str | None = None
    """The job that goes on if the newest training job is killed."""
    submitted: float | None = None
    finished: float | None = None
    cancelled: float | None = None
    """When it was cancelled; None again once it was resumed."""
    stopped: str = ""
    """Why it was stopped for good, if it was."""
    stopped_at: float | None = None
    rests: list[tuple[float, float]] = []
    """(from, to) between a cancellation or stop and the submission that resumed the run."""
    not_finite: int | None = None
    """The step at which the loss was no number any more, since it was submitted last."""
    failed: events.Failed | None = None
    """The first error of the newest ending by one, until a later start."""
    paused: float = 0.0
    """Seconds of all `rests`."""
    evaluations: list[events.Evaluated] = []
    prepared: events.Prepared | events.Verified | None = None
    """The event `prepared`, or `verified`, of a preparation that ended well."""
    best: tuple[float, int] | None = None
    """The best validation mIoU and its step."""
    last: float = 0.0
    """The time of the newest event."""

    @property
    def interruptions(self) -> int:
        """Starts that ended before the training did, except by the user's own wish."""
        return sum(1 for one in self.incarnations if one.interrupted)

    @property
    def preemptions(self) -> int:
        return sum(1 for one in self.incarnations if one.ending == "preempted")

    def newest_job(self, stage: str) -> StageJob | None:
        return next((job for job in reversed(list(self.jobs.values())) if job.stage == stage), None)

    def job_ids(self) -> list[str]:
        return list(dict.fromkeys(job.id for job in self.jobs.values()))


def _stall(mark: Mark) -> float:
    return (mark.seconds or 0.0) if mark.stall_seconds is None else mark.stall_seconds


def _point(points: list[tuple[float, int]], time: float, step: int) -> None:
    if not points or step > points[-1][1] or (step == points[-1][1] and time > points[-1][0]):
        points.append((time, step))


def moment(mark: Mark) -> float | None:
    """When it was, seconds since the epoch; None if its time is none."""
    try:
        return seconds_of(mark.time)
    except (ValueError, OverflowError):
        return None
