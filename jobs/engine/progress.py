"""The numbers of a training, for display: metrics.jsonl by step, and progress.json, its current state.

Neither may end a training: what a full disk does not take is reported in the log, and lost.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from jobs.engine.session import Session
from jobs.run.events import now

INTERVAL = 5.0
"""Minimum seconds between writes of progress.json."""


def finite(value: Any) -> float | None:
    """A number as float; None if it is not finite, because JSON has no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


def record(session: Session, kind: str, step: int, epoch: int, scalars: dict[str, float | None]) -> None:
    """Appends the scalars of a step to metrics.jsonl; `kind`: train or val."""
    line = {"step": step, "epoch": epoch, "start": session.start, "kind": kind}
    try:
        session.metrics.append(json.dumps(line | scalars))
    except OSError as error:
        print(f"metrics of step {step} could not be written: {error}", file=sys.stderr)


def show(session: Session, **fields: Any) -> None:
    """Rewrites progress.json. `fields`: step, epoch, max_steps, max_epochs, seconds_per_step, loss, lr,
    phase, best."""
    content = json.dumps({"time": now(), "start": session.start, **fields})
    try:
        session.progress.show(content.encode())
    except OSError as error:
        print(f"progress.json could not be written: {error}", file=sys.stderr)
