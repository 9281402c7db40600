"""What is known of a run's past: its starts one after the other, and the jobs behind them.

story.py makes it of the run's events."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from jobs.run import kinds
from jobs.run.events import seconds_of
from jobs.run.metrics import Figure
from jobs.run.records import Mark


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


class Attempt(msgspec.Struct, kw_only=True):
    """What became of one start of the training since the user last submitted it, for the budgets; also of one
    that never came to `started`."""

    number: int | None
    hosts: list[str] = []
    progress: bool = False
    """It brought a step that no earlier start had brought."""
    preempted: bool = False
    finished: bool = False
    superseded: bool = False
    failures: list[kinds.Failed] = []

    @property
    def error(self) -> str | None:
        if not self.failures:
            return None
        last = self.failures[-1]
        return last.error or last.reason or "an error without a message"


class History(msgspec.Struct, kw_only=True):
    """What happened to a run: the answer to every question about it."""

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
    failed: kinds.Failed | None = None
    """The first error of the newest ending by one, until a later start."""
    paused: float = 0.0
    """Seconds of all `rests`."""
    evaluations: list[kinds.Evaluated] = []
    prepared: kinds.Prepared | kinds.Verified | None = None
    """The event `prepared`, or `verified`, of a preparation that ended well."""
    best: Figure | None = None
    """The best validation's, of the metric that the run goes by."""
    last: float = 0.0
    """The time of the newest event."""
    latest: kinds.Event | None = None
    """The newest event, unless that only says how far the training is."""
    newest: dict[str, str] = {}
    """By stage, the id of its newest job, successors and those of plain sbatch included."""
    named: set[str] = set()
    """Ids of all jobs that are named."""
    successions: list[tuple[str | None, str]] = []
    """(job, the one that goes on for it)."""
    finishes: list[kinds.Finished] = []
    """Each time that a stage has said that it is done."""
    attempts: list[Attempt] = []
    """What `starts` gives, before it looks for their progress."""
    furthest: int = -1
    """The furthest step that a start nobody announced has told of."""
    checkpoint: tuple[int, int] = (0, 0)
    """(step, epoch) of the newest that a start which nobody announced has told of."""
    starts_named: set[int] = set()
    """The numbers of all starts of the training."""
    last_start: int | None = None
    failures: dict[str, int] = {}
    """How often each stage has failed."""
    stops: int = 0
    """How often the training was stopped for good."""
    is_evaluated: bool = False
    """Whether the finished training has been evaluated."""
    finished_step: int = -1
    """The furthest step at which the training has said that it is finished."""
    ends_finished: bool = False
    """Whether the newest start of the training is finished."""
    finished_by: str | None = None
    """The job that finished the training, unless it was submitted or started again after that."""
    cancelled_by: str | None = None
    """Who cancelled the run since its training was last submitted, if anybody has."""
    preparation_has_ended: bool = False
    """Whether the newest submission of a preparation has come to its end, as far as it has said."""

    @property
    def interruptions(self) -> int:
        """Starts that ended before the training did, except by the user's own wish."""
        return sum(1 for one in self.incarnations if one.interrupted)

    @property
    def preemptions(self) -> int:
        return sum(1 for one in self.incarnations if one.ending == "preempted")

    # --- jobs

    def newest_job(self, stage: str) -> StageJob | None:
        """The newest job of a stage; the last one known where the newest is only named by a stranger."""
        known = [job for job in self.jobs.values() if job.stage == stage]
        return next((job for job in known if job.id == self.newest.get(stage)), known[-1] if known else None)

    def job_ids(self) -> list[str]:
        return list(dict.fromkeys(job.id for job in self.jobs.values()))

    def job_numbers(self) -> set[str]:
        """Ids of all jobs that are named, of an array's elements that of the array."""
        return {job.partition("_")[0] for job in self.named}

    def predecessors(self, job: str) -> set[str | None]:
        """The jobs that named `job` as the one that goes on for them."""
        return {before for before, successor in self.successions if successor == job}

    # --- ends

    def was_finished(self) -> bool:
        """Whether the training has ever been finished."""
        return self.finished_step >= 0

    def finishes_of(self, stage: str, job: str) -> list[kinds.Finished]:
        """Each time that this job has said of the stage that it is done."""
        return [event for event in self.finishes if (event.stage, event.job) == (stage, job)]

    def failures_and_stops(self) -> int:
        """How often the training has failed or was stopped."""
        return self.failures.get("train", 0) + self.stops

    def is_evaluated_in(self, folder: str, job: str | None) -> bool:
        """Whether this job has announced an evaluation with its results in that folder."""
        return any((event.path, event.job) == (folder, job) for event in self.evaluations)

    def ends_stopped(self) -> str | None:
        """Why the run was stopped, if that is the last that was said."""
        return self.latest.reason if isinstance(self.latest, kinds.Stopped) else None

    # --- the training

    def trained(self, start: int) -> tuple[float, int]:
        """(seconds for which the run trained, interruptions), by the time of start number `start`.

        The time of a start lasts from its first step to the last event that it wrote, without the time for
        which it was stopped. Every start after the first means one interruption, whatever ended the last.
        """
        up = (
            one.last_seen - one.first_step - one.suspended(one.first_step, one.last_seen)
            for one in self.incarnations
            if one.first_step is not None
        )
        return sum(max(0.0, one) for one in up), len(self.starts_named | {start}) - 1

    def last_checkpoint(self) -> tuple[int, int]:
        """(step, epoch) of the newest checkpoint; (0, 0) if none."""
        marks = (mark for one in reversed(self.incarnations) for mark in reversed(one.marks))
        for mark in marks:
            if mark.event == "checkpoint" and mark.step is not None and mark.epoch is not None:
                return mark.step, mark.epoch
        return self.checkpoint

    def starts(self) -> list[Attempt]:
        """The starts of the training since the user last submitted it, in order."""
        found = {one.number: one for one in self.attempts}
        furthest = self.furthest
        for one in self.incarnations:
            steps = (mark.step for mark in one.marks if mark.event in ("checkpoint", "epoch"))
            most = max((step for step in steps if step is not None), default=-1)
            if one.start in found and most > furthest:  # an epoch done again after a resume is no progress
                found[one.start].progress = True
            furthest = max(furthest, most)
        return self.attempts


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
