"""The table of all runs, shortened: one line for a sweep, and no more lines than fit on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from launch.observe import figures, wording
from launch.observe.overview import cells, of_total
from launch.observe.states import UNSUBMITTED, Status

# A line that stands for several runs is coloured for the first of these states that one of them has; the
# counts are in this order, too.
URGENT = ("failed", "stuck", "stopped", "unreadable", "unknown")
MOVING = ("running", "starting", "evaluating", "requeueing", "suspended", "queued", "waiting", UNSUBMITTED)
DONE = ("finished", "prepared", "cancelled")
ORDER = (*URGENT, *MOVING, *DONE)


class Line(msgspec.Struct):
    cells: list[str]
    state: str


def lines(found: Sequence[Status], heads: tuple[str, str], fold: bool = True) -> list[Line]:
    """The lines of the table, in the order of `found`; a sweep takes the place of its first run. `heads`:
    figures.heads of all."""
    sweeps = Counter(one.sweep for one in found if one.sweep and fold)
    shown: list[Line] = []
    swept: set[str] = set()
    for one in found:
        if sweeps[one.sweep] < 2:
            shown.append(Line(cells(one, *heads), one.state))
        elif one.sweep not in swept:
            swept.add(one.sweep)
            shown.append(folded(one.sweep, [other for other in found if other.sweep == one.sweep], heads))
    return shown


def folded(name: str, elements: Sequence[Status], heads: tuple[str, str]) -> Line:
    """One line for a sweep: the best figures of its runs, and the sums of their steps and interruptions."""
    states = Counter(map(_counted, elements))
    known = [state for state in ORDER if states[state]] + sorted(states.keys() - set(ORDER))
    done = sum(one.step or 0 for one in elements)
    totals = [one.max_steps for one in elements if one.max_steps]
    # Runs that have not started will have as many as the others.
    total = sum(totals) + (len(elements) - len(totals)) * max(totals) if totals else None
    best = figures.best_of(one.best for one in elements)
    evaluated = figures.best_of(one.evaluated for one in elements)
    shares = [one.efficiency for one in elements if one.efficiency is not None]
    interruptions = sum(one.interruptions for one in elements)
    left = max((one.eta_seconds for one in elements if one.eta_seconds), default=None)
    return Line(
        [
            f"{name} ({len(elements)} runs)",
            ", ".join(f"{states[state]} {state}" for state in known),
            "",
            of_total(done or None, total),
            "",
            figures.cell(best, heads[0]),
            figures.cell(evaluated, heads[1]),
            f"{interruptions}×" if interruptions else "",
            f"{sum(shares) / len(shares):.2f}" if shares else "",
            wording.span(left) if left else "",
            elements[0].job.partition("_")[0] if "_" in elements[0].job else "",
        ],
        known[0],
    )


def fitting(table: Sequence[Line], height: int) -> tuple[list[Line], str]:
    """The lines that fit into `height`, in their order, and a summary of the others ("" if all fit). Runs
    that need attention come first, then active ones, then the newest; active ones get half of the room if
    they need it, so that many old failures do not hide them."""
    if len(table) <= height:
        return list(table), ""
    rank = dict.fromkeys(URGENT, 0) | dict.fromkeys(MOVING, 1)
    order = sorted(range(len(table)), key=lambda at: (rank.get(table[at].state, 2), at))
    kinds = Counter(rank.get(line.state, 2) for line in table)
    height = max(1, height)
    urgent = min(kinds[0], max(height - kinds[1], height - height // 2))
    order = order[:urgent] + order[kinds[0] :] + order[urgent : kinds[0]]
    kept = sorted(order[:height])
    left = Counter(table[at].state for at in order[height:])
    known = [state for state in ORDER if left[state]] + sorted(left.keys() - set(ORDER))
    what = ", ".join(f"{left[state]} {state}" for state in known)
    return [table[at] for at in kept], f"{wording.plural(sum(left.values()), 'more line')}: {what}"


def summary(found: Sequence[Status]) -> str:
    """The number of runs in each state, in one line."""
    states = Counter(map(_counted, found))
    known = [state for state in ORDER if states[state]] + sorted(states.keys() - set(ORDER))
    return f"{wording.plural(len(found), 'run')}: " + ", ".join(f"{states[state]} {state}" for state in known)


def _counted(one: Status) -> str:
    """What a run counts as: none waits in a queue that it was never submitted to."""
    return UNSUBMITTED if one.words == UNSUBMITTED else one.state
