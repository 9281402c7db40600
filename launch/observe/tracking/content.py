"""What a service is sent about a run: read anew each time from the run's files.

Only steps that no later start can repeat are sent: those up to the newest checkpoint on disk. So each step is
sent once, however a start ends, which suits services that never take anything back.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from jobs.run import files, records, trackers
from jobs.run.directory import Run
from jobs.run.past import History
from launch.observe import efficiency, history, sweeps
from launch.observe.report import data as report
from launch.submit import longer

MOST_PARAMETERS = 500
"""The most values of the config that are sent as parameters."""


PER_CLASS = ("IoU", "Acc")
"""Metrics sent for each class."""


class About(msgspec.Struct):
    """What stays the same for all starts of a run."""

    id: str
    name: str
    group: str
    """The sweep's name; "" for a run outside a sweep."""
    tags: list[str]
    parameters: dict[str, Any]
    """The request and the config's values, dotted key -> value."""
    config: str
    """The text of RUN/config.py."""
    backends: dict[str, dict[str, Any]] = {}
    """Service -> the arguments of its visualizer backend in the config."""


Row = tuple[int, dict[str, "float | Path"]]
"""(step, figures by name); a picture is the path of its file."""


class Content(msgspec.Struct):
    rows: list[Row]
    """Those that are final, in the order of steps."""
    facts: dict[str, float]
    """Current figures of the run as a whole."""
    evaluation: str
    """The evaluation that `scores` belong to; "" if there is none yet."""
    named: str
    """Prefix of its figures' names: `eval`, or `eval-tta`, `eval-epoch_50` if it is not of the best
    checkpoint without augmentation."""
    scores: dict[str, float]
    classes: list[dict[str, Any]]
    """Per class: name, IoU, Acc and so on, in percent."""
    state: str
    """finished, failed, cancelled or going (queued, running, interrupted)."""


def about(run: Run) -> About:
    """The run's name, request and config. Raises UserError if run.yaml cannot be read."""
    request = run.request()
    values = longer.resolved(run)  # {} with a --worker
    asked = report.public(request)
    kept = ("config", "seed", "nodes", "gpus", "data_root", "set", "versions", "command", "worker")
    parameters = report.flat({key: asked[key] for key in kept if asked[key]}) | report.flat(values, "config")
    what = Path(request.worker[0] if request.worker else request.config).stem
    return About(
        id=trackers.id_of(request.name, request.created),
        name=request.name,
        group=sweeps.of(run),
        tags=["baton", what],
        parameters=dict(list(parameters.items())[:MOST_PARAMETERS]),
        config=run.config.read_text(encoding="utf-8") if values else "",
        backends=backends(values),
    )


