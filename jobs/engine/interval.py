"""How often to save: the Young/Daly optimum, from what a save costs and how often the run is interrupted.

Saving every sqrt(2 C M) seconds loses the least time, where C is the time that a save takes from training and
M the mean time between interruptions (J. W. Young, 1974; see also Benoit et al., hal-02514107).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.run.past import History

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


def past(history: History, start: int) -> Past:
    """What a run's events say of the time before start number `start`."""
    return Past(*history.trained(start))
