"""What interruptions cost: ETTR, where a run's time went, and the checkpoint interval that would be best.

ETTR (effective training time ratio, arXiv 2410.21680): productive time over the time from submission to the
end, the queue included. Training and validation are productive if their steps went into the final weights;
start-up, saving, repeated steps, suspension and waiting are not.

Report, status and the simulator (benchmarks/simulate.py) share this file. Times are in seconds.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from jobs.run.past import History, Incarnation


class Shares(msgspec.Struct, kw_only=True):
    """Where the seconds of a run went. They add up to `wall`."""

    wall: float = 0.0
    queue: float = 0.0
    startup: float = 0.0
    training: float = 0.0
    validation: float = 0.0
    saving: float = 0.0
    lost: float = 0.0
    suspended: float = 0.0
    """On its nodes, but suspended (`scontrol suspend`, SIGSTOP)."""

    @property
    def productive(self) -> float:
        return self.training + self.validation

    @property
    def ettr(self) -> float | None:
        """Productive time over all time; None before there is any."""
        return min(1.0, self.productive / self.wall) if self.wall > 0 and self.productive > 0 else None

    @property
    def running_ratio(self) -> float | None:
        """Productive time over the time on the nodes, which excludes the queue; None before there is any."""
        on_nodes = self.wall - self.queue
        return min(1.0, self.productive / on_nodes) if on_nodes > 0 and self.productive > 0 else None


NAMES = ("training", "validation", "saving", "startup", "lost", "suspended", "queue")


class Costs(msgspec.Struct, kw_only=True):
    """Costs measured in a run, as `best_interval` and the simulator take them; None if not measured."""

    save_stall: float | None = None
    """Median seconds for which a save stalled the training."""
    save_seconds: float | None = None
    """Median seconds until a save was on disk."""
    startup: float | None = None
    """Median seconds from start to first step."""
    queue: float | None = None
    """Mean seconds between an interruption and the next start."""
    mtbi: float | None = None
    """Mean seconds on the nodes between interruptions."""
    interval: float | None = None
    """Median seconds of training between checkpoints."""
    step: float | None = None
    """Seconds per step: the median over the starts."""


def shares(history: History, now: float) -> Shares:
    """Where the time of a run went, until its end, or until `now` if it has not ended."""
    total = Shares()
    if not history.incarnations:
        return total
    begin = min(history.submitted or math.inf, history.incarnations[0].began)
    end = history.finished or history.cancelled or history.stopped_at or now
    total.wall = max(0.0, end - begin - history.paused)
    for one, kept in zip(history.incarnations, kept_steps(history), strict=True):
        _add(total, one, kept, end if one.ended is None else one.ended)
    on_nodes = sum(getattr(total, name) for name in NAMES if name != "queue")
    total.queue = max(0.0, total.wall - on_nodes)
    total.wall = total.queue + on_nodes
    return total


def kept_steps(history: History) -> list[float]:
    """For each start, the step up to which its work was kept: the earliest from which a later one resumed."""
    kept = [math.inf] * len(history.incarnations)
    least = math.inf
    for index in range(len(kept) - 1, -1, -1):
        kept[index] = least
        resumed = history.incarnations[index].resumed_step
        if resumed is not None:
            least = min(least, resumed)
    return kept


def lost_steps(history: History) -> int:
    """The number of finished steps that had to be repeated."""
    pairs = zip(history.incarnations, kept_steps(history), strict=True)
    return sum(
        max(0, one.step - max(int(kept), one.resumed_step or 0))
        for one, kept in pairs
        if one.step is not None and kept < one.step
    )


def _add(total: Shares, one: Incarnation, kept: float, end: float) -> None:
    end = max(end, one.began)
    first = end if one.first_step is None else min(one.first_step, end)
    total.suspended += one.suspended(one.began, end)
    total.startup += first - one.began - one.suspended(one.began, first)
    if one.first_step is None:
        return
    known = one.step or 0
    if kept > known or (kept == known and one.ending in ("", "finished", "preempted", "timeout")):
        until = end
    elif kept <= (one.resumed_step or 0):
        until = first
    else:
        until = min(end, max(first, one.when(int(kept))))
    validation = sum(seconds for step, seconds in one.validations if step <= kept)
    saving = sum(stall for step, stall, _ in one.saves if step <= kept)
    useful = until - first - one.suspended(first, until)
    # Their clocks and rounding differ from those of the time stamps, whose span their sum must not exceed.
    scale = min(1.0, useful / (validation + saving)) if validation + saving > 0 else 1.0
    total.validation += validation * scale
    total.saving += saving * scale
    total.training += useful - (validation + saving) * scale
    total.lost += end - until - one.suspended(until, end)


def costs(history: History, now: float) -> Costs:
    """The costs measured in a run until `now`."""
    runs = history.incarnations
    saves = [save for one in runs for save in one.saves]
    found = Costs()
    if saves:
        found.save_stall = median([stall for _, stall, _ in saves])
        found.save_seconds = median([seconds for _, _, seconds in saves])
    begun = [
        one.first_step - one.began - one.suspended(one.began, one.first_step)
        for one in runs
        if one.first_step is not None
    ]
    found.startup = median(begun) if begun else None
    waits = [
        after.began - one.ended
        for one, after in itertools.pairwise(runs)
        if one.ended is not None and one.ending != "cancelled"
    ]
    found.queue = sum(waits) / len(waits) if waits else None
    if history.interruptions:
        on_nodes = sum(_lasted(one, now) for one in runs)
        found.mtbi = on_nodes / history.interruptions
    gaps, paces = [], []
    for one in runs:
        points = one.points()
        if len(points) > 1 and points[-1][1] > points[0][1]:
            (t0, s0), (t1, s1) = points[0], points[-1]
            apart = sum(seconds for _, seconds in one.validations) + sum(stall for _, stall, _ in one.saves)
            paces.append(max(0.0, t1 - t0 - apart - one.suspended(t0, t1)) / (s1 - s0))
        known = {step: time for time, step in reversed(points)}
        times = [known[step] for step, _, _ in one.saves if step in known]
        before = [one.first_step or one.began, *times]
        gaps += [b - a - one.suspended(a, b) for a, b in zip(before, times, strict=False)]
    found.interval = median(gaps) if gaps else None
    found.step = median(paces) if paces else None
    return found


def _lasted(one: Incarnation, now: float) -> float:
    """Seconds for which a start was on its nodes and not suspended."""
    end = now if one.ended is None else one.ended
    return end - one.began - one.suspended(one.began, end)


def young(save: float, mtbi: float) -> float:
    """Young's optimal interval between saves, √(2·C·M) (hal-02514107, eq. 1)."""
    return math.sqrt(2 * save * mtbi)


