"""How a run's starts ended, according to Slurm's accounting."""

from __future__ import annotations

from collections import deque

from jobs.run.past import History
from jobs.slurm.queries import Job

# Slurm's job states, as the endings that we use.
_ACCOUNTED = {
    "PREEMPTED": ("preempted", "preempted"),
    "NODE_FAIL": ("killed", "the node failed"),
    "TIMEOUT": ("timeout", "the time limit was reached"),
    "OUT_OF_MEMORY": ("failed", "out of memory: killed by the node"),
    "REQUEUED": ("killed", "requeued"),
}


def add(history: History, slurm: dict[str, list[Job]]) -> None:
    """Fills in endings that the events leave open, from accounting's rows for each start of a job."""
    rows_of: dict[str, deque[Job]] = {}
    for one in history.incarnations:
        if one.job not in rows_of:
            rows_of[one.job] = deque(
                sorted((r for r in slurm.get(one.job, []) if r.start), key=lambda r: r.start or 0.0)
            )
        rows = rows_of[one.job]
        while rows and rows[0].end is not None and rows[0].end < one.began:
            rows.popleft()
        row = next(iter(rows), None)
        if row is None or (row.start or 0.0) - 2 > one.began or row.end is None or one.ended is None:
            continue
        if one.ending == "killed":
            one.ended = max(one.ended, row.end)
            one.ending, why = _ACCOUNTED.get(row.state, (one.ending, one.why))
            one.why = f"{why} on {row.nodes}" if why != one.why and row.nodes else why
        elif one.ending == "preempted" and row.state == "TIMEOUT":
            one.ending, one.why = "timeout", f"{one.why}; the time limit was near"
