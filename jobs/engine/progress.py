"""The numbers of a training, for whoever looks on: metrics.jsonl by step, and progress.json, where it stands.

Neither must end a training: what a full disk does not take is said in the log, and lost.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from jobs.engine.session import Session
from jobs.run.events import now

INTERVAL = 5.0
"""Seconds between two writes of progress.json, at least."""


def finite(value: Any) -> float | None:
    """None for what is not finite, as JSON knows no NaN."""
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
    """Writes progress.json anew. `fields`: step, epoch, max_steps, max_epochs, seconds_per_step, loss, lr,
    phase, best."""
    content = json.dumps({"time": now(), "start": session.start, **fields})
    try:
        session.progress.show(content.encode())
    except OSError as error:
        print(f"progress.json could not be written: {error}", file=sys.stderr)
