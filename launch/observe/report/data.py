"""What a report shows of a run, gathered from its directory (and from Slurm's accounting, if it answers)."""

from __future__ import annotations

import base64
import csv
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from jobs.run import files, records
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from jobs.run.metrics import USUAL
from jobs.run.past import History
from jobs.run.secrets import looks_secret
from jobs.slurm import queries as slurm_queries
from launch.observe import accounting, efficiency, evaluations, states
from launch.observe.efficiency import Costs, Shares
from launch.submit import literals
from launch.submit.batch_script import UNTOLD

HIDDEN = "…"
MOST_PICTURES = 20
MOST_PICTURE_BYTES = 6_000_000
"""For all pictures of a page together, so that it can still be sent by e-mail."""


class Evaluation(msgspec.Struct):
    name: str
    metrics: dict[str, Any]
    classes: list[dict[str, Any]]
    names: list[str]
    confusion: list[list[float]]
    pictures: list[tuple[str, str]]
    """(image id, data: URL)."""
    left_out: int = 0
    of: str = ""
    """What was evaluated, if not the run's best checkpoint without augmentation: `epoch_50`, `tta`."""


Ends = tuple[float, float] | None
"""The ends of an interval."""


class ClassTold(msgspec.Struct):
    """What is used of a class in metrics.json."""

    name: str
    intervals: dict[str, Ends] | None = None


class Told(msgspec.Struct):
    """What is used of metrics.json, besides figures, each of which is checked when it is shown."""

    classes: list[ClassTold] | None = None
    intervals: dict[str, Ends] | None = None
    asked: list[str] = msgspec.field(default_factory=list)
    not_computed: list[str] = msgspec.field(default_factory=list)


class Data(msgspec.Struct):
    run: Run
    request: Request | None
    past: History
    status: states.Status
    train: list[dict[str, Any]]
    """Rows of metrics.jsonl by step; of steps that a later start repeated, only the later rows."""
    val: list[dict[str, Any]]
    shares: Shares
    costs: Costs
    evaluation: Evaluation | None
    now: float
    problems: list[str]


def gather(chosen: Sequence[Run]) -> list[Data]:
    """What there is of each run; Slurm is asked about all of them together."""
    now = time.time()
    pasts = [states.past_of(run) for run in chosen]
    accounted = slurm_queries.incarnations(id for past in pasts for id in past.job_ids())
    for past in pasts:
        accounting.add(past, accounted)
    answer = slurm_queries.ask(id for past in pasts for id in states.jobs_to_ask(past))
    return [_gathered(run, past, answer, now) for run, past in zip(chosen, pasts, strict=True)]


def _gathered(run: Run, past: History, answer: slurm_queries.Answer, now: float) -> Data:
    status = states.status(run, past, answer, now)
    until = now if status.state in ("running", "starting", "requeueing", "suspended") else past.last
    problems = list(answer.problems) if states.jobs_to_ask(past) else []
    try:
        request = run.request()
    except UserError as error:
        request = None
        problems.append(str(error))
    train, val = kept_rows(records.read_lines(run.metrics), past)
    return Data(
        run=run,
        request=request,
        past=past,
        status=status,
        train=train,
        val=val,
        shares=efficiency.shares(past, until),
        costs=efficiency.costs(past, until),
        evaluation=evaluation_of(run),
        now=now,
        problems=problems,
    )


