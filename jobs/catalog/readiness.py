"""Whether a data root is ready: what train.py asks before it submits. Imports nothing heavy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.catalog import manifest
from jobs.run.errors import UserError

if TYPE_CHECKING:
    from jobs.catalog import owner as lock

SILENT = 600.0
"""Seconds without a heartbeat after which an owner on another host counts as gone."""


@dataclass(frozen=True)
class State:
    kind: str
    """`ready`, `in progress` or `missing`."""
    owner: lock.Owner | None = None
    """Who is preparing it, if in progress."""
    reason: str = ""
    """What is wrong, if it counts as missing although something is there."""

    @property
    def ready(self) -> bool:
        return self.kind == "ready"


def state(data_root: Path | str, folder: str = "VOCdevkit") -> State:
    """The state of `folder` in a data root. Ready means completely published; verify.py checks more."""
    data_root = Path(data_root)
    reason = ""
    try:
        if manifest.read(data_root / folder):
            return State("ready")
    except UserError as error:
        reason = str(error)
    from jobs.catalog import owner as lock  # not needed where the dataset is ready

    held = lock.read(data_root)
    ours = held is not None and held[0].folder in ("", folder)
    if held and ours and not lock.is_dead(held[0]) and time.time() - held[1] < SILENT:
        return State("in progress", owner=held[0])
    if not reason and (data_root / folder).exists():
        reason = f"{data_root / folder} was not made by prepare: it has no {manifest.MANIFEST}"
    return State("missing", reason=reason)
