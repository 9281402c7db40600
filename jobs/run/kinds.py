"""The kinds of events and their fields: their only definition, from which page.py makes the tables of
docs/run-directory.md. What the events of a run say is worked out in story.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

import msgspec


def _tag(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class _Event(msgspec.Struct, kw_only=True, tag_field="event", tag=_tag):
    """The fields of every event; fields without a default are required.

    Events that are read may have further fields (of a newer version, or `started.device` of an older one).
    """

    time: Annotated[str, "UTC, RFC 3339, milliseconds"]
    stage: Annotated[
        str, "prepare, train, evaluate, infer or export: whose job wrote it (left out where none did)"
    ] = "train"
    job: Annotated[
        str | None, "the job id: Slurm's, an array's element as `12_3`, a local chain's as `local-PID`"
    ] = None
    start: Annotated[
        int | None,
        "in training, the number of this start of the run, from 1; it also counts successor jobs, which "
        "`SLURM_RESTART_COUNT` does not",
    ] = None


# --- the launcher


class Submitted(_Event):
    """A job was handed to Slurm or to the local executor; a training that follows on `cancelled` or `stopped`
    resumes the run."""

    executor: Annotated[str, "slurm or local"]
    after: Annotated[str | None, "the job that it waits for"] = None
    nodes: Annotated[int | None, "nodes asked for"] = None
    ranks: Annotated[int | None, "processes asked for, on all nodes"] = None
    element: Annotated[int | None, "its number in a sweep"] = None
    cluster: Annotated[str | None, "Slurm's name of the cluster"] = None


class Cancelled(_Event):
    """The user ended the run; nothing of it starts again by itself."""

    by: Annotated[str | None, "who or what: a user's name, scancel, a signal"] = None


# --- a start of a job


class Started(_Event):
    """The ranks have met; their workers are being started."""

    hosts: Annotated[list[str], "host names, in the order of ranks, each once"]
    world_size: Annotated[int, "ranks"]
    restart: Annotated[
        int | None, "how often this job was restarted (`SLURM_RESTART_COUNT`, or of the local chain)"
    ] = None
    pid: Annotated[int | None, "of rank 0's supervisor"] = None
    ranks_per_node: Annotated[int | None, "the most on one node"] = None


class Resumed(_Event):
    """A checkpoint was read; without this event the start begins from scratch."""

    step: Annotated[int, "steps in it: the next one done is `step` + 1"]
    epoch: Annotated[int, "epochs in it"]
    checkpoint: Annotated[str, "its file name"]
    world_size_before: Annotated[int | None, "ranks that wrote it, if another number goes on"] = None
    accumulate: Annotated[int | None, "steps accumulated so that the global batch stays the same"] = None


class Staged(_Event):
    """A packed dataset lies on the node's own disk, whole and verified, and is read from there
    (`--stage`)."""

    path: Annotated[str, "the shared file"]
    copy: Annotated[str, "the node's"]
    bytes: Annotated[int, "size"]
    seconds: Annotated[float | None, "until it was there"]
    host: Annotated[str | None, "the node"] = None
    found: Annotated[bool | None, "true if it had been there already"] = None


class NotStaged(_Event):
    """It could not be copied, and is read from the shared file as before."""

    path: Annotated[str, "the shared file"]
    reason: Annotated[str, "why"]
    host: Annotated[str | None, "the node"] = None


class FirstStep(_Event):
    """The first step of this start is done."""

    step: Annotated[int, "its number"]
    seconds: Annotated[float | None, "since the worker began"]


# --- progress; `epoch` counts finished epochs, `step` finished optimizer iterations


class Epoch(_Event):
    """An epoch is finished."""

    epoch: Annotated[int, "epochs finished"]
    step: Annotated[int, "steps finished"]
    seconds: Annotated[float | None, "this epoch took, as far as this start did it"]
    loss: Annotated[float | None, "the latest training loss"] = None
    lr: Annotated[float | None, "the latest learning rate"] = None


class Validated(_Event):
    """A validation is finished; one that was interrupted is run again."""

    epoch: Annotated[int, "epochs finished"]
    step: Annotated[int, "steps finished"]
    seconds: Annotated[float | None, "it took"]
    metrics: Annotated[dict[str, Any], "name → value; segmentation's in percent"]
    metric: Annotated[
        str | None, "the name of the one that the run goes by; earlier versions left it out"
    ] = None
    less: Annotated[bool, "true if less of it is better"] = False


class Checkpoint(_Event):
    """A checkpoint is on disk, whole."""

    step: Annotated[int, "steps in it"]
    epoch: Annotated[int, "epochs in it"]
    path: Annotated[str, "file name"]
    bytes: Annotated[int, "size"]
    seconds: Annotated[float | None, "from the snapshot until it was on disk"]
    why: Annotated[str, "interval (as the config asks), time, validation (one follows), preemption or end"]
    stall_seconds: Annotated[
        float | None, "how long it held the training up; without it, all of `seconds`"
    ] = None


class NotFinite(_Event):
    """The loss is no number any more; said once a start."""

    step: Annotated[int, "at which"]
    loss: Annotated[str, "nan, inf or -inf"]


class CheckpointDamaged(_Event):
    """A checkpoint did not match its manifest, and was set aside, or is a link to nowhere, and stays; the one
    before is taken."""

    path: Annotated[str, "file name"]
    reason: Annotated[str, "what is wrong with it"]


class CheckpointFailed(_Event):
    """A checkpoint could not be written; training goes on."""

    step: Annotated[int, "steps it would have held"]
    reason: Annotated[str, "why"]


# --- endings


class Signal(_Event):
    """A rank was asked to leave; it does so at the next step boundary, together with all others."""

    signal: Annotated[str, "SIGUSR2, SIGTERM, …"]
    rank: Annotated[int, "that got it first"]
    host: Annotated[str, "its host"]


class Preempted(_Event):
    """Saved and left."""

    step: Annotated[int, "steps saved"]
    epoch: Annotated[int, "epochs finished"]


class Hang(_Event):
    """No step for too long; all ranks' stacks were written, the start is ended."""

    seconds: Annotated[float | None, "without progress"]
    stacks: Annotated[Any, "where the stacks are, below the run directory"]
    rank: Annotated[int | None, "that was silent for the longest"] = None


