"""What a run's events say of it, for the programs that decide by them: one answer to each question.

How a run went, for people to read, is launch/observe/history.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.run import events
from jobs.run.events import Event, seconds_of

PREPARATION_ENDS = (events.Prepared, events.Verified, events.Failed, events.Cancelled, events.Stopped)


@dataclass
class Start:
    """What became of one start of the training."""

    number: int | None
    hosts: list[str] = field(default_factory=list)
    progress: bool = False
    preempted: bool = False
    finished: bool = False
    superseded: bool = False
    failures: list[events.Failed] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        if not self.failures:
            return None
        last = self.failures[-1]
        return last.error or last.reason or "an error without a message"


@dataclass(frozen=True)
class Story:
    """The events of a run, in the order written."""

    told: Sequence[Event] = ()

    # --- jobs

    def newest_job(self, stage: str) -> str:
        """The id of the newest job of that stage, successors and those of plain sbatch included; "" without
        one."""
        job = ""
        for event in self.told:
            if event.stage != stage:
                continue
            if isinstance(event, events.Submitted | events.Started):  # plain sbatch says only that it started
                job = event.job or job
            elif isinstance(event, events.Requeued) and event.successor:
                job = event.successor
        return job

    def job_ids(self) -> set[str]:
        """Ids of all jobs that are named, of an array's elements that of the array."""
        found = {event.job for event in self.told}
        found |= {event.successor for event in self.told if isinstance(event, events.Requeued)}
        return {job.partition("_")[0] for job in found if job}

    def preparation_has_ended(self) -> bool:
        """Whether the newest submission of a preparation has come to its end, as far as it has said."""
        ended = False
        for event in self.told:
            ended = not isinstance(event, events.Submitted) and (ended or isinstance(event, PREPARATION_ENDS))
        return ended

    def predecessors(self, job: str) -> set[str | None]:
        """The jobs that named `job` as the one that goes on for them."""
        named = (event for event in self.told if isinstance(event, events.Requeued))
        return {event.job for event in named if event.successor == job}

    # --- ends

    def finished(self, stage: str = "train", job: str | None = None) -> list[events.Finished]:
        """Each time that the stage (of that job, if one is given) has said that it is done."""
        return [
            event
            for event in self.told
            if isinstance(event, events.Finished) and event.stage == stage and job in (None, event.job)
        ]

    def ends_finished(self) -> bool:
        """Whether the newest start of the training is finished."""
        found = [
            event
            for event in self.told
            if isinstance(event, events.Started | events.Finished) and event.stage == "train"
        ]
        return bool(found) and isinstance(found[-1], events.Finished)

    def finished_by(self) -> str | None:
        """The job that finished the training, unless it was submitted or started again after that."""
        words = (events.Submitted, events.Started, events.Finished)
        found = [event for event in self.told if event.stage == "train" and isinstance(event, words)]
        return found[-1].job if found and isinstance(found[-1], events.Finished) else None

    def is_evaluated(self) -> bool:
        """Whether the finished training has been evaluated."""
        done, furthest = False, -1
        for event in self.told:
            if isinstance(event, events.Finished) and event.stage == "train":
                # A finished training that is started again ends at once, at the same step.
                step = event.step or 0
                done &= step <= furthest
                furthest = max(furthest, step)
            elif isinstance(event, events.Evaluated):
                done = True
        return done

    def evaluated(self, folder: str) -> bool:
        """Whether an evaluation with its results in that folder has been told."""
        return any(isinstance(event, events.Evaluated) and event.path == folder for event in self.told)

    def cancelled_by(self) -> str | None:
        """Who cancelled the run since its training was last submitted, if anybody has."""
        by = None
        for event in self.told:
            if isinstance(event, events.Cancelled):
                by = event.by or "the user"
            elif isinstance(event, events.Submitted) and event.stage == "train":
                by = None
        return by

    def failures(self, stage: str) -> int:
        return sum(isinstance(event, events.Failed) and event.stage == stage for event in self.told)

    def failures_and_stops(self) -> int:
        """How often the training has failed or was stopped."""
        ends = (events.Failed, events.Stopped)
        return sum(isinstance(event, ends) and event.stage == "train" for event in self.told)

    def stopped(self) -> str | None:
        """Why the run was stopped, if that is the last that was said."""
        last = self.told[-1] if self.told else None
        return last.reason if isinstance(last, events.Stopped) else None

    # --- the training

    def last_start(self) -> int | None:
        """The number of the newest start."""
        found = [event.start for event in self.told if isinstance(event, events.Started)]
        return found[-1] if found else None

    def last_checkpoint(self) -> tuple[int, int]:
        """(step, epoch) of the newest checkpoint; (0, 0) if none."""
        for event in reversed(self.told):
            if isinstance(event, events.Checkpoint):
                return event.step, event.epoch
        return 0, 0

    def trained(self, start: int) -> tuple[float, int]:
        """(seconds for which the run trained, interruptions), by the time of start number `start`.

        The time of a start lasts from its first step to the last event that it wrote, without the time for
        which it was stopped. Every start after the first means one interruption, whatever ended the last.
        """
        began: dict[int, float] = {}
        ended: dict[int, float] = {}
        stopped: dict[int, float] = {}
        starts = {start}
        for event in self.told:
            number = event.start
            if event.stage != "train" or number is None:
                continue
            time = seconds_of(event.time)
            starts.add(number)
            if isinstance(event, events.FirstStep):
                began[number] = time
            elif isinstance(event, events.Suspended) and number in began:
                stopped[number] = stopped.get(number, 0.0) + event.seconds
            ended[number] = max(time, ended.get(number, time))
        up = (ended[number] - time - stopped.get(number, 0.0) for number, time in began.items())
        return sum(max(0.0, one) for one in up), len(starts) - 1

    def starts(self) -> list[Start]:
        """The starts of the training since the user last submitted it, in order."""
        found: list[Start] = []
        best = -1
        for event in self.told:
            if event.stage != "train":
                continue
            # A start that a later one has fenced off may still speak.
            named = next((one for one in reversed(found) if one.number == event.start), None)
            if isinstance(event, events.Submitted):
                found = []
            elif isinstance(event, events.Started):
                named = Start(event.start, hosts=list(event.hosts))
                found.append(named)
            elif isinstance(event, events.Failed) and (
                named is None or (named.failures and event.rank is None)
            ):
                # It never came to `started`: the ranks did not meet, or srun itself failed.
                named = Start(event.start, failures=[event])
                found.append(named)
            if found:
                best = _take(named or found[-1], event, best)
            elif isinstance(event, events.Checkpoint | events.Epoch):
                best = max(best, event.step)
        return found


def _take(start: Start, event: Event, best: int) -> int:
    """Adds what an event says of a start; returns the furthest step up to then."""
    if isinstance(event, events.Checkpoint | events.Epoch):
        # An epoch done again after a resume is no progress.
        start.progress |= event.step > best
        return max(best, event.step)
    if isinstance(event, events.Signal | events.Preempted):
        start.preempted = True
    elif isinstance(event, events.Finished):
        start.finished = True
    elif isinstance(event, events.Superseded):
        start.superseded = True
    elif isinstance(event, events.Failed) and event not in start.failures:
        start.failures.append(event)
    return best


def read(path: Path) -> Story:
    """The story that a run's events tell. Raises OSError if there is a file that cannot be read."""
    return Story(events.load(path))


def attempt(path: Path) -> Story | None:
    """As `read`; None if the file cannot be read, which is not the same as no events."""
    try:
        return read(path)
    except OSError:
        return None