def flat(node: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys; without possible secrets and values known only once a config runs."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{above}.{key}" if above else str(key)
        if looks_secret(str(key)) or value is literals.UNKNOWN:
            continue
        if isinstance(value, dict):
            found |= flat(value, name)
        else:
            found[name] = value if isinstance(value, (int, float, str)) else repr(value)
    return found


def public(request: Request) -> dict[str, Any]:
    """The request as a report, which is sent by e-mail, may show it: without possible secrets."""

    def without(settings: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in settings.items() if key not in (*UNTOLD, "sources")}
        return {key: without(one) if isinstance(one, dict) else one for key, one in kept.items()}

    shown: dict[str, Any] = msgspec.to_builtins(request)
    shown["cluster"] = without(shown["cluster"])
    shown["set"] = {key: HIDDEN if looks_secret(key) else one for key, one in shown["set"].items()}
    return shown | {"command": shlex.join(repeat_command(request))}


def repeat_command(request: Request) -> list[str]:
    """The command that makes the same run under a free name; [] if none was recorded.

    `--run` is left out because its name is taken. For a run of a sweep, it makes only that run.
    """
    given, kept = list(request.command), ["python"]
    while given:
        argument = given.pop(0)
        if argument == "--":  # the rest are a --worker's own arguments
            return [*kept, argument, *given]
        option, equals, value = argument.partition("=")
        if option in ("--run", "--sweep", "--seeds"):
            value = value if equals else given.pop(0) if given else ""
            key = "randomness.seed" if option == "--seeds" else value.partition("=")[0]
            if option != "--run" and key in request.set:
                kept += ["--set", f"{key}={request.set[key]}"]
        elif option not in ("--wait", "--json", "--no-submit", "--zip"):
            # A secret that an earlier version accepted, as --set KEY=VALUE or --set=KEY=VALUE.
            name, equals, _ = argument.removeprefix("--set=").partition("=")
            kept.append(
                argument.partition(f"{name}=")[0] + f"{name}={HIDDEN}"
                if equals and looks_secret(name)
                else argument
            )
    return kept if request.command else []


def kept_rows(rows: list[dict[str, Any]], past: History) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, validation) rows by step. A start that resumed from step s voids older rows beyond s."""
    resumed = {one.start: one.resumed_step for one in past.incarnations}
    kept: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "val": {}}
    newest = 0
    for row in rows:
        start, step, kind = row.get("start", 1), row.get("step"), row.get("kind")
        if not isinstance(step, int) or not isinstance(start, int) or start < newest:
            continue
        if not isinstance(kind, str) or kind not in kept:
            continue
        if start > newest:
            base = resumed.get(start)
            base = step - 1 if base is None else base
            for one in kept.values():
                for void in [at for at in one if at > base]:
                    del one[void]
            newest = start
        kept[kind][step] = row
    train, val = (sorted(one.values(), key=lambda row: row["step"]) for one in kept.values())
    return train, val


def evaluation_of(run: Run) -> Evaluation | None:
    """The evaluation that counts for the run, or None. metrics.json is written last: if it exists, the rest
    is complete."""
    done = sorted((path.stat().st_mtime, path.parent) for path in run.eval.glob("*/metrics.json"))
    if not done:
        return None
    folders = [folder for _, folder in done]
    number, owner = evaluations.chosen(folders, run.checkpoints)
    where = folders[number]
    metrics = read_metrics(where / files.EVAL_METRICS)
    names, confusion = read_confusion(where / files.EVAL_CONFUSION)
    pictures, left_out = read_pictures(where)
    return Evaluation(
        name=where.name,
        metrics=metrics,
        classes=list(metrics.get("classes") or []),
        names=names,
        confusion=confusion,
        pictures=pictures,
        left_out=left_out,
        of=owner,
    )


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of metrics.json; {} if it is damaged or has been changed into something else."""
    found = records.read_json(path)
    try:
        msgspec.convert(found, Told)
    except msgspec.ValidationError:
        return {}
    return found


def read_confusion(path: Path) -> tuple[list[str], list[list[float]]]:
    """Class names and the matrix (row: truth, column: prediction); both empty if there is no such file, or if
    a spreadsheet has mangled it."""
    try:
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        names, matrix = header[1:], [[float(count) for count in row[1:]] for row in rows]
    except (FileNotFoundError, ValueError, csv.Error):
        return [], []
    square = [len(row) for row in matrix] == [len(names)] * len(names)
    sound = square and all(0 <= count < math.inf for row in matrix for count in row)
    return (names, matrix) if sound else ([], [])


def read_pictures(where: Path) -> tuple[list[tuple[str, str]], int]:
    """The first pictures in an evaluation's folder (those of the worst images, if known) as data URLs, and
    how many were left out because of their size or number."""
    found, total = [], 0
    folder = where / files.EVAL_PICTURES
    paths = _listed(where / files.EVAL_WORST, folder) or {
        path: path.stem for path in sorted(folder.glob("*.jpg"))
    }
    for path, caption in list(paths.items())[:MOST_PICTURES]:
        try:
            content = path.read_bytes()
        except (OSError, ValueError):  # a damaged table may name any file
            continue
        total += len(content)
        if total > MOST_PICTURE_BYTES:
            break
        found.append((caption, "data:image/jpeg;base64," + base64.b64encode(content).decode()))
    return found, len(paths) - len(found)


def _listed(table: Path, folder: Path) -> dict[Path, str]:
    """Path -> caption of the pictures in per_image.csv, worst image first; {} for an older file."""
    try:
        found = {}
        for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
            if name := Path(row.get("picture") or "").name:
                figures = f"{USUAL} {float(row[USUAL]):.2f}" if row.get(USUAL) else "nothing counts"
                found[folder / name] = f"{Path(name).stem.partition('_')[2]} · {figures}"
    except (OSError, ValueError, csv.Error):  # as read_confusion
        return {}
    return found
