"""How often to save: the Young/Daly optimum, from the cost of a save and the frequency of interruptions.

Saving every sqrt(2 C M) seconds loses the least time, where C is the time for which a save stalls the
training and M the mean time between interruptions (J. W. Young, 1974; see also Benoit et al., hal-02514107).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.run.past import History

PRIOR = 2 * 3600.0
"""Initial estimate of the seconds between interruptions, as in a busy preemptible partition."""

SHORTEST, LONGEST = 30.0, 3600.0


def optimum(cost: float, between: float) -> float:
    """Optimal seconds between saves that cost `cost` seconds each, with interruptions `between` seconds
    apart; from SHORTEST to LONGEST."""
    return min(LONGEST, max(SHORTEST, math.sqrt(2 * max(cost, 0.0) * between)))


@dataclass(frozen=True)
class Past:
    """A run's uptime and interruptions before a start."""

    up: float
    """Seconds for which it has trained."""
    interruptions: int

    def between(self, since: float = 0.0) -> float:
        """Mean seconds between interruptions, `since` seconds into the start. One fictitious interruption in
        PRIOR seconds is included, so that there is an answer even before the first."""
        return (PRIOR + self.up + since) / (1 + self.interruptions)


def past(history: History, start: int) -> Past:
    """A run's past before start number `start`, from its events."""
    return Past(*history.trained(start))
