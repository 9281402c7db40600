"""When to give up: pure functions over a run's events.

Preemptions and time limits are free, however many. What counts is a start that failed, hung, or ended without
a word (a lost node, a SIGKILL of everything) and brought no new checkpoint or epoch: STARTS of these in a row
stop the run. The same error at the same step twice in a row stops it earlier, since a third time would be no
different; a node on which two of these starts failed is excluded from the next.

Only what came after the user's last `submitted` counts, so that submitting again is a fresh chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.run import events, exit_codes

STARTS = 3
NODE_FAILURES = 2

# Errors that come from a machine, not from the program: another node may well do better.
HARDWARE = re.compile(
    r"CUDA|NCCL|cuDNN|ECC|Xid|NVML|hardware|device-side|bus error|SIGBUS|Input/output error|Stale file"
    r"|No space left|Read-only file system|Cannot allocate memory|out of memory",
    re.IGNORECASE,
)


@dataclass
class Start:
    """What became of one start of the training."""

    number: int | None
    hosts: list[str] = field(default_factory=list)
    progress: bool = False
    preempted: bool = False
    finished: bool = False
    superseded: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        if not self.failures:
            return None
        last = self.failures[-1]
        return str(last.get("error") or last.get("reason") or "an error without a message")


@dataclass(frozen=True)
class Verdict:
    stop: str | None = None
    """Why the run must not be started again; None if it may."""
    exclude: tuple[str, ...] = ()
    """Nodes the next start should keep away from."""
    known: bool = True
    """False if the events could not be read: then nothing is known, which is not the same as no failures."""


def read(path: Path) -> list[dict[str, Any]] | None:
    """A run's events; None if the file cannot be read."""
    try:
        return events.read(path)
    except OSError:
        return None


def last_checkpoint(records: Sequence[dict[str, Any]] | None) -> tuple[int, int]:
    """(step, epoch) of the newest checkpoint that events tell of; (0, 0) if none."""
    for record in reversed(records or []):
        if record["event"] == "checkpoint" and _step(record) >= 0:
            return _step(record), int(record.get("epoch") or 0)
    return 0, 0


def verdict(records: Sequence[dict[str, Any]] | None) -> Verdict:
    """What the events of a run say about starting it once more; `records` None: they cannot be read."""
    if records is None:
        return Verdict(known=False)
    barren = _barren(starts(records))
    if not barren:
        return Verdict()
    last = barren[-1]
    if any(failure.get("exit_code") == exit_codes.USER_ERROR for failure in last.failures):
        return Verdict(stop=last.error)
    if len(barren) >= 2 and _same(barren[-2], last):
        step = last.failures[-1].get("step")
        where = f"at step {step}" if step is not None else "before the first step"
        return Verdict(stop=f"the same error twice in a row {where}: {last.error}")
    if len(barren) >= STARTS:
        return Verdict(
            stop=f"{len(barren)} starts in a row without a new checkpoint; "
            f"the last: {last.error or 'ended without saying why'}"
        )
    return Verdict(exclude=_bad_nodes(barren))


def starts(records: Sequence[dict[str, Any]]) -> list[Start]:
    """The starts of the training since the user last submitted it, in order."""
    found: list[Start] = []
    best = -1
    for record in records:
        name = record["event"]
        if record.get("stage", "train") != "train":
            continue
        # A start that a later one has fenced off may still speak.
        number = record.get("start")
        named = next((one for one in reversed(found) if one.number == number), None)
        if name == "submitted":
            found = []
        elif name == "started":
            named = Start(number, hosts=list(record.get("hosts", [])))
            found.append(named)
        elif name == "failed" and (named is None or (named.failures and "rank" not in record)):
            # It never came to `started`: the ranks did not meet, or srun itself failed.
            named = Start(number, failures=[record])
            found.append(named)
        if not found:
            if name in ("checkpoint", "epoch"):
                best = max(best, _step(record))
            continue
        current = named or found[-1]
        if name in ("checkpoint", "epoch"):
            # An epoch done again after a resume is no progress.
            current.progress |= _step(record) > best
            best = max(best, _step(record))
        elif name in ("signal", "preempted"):
            current.preempted = True
        elif name == "finished":
            current.finished = True
        elif name == "superseded":
            current.superseded = True
        elif name == "failed" and record not in current.failures:
            current.failures.append(record)
    return found


def _step(record: dict[str, Any]) -> int:
    """The step of an event; -1 if it has none (a line that somebody has edited)."""
    step = record.get("step")
    return step if isinstance(step, int) else -1


def _barren(all_starts: Sequence[Start]) -> list[Start]:
    """The starts without progress at the end of the row. One that was preempted, or gave way to a later one,
    neither counts nor ends the row."""
    row: list[Start] = []
    for one in reversed(all_starts):
        if one.progress or one.finished:
            break
        if one.failures or not (one.preempted or one.superseded):
            row.insert(0, one)
    return row


def _same(one: Start, other: Start) -> bool:
    """Whether two starts ended of the same error of the program's at the same step.

    A death by signal and what smells of hardware may have gone by the next time.
    """
    if not one.failures or not other.failures:
        return False
    a, b = one.failures[-1], other.failures[-1]
    by_program = "rank" in a and "rank" in b and 0 < (a.get("exit_code") or 0) < 128
    return (
        by_program
        and a.get("step") == b.get("step")
        and a.get("exit_code") == b.get("exit_code")
        and _normal(one.error) == _normal(other.error)
        and not HARDWARE.search(one.error or "")
        and "no progress for" not in (one.error or "")
    )


def _normal(error: str | None) -> str:
    """An error without what differs from time to time: addresses, pids, durations."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", error or "")


def _bad_nodes(barren: Sequence[Start]) -> tuple[str, ...]:
    hosts = [failure["host"] for one in barren for failure in one.failures[-1:] if failure.get("host")]
    return tuple(sorted({host for host in hosts if hosts.count(host) >= NODE_FAILURES}))
