"""How often to save: the Young/Daly optimum, from what a save costs and how often the run is interrupted.

Saving every sqrt(2 C M) seconds loses the least time, where C is the time that a save takes from training and
M the mean time between interruptions (J. W. Young, 1974; see also Benoit et al., hal-02514107).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs.run.events import seconds_of

PRIOR = 2 * 3600.0
"""Seconds between interruptions, to begin with: a busy preemptible partition's. Outweighed with time."""

SHORTEST, LONGEST = 30.0, 3600.0


def optimum(cost: float, between: float) -> float:
    """Seconds between two saves, for a save that costs `cost` seconds and interruptions `between` seconds
    apart, within SHORTEST and LONGEST."""
    return min(LONGEST, max(SHORTEST, math.sqrt(2 * max(cost, 0.0) * between)))


@dataclass(frozen=True)
class Past:
    """What a run has been through before a start."""

    up: float
    """Seconds for which it trained."""
    interruptions: int

    def between(self, since: float = 0.0) -> float:
        """Mean seconds between interruptions, `since` seconds into the start; with one interruption in PRIOR
        seconds that were never observed, so that a run without any has an answer, too."""
        return (PRIOR + self.up + since) / (1 + self.interruptions)


def past(events: Iterable[dict[str, Any]], start: int) -> Past:
    """What a run's events say of the time before start number `start`.

    The time of a start lasts from `first_step` to the last event that it wrote, without the time for which it
    was stopped. Every start after the first means one interruption, whatever ended the one before.
    """
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    stopped: dict[int, float] = {}
    starts = {start}
    for event in events:
        number = event.get("start")
        if event.get("stage") != "train" or number is None:
            continue
        time = seconds_of(event["time"])
        starts.add(number)
        if event["event"] == "first_step":
            began[number] = time
        elif event["event"] == "suspended" and number in began:
            stopped[number] = stopped.get(number, 0.0) + event["seconds"]
        ended[number] = max(time, ended.get(number, time))
    up = (ended[number] - time - stopped.get(number, 0.0) for number, time in began.items())
    return Past(sum(max(0.0, one) for one in up), len(starts) - 1)
