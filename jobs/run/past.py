"""What is known of a run's past: its starts in order, and their jobs.

story.py derives it from the run's events."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from jobs.run import kinds
from jobs.run.events import seconds_of
from jobs.run.metrics import Figure
from jobs.run.records import Mark


class Incarnation(msgspec.Struct, kw_only=True):
    """One start of the training. Times are in seconds since the epoch, durations in seconds."""

    start: int
    job: str
    began: float
    hosts: list[str] = []
    world_size: int = 1
    restart: int = 0
    resumed_step: int | None = None
    """The step from which it resumed; None until that is known, 0 from scratch."""
    first_step: float | None = None
    """When its first step was finished."""
    last_seen: float
    ended: float | None = None
    """When it ended, as far as is known; None while it is the newest and has not reported an end."""
    ending: str = ""
    """finished, preempted, timeout, failed, hang, cancelled, superseded, killed (it reported no end); "" if
    it is alive."""
    why: str = ""
    """How it ended, in words."""
    step: int | None = None
    """The last step that it is known to have finished."""
    epoch: int | None = None
    marks: list[Mark] = []
    """Its events first_step, epoch, validated, checkpoint, preempted and finished, in order."""
    seen_at: tuple[float, int] | None = None
    """(time, step) from progress.json, if that is later."""
    signals: list[tuple[float, str]] = []
    suspensions: list[tuple[float, float]] = []
    """(from, to) of the times when its processes were suspended (SIGSTOP, `scontrol suspend`); they do not
    overlap."""

    @property
    def interrupted(self) -> bool:
        return self.ending not in ("", "finished", "cancelled")

    @property
    def validations(self) -> list[tuple[int, float]]:
        """(step, seconds) of each validation, without time suspended."""
        return [
            (mark.step or 0, self._net(mark, mark.seconds or 0.0))
            for mark in self.marks
            if mark.event == "validated"
        ]

    @property
    def saves(self) -> list[tuple[int, float, float]]:
        """(step, seconds for which it stalled the training, seconds until it was on disk) of each save,
        without time suspended."""
        return [
            (mark.step or 0, self._net(mark, _stall(mark)), self._net(mark, mark.seconds or 0.0))
            for mark in self.marks
            if mark.event == "checkpoint"
        ]

    def suspended(self, since: float, until: float) -> float:
        """Seconds between two times for which it was suspended."""
        return sum(max(0.0, min(until, to) - max(since, begin)) for begin, to in self.suspensions)

    def _net(self, mark: Mark, seconds: float) -> float:
        """`seconds`, counted from the start of what the mark reports, without time suspended."""
        if not self.suspensions or (time := moment(mark)) is None:
            return seconds
        began = time - (mark.seconds or 0.0)
        return max(0.0, seconds - self.suspended(began, began + seconds))

    def points(self) -> list[tuple[float, int]]:
        """(time, steps done by then), in order. A step followed by a validation or save occurs again, later:
        its last time is when the next step could begin."""
        found: list[tuple[float, int]] = []
        for mark in self.marks:
            if mark.step is None or (time := moment(mark)) is None:
                continue
            if mark.event == "checkpoint":
                # It is written in the background, and reported later than the step was done.
                time += _stall(mark) - (mark.seconds or 0.0)
            _point(found, time, mark.step)
        if self.seen_at is not None:
            _point(found, *self.seen_at)
        return found

    def when(self, step: int) -> float:
        """When `step` was done, with the validation and save after it; interpolated between known points."""
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
    """A job submitted for the run, including successors, and what became of it according to the events."""

    id: str
    stage: str
    submitted: float
    after: str = ""
    executor: str = ""
    cluster: str = ""
    """The name of the Slurm cluster, if the launcher knew it."""
    started: float | None = None
    ended: float | None = None
    state: str = "submitted"
    """submitted, started, finished, failed, requeued, superseded, stopped or cancelled."""
    why: str = ""


class Attempt(msgspec.Struct, kw_only=True):
    """The outcome of a start of the training since the user last submitted it, for the budgets; including
    starts that never reached `started`."""

    number: int | None
    hosts: list[str] = []
    progress: bool = False
    """Whether it got further than all earlier starts."""
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
    """What happened to a run; answers every question about it."""

    incarnations: list[Incarnation] = []
    jobs: dict[str, StageJob] = {}
    """Keyed by "stage id", because the stages of a local chain share one id."""
    element: bool = False
    """Whether the run belongs to a sweep."""
    reserve: str | None = None
    """The job submitted in advance to continue if the newest training job is killed."""
    submitted: float | None = None
    finished: float | None = None
    cancelled: float | None = None
    """When it was cancelled; None once it has been resumed."""
    stopped: str = ""
    """Why it was stopped for good, if it was."""
    stopped_at: float | None = None
    rests: list[tuple[float, float]] = []
    """(from, to) between a cancellation or stop and the submission that resumed the run."""
    not_finite: int | None = None
    """The step at which the loss was not finite, since the last submission."""
    failed: kinds.Failed | None = None
    """The first error of the newest start that ended with one, until a later start."""
    paused: float = 0.0
    """Seconds of all `rests`."""
    evaluations: list[kinds.Evaluated] = []
    prepared: kinds.Prepared | kinds.Verified | None = None
    """The event `prepared`, or `verified`, of a preparation that ended well."""
    best: Figure | None = None
    """The figure of the best validation, in the run's main metric."""
    last: float = 0.0
    """The time of the newest event."""
    latest: kinds.Event | None = None
    """The newest event, except those that only report progress."""
    newest: dict[str, str] = {}
    """Stage -> id of its newest job, including successors and jobs of plain sbatch."""
    named: set[str] = set()
    """Ids of all jobs named in the events."""
    successions: list[tuple[str | None, str]] = []
    """(job, the job that continues it)."""
    finishes: list[kinds.Finished] = []
    """Every `finished` event."""
    attempts: list[Attempt] = []
    """What `starts` returns, before it sets `progress`."""
    furthest: int = -1
    """The furthest step reported by a start without a `started` event."""
    checkpoint: tuple[int, int] = (0, 0)
    """(step, epoch) of the newest one reported by a start without a `started` event."""
    starts_named: set[int] = set()
    """The numbers of all starts of the training."""
    last_start: int | None = None
    failures: dict[str, int] = {}
    """Stage -> how often it has failed."""
    stops: int = 0
    """How often the training was stopped for good."""
    is_evaluated: bool = False
    """Whether the finished training has been evaluated."""
    finished_step: int = -1
    """The furthest step at which the training has reported that it is finished."""
    ends_finished: bool = False
    """Whether the newest start of the training has finished it."""
    finished_by: str | None = None
    """The job that finished the training, unless it has been submitted or started again since."""
    cancelled_by: str | None = None
    """Who cancelled the run since its training was last submitted, if anybody did."""
    preparation_has_ended: bool = False
    """Whether the last submitted preparation has reported its end."""

    @property
    def interruptions(self) -> int:
        """The number of starts that ended before the training did, except by the user's own wish."""
        return sum(1 for one in self.incarnations if one.interrupted)

    @property
    def preemptions(self) -> int:
        return sum(1 for one in self.incarnations if one.ending == "preempted")

    # --- jobs

    def newest_job(self, stage: str) -> StageJob | None:
        """The newest job of a stage; the last one known if the newest has only been named by another job."""
        known = [job for job in self.jobs.values() if job.stage == stage]
        return next((job for job in known if job.id == self.newest.get(stage)), known[-1] if known else None)

    def job_ids(self) -> list[str]:
        return list(dict.fromkeys(job.id for job in self.jobs.values()))

    def job_numbers(self) -> set[str]:
        """Ids of all jobs named in the events; for array elements, that of the array."""
        return {job.partition("_")[0] for job in self.named}

    def predecessors(self, job: str) -> set[str | None]:
        """The jobs that named `job` as the one that continues them."""
        return {before for before, successor in self.successions if successor == job}

    # --- ends

    def was_finished(self) -> bool:
        """Whether the training has ever finished."""
        return self.finished_step >= 0

    def finishes_of(self, stage: str, job: str) -> list[kinds.Finished]:
        """The `finished` events of this stage and job."""
        return [event for event in self.finishes if (event.stage, event.job) == (stage, job)]

    def failures_and_stops(self) -> int:
        """How often the training has failed or been stopped."""
        return self.failures.get("train", 0) + self.stops

    def is_evaluated_in(self, folder: str, job: str | None) -> bool:
        """Whether this job has reported an evaluation with results in that folder."""
        return any((event.path, event.job) == (folder, job) for event in self.evaluations)

    def ends_stopped(self) -> str | None:
        """Why the run was stopped, if that is the newest event."""
        return self.latest.reason if isinstance(self.latest, kinds.Stopped) else None

    # --- the training

    def trained(self, start: int) -> tuple[float, int]:
        """(seconds for which the run has trained, interruptions) before start number `start`.

        A start's time counts from its first step to its last event, without time suspended. Every start after
        the first counts as one interruption, whatever ended the previous one.
        """
        up = (
            one.last_seen - one.first_step - one.suspended(one.first_step, one.last_seen)
            for one in self.incarnations
            if one.first_step is not None
        )
        return sum(max(0.0, one) for one in up), len(self.starts_named | {start}) - 1

    def last_checkpoint(self) -> tuple[int, int]:
        """(step, epoch) of the newest checkpoint; (0, 0) if there is none."""
        marks = (mark for one in reversed(self.incarnations) for mark in reversed(one.marks))
        for mark in marks:
            if mark.event == "checkpoint" and mark.step is not None and mark.epoch is not None:
                return mark.step, mark.epoch
        return self.checkpoint

    def starts(self) -> list[Attempt]:
        """The starts of the training since the user last submitted it, in order, with their `progress`."""
        found = {one.number: one for one in self.attempts}
        furthest = self.furthest
        for one in self.incarnations:
            steps = (mark.step for mark in one.marks if mark.event in ("checkpoint", "epoch"))
            most = max((step for step in steps if step is not None), default=-1)
            if one.start in found and most > furthest:  # repeating an epoch after a resume is not progress
                found[one.start].progress = True
            furthest = max(furthest, most)
        return self.attempts


def _stall(mark: Mark) -> float:
    return (mark.seconds or 0.0) if mark.stall_seconds is None else mark.stall_seconds


def _point(points: list[tuple[float, int]], time: float, step: int) -> None:
    if not points or step > points[-1][1] or (step == points[-1][1] and time > points[-1][0]):
        points.append((time, step))


def moment(mark: Mark) -> float | None:
    """The mark's time in seconds since the epoch; None if it is not valid."""
    try:
        return seconds_of(mark.time)
    except (ValueError, OverflowError):
        return None