def expected_ettr(interval: float, save: float, restart: float, mtbi: float, queue: float = 0.0) -> float:
    """Expected ETTR with exponentially distributed interruptions that come unannounced.

    After each, the job waits for `queue` D (which cannot be interrupted), needs `restart` R (which can), and
    repeats what was not saved. A segment of `interval` τ productive seconds and a save of `save` C then takes
    e^(λR)·(1/λ + D)·(e^(λ(τ+C)) − 1) (hal-02514107, prop. 1), with λ = 1/mtbi.
    """
    rate = 1 / mtbi
    exponent = rate * (restart + interval + save)
    if exponent > 600:  # it would hardly ever finish a segment, and the result would overflow
        return 0.0
    segment = math.exp(rate * restart) * (mtbi + queue) * math.expm1(rate * (interval + save))
    return interval / segment


def best_interval(save: float, mtbi: float, restart: float, queue: float) -> float:
    """The interval with the highest `expected_ettr`, by golden-section search around Young's.

    `restart` and `queue` hardly change it, but keep it consistent with the estimate shown beside it.
    """
    if save <= 0:
        return 0.0
    low, high = math.log(young(save, mtbi) / 50), math.log(young(save, mtbi) * 5)
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    while high - low > 1e-4:
        if expected_ettr(math.exp(a), save, restart, mtbi, queue) < expected_ettr(
            math.exp(b), save, restart, mtbi, queue
        ):
            low, a = a, b
            b = low + ratio * (high - low)
        else:
            high, b = b, a
            a = high - ratio * (high - low)
    return math.exp((low + high) / 2)


def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def eta(
    history: History, now: float, step: int, max_steps: int, seconds_per_step: float | None
) -> float | None:
    """Seconds until the last step at the pace so far, interruptions included; None if that is unknown.

    Before the first interruption, the pace is that of the steps; after it, that of the kept steps over all
    the time since the first start, without the time for which the run was stopped.
    """
    left = max_steps - step
    if left <= 0:
        return 0.0
    if history.incarnations and history.interruptions and step > 0:
        rested = sum(to - since for since, to in history.rests)
        stopped = sum(one.suspended(one.began, now) for one in history.incarnations)
        elapsed = now - history.incarnations[0].began - rested - stopped
        return left * elapsed / step
    return left * seconds_per_step if seconds_per_step else None