def backends(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The visualizer backends for the services in a config: service -> arguments."""
    visualizer = config.get("visualizer")
    given = visualizer.get("vis_backends") if isinstance(visualizer, dict) else None
    found = {}
    for one in given if isinstance(given, list) else []:
        kind = str(one.get("type", "")).rpartition(".")[2] if isinstance(one, dict) else ""
        if service := trackers.BACKENDS.get(kind):
            found[service] = {key: value for key, value in one.items() if key != "type"}
    return found


def read(run: Run, now: float) -> Content:
    past = history.read(run)
    lines = records.read_lines(run.metrics)
    train, val = report.kept_rows(lines, past)
    evaluation = report.evaluation_of(run)
    named = "eval"
    scores: dict[str, float] = {}
    classes: list[dict[str, Any]] = []
    if evaluation is not None:
        named = "-".join(["eval", *re.findall(r"[\w.]+", evaluation.of)])
        classes = evaluation.classes
        scores = _numbers(evaluation.metrics, ("images", "seconds", "processes", "batch"))
    return Content(
        rows=rows(train, val, shown_by_hooks(run, lines, past), past),
        facts=facts(past, now),
        evaluation=evaluation.name if evaluation else "",
        named=named,
        scores=scores,
        classes=classes,
        state=state(past),
    )


def shown_by_hooks(run: Run, lines: list[dict[str, Any]], past: History) -> list[Row]:
    """What hooks have passed to the visualizer (jobs/mmseg/curves.py): their own scalars, and pictures."""
    limits: dict[Any, float] = {
        one.start: most for one, most in zip(past.incarnations, efficiency.kept_steps(past), strict=True)
    }
    found: list[Row] = []
    for line in lines:
        step = line.get("step")
        if (
            line.get("kind") == "own"
            and isinstance(step, int)
            and step <= limits.get(line.get("start"), math.inf)
        ):
            found.append((step, _numbers(line, ("step", "start", "epoch"))))
    for path in (run.path / files.TRACK() / files.TRACK_PICTURES).glob("*/*.jpg"):
        if path.parent.name.isdecimal():
            found.append((int(path.parent.name), {f"pictures/{path.stem}": path}))
    return found


def rows(train: list[dict[str, Any]], val: list[dict[str, Any]], more: list[Row], past: History) -> list[Row]:
    """The figures of each final step: no later start repeats it, and its validation, if it has one, is
    done."""
    steps: dict[int, dict[str, float | Path]] = {}
    for step, figures in more:
        steps.setdefault(step, {}).update(figures)
    for kind, lines in (("train", train), ("val", val)):
        for row in lines:
            figures = {
                f"{kind}/{key}": value for key, value in _numbers(row, ("step", "start", "epoch")).items()
            }
            place = {"epoch": float(row.get("epoch") or 0), "start": float(row.get("start") or 1)}
            steps.setdefault(row["step"], {}).update(figures | place)
    newest = train[-1]["step"] if train else 0
    validated = {row["step"] for row in val}
    durable = durable_step(past)
    for one in past.incarnations:
        for step, stall, seconds in one.saves:
            if step in steps:
                steps[step] |= {"checkpoint/stall_seconds": stall, "checkpoint/seconds": seconds}
    return [
        (step, steps[step])
        for step in sorted(steps)
        if step <= durable and (past.finished is not None or step < newest or step in validated)
    ]


def durable_step(past: History) -> int:
    """The newest step whose state is on disk, from which a later start would resume."""
    kept = efficiency.kept_steps(past)
    saved = [
        step
        for one, most in zip(past.incarnations, kept, strict=True)
        for step, _, _ in one.saves
        if step <= most
    ]
    ends = [mark.step or 0 for one in past.incarnations for mark in one.marks if mark.event == "finished"]
    return max([0, *saved, *ends])


def facts(past: History, now: float) -> dict[str, float]:
    """What is sent about the run as a whole: interruptions, where its time went, its newest checkpoint."""
    shares = efficiency.shares(past, now if past.finished is None else past.last)
    found: dict[str, float | None] = {
        "starts": len(past.incarnations),
        "interruptions": past.interruptions,
        "preemptions": past.preemptions,
        "steps_done_again": efficiency.lost_steps(past),
        "ettr": shares.ettr,
        "checkpoint/step": durable_step(past),
    }
    found |= {f"seconds/{name}": round(getattr(shares, name), 1) for name in efficiency.NAMES}
    saved = [mark for one in past.incarnations for mark in one.marks if mark.event == "checkpoint"]
    found["checkpoint/count"] = len(saved)
    if past.best is not None:
        found |= {f"best/{past.best.metric}": past.best.value, "best/step": past.best.step}
    return {key: float(value) for key, value in found.items() if value is not None}


def state(past: History) -> str:
    if past.finished is not None:
        return "finished"
    if past.cancelled is not None:
        return "cancelled"
    return "failed" if past.stopped_at is not None else "going"


def _numbers(found: dict[str, Any], without: tuple[str, ...]) -> dict[str, Any]:
    """The finite numbers of a record."""
    return {
        key: float(value)
        for key, value in found.items()
        if key not in without and records.number(value) is not None
    }