class Suspended(_Event):
    """The start was stopped (`scontrol suspend`, PreemptMode=SUSPEND or GANG, anybody's SIGSTOP) and goes on
    now."""

    seconds: Annotated[float, "for which it stood still, until now"]
    rank: Annotated[int | None, "that reported it first"] = None
    host: Annotated[str | None, "its host"] = None


class Failed(_Event):
    """A rank, or a job, ended with an error; the first of a start is the cause, others follow from it."""

    reason: Annotated[str, "in one line"]
    rank: Annotated[int | None, "of the failure"] = None
    host: Annotated[str | None, "its host"] = None
    error: Annotated[str | None, "the exception, and where in the user's code it was raised"] = None
    exit_code: Annotated[int | None, "of the process; above 128 it is a signal's"] = None
    log: Annotated[str | None, "the log below the run directory"] = None
    step: Annotated[int | None, "steps finished by then"] = None


class Requeued(_Event):
    """The job will be started again in the queue."""

    how: Annotated[str, "slurm: by Slurm itself; scontrol; successor: another job; local"]
    successor: Annotated[str | None, "the job that goes on"] = None
    exclude: Annotated[list[str] | None, "nodes it keeps off"] = None


class Superseded(_Event):
    """A later start of the run is under way, as when it is submitted twice: this one ends, that one goes
    on."""

    by: Annotated[int, "the number of the later start"]


class Stopped(_Event):
    """The run is not started again: a budget is used up, or only the user can fix the cause."""

    reason: Annotated[str, "why"]


class Finished(_Event):
    """The stage is done; a training's only once it has reached its last step."""

    step: Annotated[int | None, "steps finished"] = None
    epoch: Annotated[int | None, "epochs finished"] = None


# --- the other stages


class Evaluated(_Event):
    """An evaluation is done."""

    checkpoint: Annotated[str, "its file name"]
    metrics: Annotated[
        dict[str, Any],
        "name → value: what every evaluation tells, and what the config's `iou_metrics` ask for, in percent",
    ]
    path: Annotated[str, "the folder with the results"]
    seconds: Annotated[float | None, "it took"] = None


class Prepared(_Event):
    """The dataset is there, verified."""

    data_root: Annotated[str, "where"]
    seconds: Annotated[float | None, "it took"] = None
    images: Annotated[int | None, "how many, where its lists say it"] = None
    files: Annotated[int | None, "how many"] = None
    warnings: Annotated[int | None, "of your own images: what the checks found"] = None
    findings: Annotated[str | None, "of your own images: the file that has all of it"] = None
    sheet: Annotated[str | None, "of your own images: the contact sheet"] = None
    config: Annotated[str | None, "of your own images: the config that trains on them"] = None
    note: Annotated[str | None, "what was asked for and not done"] = None


class Verified(_Event):
    """`--verify` or `--check` found the dataset sound; a `failed` says what is wrong with it."""

    data_root: Annotated[str, "where"]
    check: Annotated[str, "quick, deep, or config (`--check`)"]
    seconds: Annotated[float | None, "it took"] = None
    files: Annotated[int | None, "how many were looked at"] = None


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
