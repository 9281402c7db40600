"""The kinds of events and their fields: their only definition. docs/run-directory.md explains each field.

What the events of a run say is worked out in story.py.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec


def _tag(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class _Event(msgspec.Struct, kw_only=True, tag_field="event", tag=_tag):
    """The fields of every event; those without a default are the required ones of each.

    What is read may have further fields (of a later version, or `started.device`, of an earlier one).
    """

    time: str
    stage: str = "train"
    job: str | None = None
    start: int | None = None


# --- the launcher


class Submitted(_Event):
    executor: str
    after: str | None = None
    nodes: int | None = None
    ranks: int | None = None
    element: int | None = None
    cluster: str | None = None


class Cancelled(_Event):
    by: str | None = None


# --- a start of a job


class Started(_Event):
    hosts: list[str]
    world_size: int
    restart: int | None = None
    pid: int | None = None
    ranks_per_node: int | None = None


class Resumed(_Event):
    step: int
    epoch: int
    checkpoint: str
    world_size_before: int | None = None
    accumulate: int | None = None


class Staged(_Event):
    path: str
    copy: str
    bytes: int
    seconds: float | None
    host: str | None = None
    found: bool | None = None


class NotStaged(_Event):
    path: str
    reason: str
    host: str | None = None


class FirstStep(_Event):
    step: int
    seconds: float | None


# --- progress; `epoch` counts finished epochs, `step` finished optimizer iterations


class Epoch(_Event):
    epoch: int
    step: int
    seconds: float | None
    loss: float | None = None
    lr: float | None = None


class Validated(_Event):
    epoch: int
    step: int
    seconds: float | None
    metrics: dict[str, Any]
    metric: str | None = None
    less: bool = False


class Checkpoint(_Event):
    step: int
    epoch: int
    path: str
    bytes: int
    seconds: float | None
    why: str
    stall_seconds: float | None = None


class NotFinite(_Event):
    step: int
    loss: str


class CheckpointDamaged(_Event):
    path: str
    reason: str


class CheckpointFailed(_Event):
    step: int
    reason: str


# --- endings


class Signal(_Event):
    signal: str
    rank: int
    host: str


class Preempted(_Event):
    step: int
    epoch: int


class Hang(_Event):
    seconds: float | None
    stacks: Any
    rank: int | None = None


class Suspended(_Event):
    seconds: float
    rank: int | None = None
    host: str | None = None


class Failed(_Event):
    reason: str
    rank: int | None = None
    host: str | None = None
    error: str | None = None
    exit_code: int | None = None
    log: str | None = None
    step: int | None = None


class Requeued(_Event):
    how: str
    successor: str | None = None
    exclude: list[str] | None = None


class Superseded(_Event):
    by: int


class Stopped(_Event):
    reason: str


class Finished(_Event):
    step: int | None = None
    epoch: int | None = None


# --- the other stages


class Evaluated(_Event):
    checkpoint: str
    metrics: dict[str, Any]
    path: str
    seconds: float | None = None


class Prepared(_Event):
    data_root: str
    seconds: float | None = None
    images: int | None = None


class Verified(_Event):
    data_root: str
    check: str
    seconds: float | None = None
    files: int | None = None


Event = (
    Submitted
    | Cancelled
    | Started
    | Resumed
    | Staged
    | NotStaged
    | FirstStep
    | Epoch
    | Validated
    | Checkpoint
    | NotFinite
    | CheckpointDamaged
    | CheckpointFailed
    | Signal
    | Preempted
    | Hang
    | Suspended
    | Failed
    | Requeued
    | Superseded
    | Stopped
    | Finished
    | Evaluated
    | Prepared
    | Verified
)

COMMON = {"event", *_Event.__struct_fields__}


def _fields(kind: type[_Event]) -> tuple[set[str], set[str]]:
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in COMMON]
    required = {field.name for field in fields if field.required}
    return required, {field.name for field in fields} - required


EVENTS = {_tag(kind.__name__): _fields(kind) for kind in get_args(Event)}
"""event -> (required fields, optional fields), beside COMMON."""
