"""When to give up: pure functions over a run's events.

Any number of preemptions and time limits is free. What counts is a start that failed, hung, or ended silently
(a lost node, a SIGKILL of everything) and brought no new checkpoint or epoch: STARTS of these in a row stop
the run. The same error at the same step twice in a row stops it earlier, since a third time would be no
different; a node on which two of these starts failed is excluded from the next.

Only what came after the user's last `submitted` counts, so submitting again is a fresh chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.run import exit_codes
from jobs.run.errors import without_places
from jobs.run.past import Attempt, History

STARTS = 3
NODE_FAILURES = 2

# Errors caused by a machine, not by the program: another node may do better.
HARDWARE = re.compile(
    r"CUDA|NCCL|cuDNN|\bHIP\b|RCCL|MIOpen|HSA_STATUS|ECC|Xid|NVML|hardware|bus error|SIGBUS"
    r"|Input/output error|Stale file"
    r"|No space left|Read-only file system|Cannot allocate memory|out of memory",
    re.IGNORECASE,
)

DATA = re.compile(r"device-side assert|thread: \[[\d,]+\] assertion", re.IGNORECASE)
"""A kernel's own check of its input, mostly of a label that is not a class: no other machine helps. As an
error (torch's `CUDA error: device-side assert triggered`), or as the kernel itself writes it to the log
before (CUDA `… block: [0,0,0], thread: [4,0,0] Assertion `t >= 0 && t < n_classes` failed.`, HIP `Device-side
assertion …`)."""


@dataclass(frozen=True)
class Verdict:
    stop: str | None = None
    """Why the run must not be started again; None if it may."""
    exclude: tuple[str, ...] = ()
    """Nodes that the next start should avoid."""
    known: bool = True
    """False if the events could not be read, which is not the same as no failures."""


def verdict(history: History | None) -> Verdict:
    """Whether and where a run may be started again; `history` is None if its events cannot be read."""
    if history is None:
        return Verdict(known=False)
    starts = history.starts()
    barren = _barren(starts)
    for one in (*starts[-1:], *barren[-1:]):
        # However far it got: an image may be read late.
        if any(failure.exit_code == exit_codes.USER_ERROR for failure in one.failures):
            return Verdict(stop=one.error)
    if not barren:
        return Verdict()
    last = barren[-1]
    if len(barren) >= 2 and _same(barren[-2], last):
        step = last.failures[-1].step
        where = f"at step {step}" if step is not None else "before the first step"
        return Verdict(stop=f"the same error twice in a row {where}: {last.error}")
    if len(barren) >= STARTS:
        return Verdict(
            stop=f"{len(barren)} starts in a row without a new checkpoint; "
            f"the last: {last.error or 'ended without saying why'}"
        )
    return Verdict(exclude=_bad_nodes(barren))


def _barren(all_starts: Sequence[Attempt]) -> list[Attempt]:
    """The last starts in a row without progress. One that was preempted, or gave way to a later one, neither
    counts nor ends the row."""
    row: list[Attempt] = []
    for one in reversed(all_starts):
        if one.progress or one.finished:
            break
        if one.failures or not (one.preempted or one.superseded):
            row.insert(0, one)
    return row


def _same(one: Attempt, other: Attempt) -> bool:
    """Whether two starts ended with the same error of the program's at the same step.

    Death by a signal, and what looks like hardware, may not recur the next time.
    """
    if not one.failures or not other.failures:
        return False
    a, b = one.failures[-1], other.failures[-1]
    by_program = a.rank is not None and b.rank is not None and 0 < (a.exit_code or 0) < 128
    by_program = by_program or bool(DATA.search(a.error or ""))  # which may end in SIGABRT
    return (
        by_program
        and a.step == b.step
        and a.exit_code == b.exit_code
        and _normal(one.error) == _normal(other.error)
        and not is_hardware(one.error or "")
        and "no progress for" not in (one.error or "")
    )


def is_hardware(error: str) -> bool:
    return bool(HARDWARE.search(without_places(error))) and not DATA.search(error)


def _normal(error: str | None) -> str:
    """An error without what varies: addresses, pids, durations."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", error or "")


def _bad_nodes(barren: Sequence[Attempt]) -> tuple[str, ...]:
    last = [one.failures[-1] for one in barren if one.failures and not DATA.search(one.error or "")]
    hosts = [failure.host for failure in last if failure.host]
    return tuple(sorted({host for host in hosts if hosts.count(host) >= NODE_FAILURES}))
