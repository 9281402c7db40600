"""`train.py --resume RUN --set train_cfg.max_epochs=300`: trains a run for longer than it was made for.

A run with nothing to resume from yet takes any `--set` and `--unset`: this is how a mistake in its config is
corrected.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Iterator
from typing import Any

from jobs.run import story
from jobs.run.directory import Request, Run
from jobs.run.errors import MALFORMED, UserError
from launch.submit import literals

MAY_CHANGE = ("train_cfg", "param_scheduler", "default_hooks", "baton")
"""Parts of a config that may change without making a checkpoint unusable."""
LENGTHS = ("max_epochs", "max_iters")


def of_resumed(run: Run, old: Request, given: dict[str, Any], taken_back: list[str]) -> dict[str, Any]:
    """All overrides of a resumed run: its own without those `taken_back`, and those `given` now. Raises
    UserError as `overrides` does, and for one taken back that does not exist or has been trained with."""
    if given and old.worker:
        raise UserError("--set overrides a config, but this run trains its own program")
    own = old.overrides
    for key in taken_back:
        if key not in old.overrides:
            there = f"they are {', '.join(sorted(old.overrides))}" if old.overrides else "it has none"
            raise UserError(f"--unset {key}: that is not an override of {run.name}: {there}")
        if not begins_anew(run):
            raise UserError(
                f"--unset {key}: {run.name} has trained with it: start a new run without it (train.py)"
            )
        own.pop(key, None)  # it may be named twice
    return own | overrides(run, given)


def begins_anew(run: Run) -> bool:
    """Whether the run has nothing yet that another config would not fit: no checkpoint, no validation."""
    # A start that was killed before it wrote the manifest leaves a file from which the next one may resume.
    found = (path for name in ("*.pth", "*.pth.json", "*.damaged") for path in run.checkpoints.glob(name))
    return not any(found) and story.read(run.events).best is None


def trains_on(old: Request, merged: dict[str, Any]) -> bool:
    """Whether the training is made longer."""
    lengths = [f"train_cfg.{name}" for name in LENGTHS]
    return any(merged.get(name) != old.overrides.get(name) for name in lengths)


def overrides(run: Run, given: dict[str, Any]) -> dict[str, Any]:
    """The overrides for `--set` of a resumed run, including new ends for learning rate schedules that ended
    with the training, so that they do so again. Raises UserError for what would make it another training, or
    one shorter than what it has already done."""
    for key in () if begins_anew(run) else given:
        if key.split(".")[0] not in MAY_CHANGE:
            raise UserError(
                f"--resume continues the same training: --set {key} would make it a different one; allowed "
                f"are {', '.join(f'{name}.…' for name in MAY_CHANGE)}"
            )
    result = dict(given)
    values = resolved(run)
    newest = newest_checkpoint(run)
    for length in LENGTHS:
        new, old = given.get(f"train_cfg.{length}"), (values.get("train_cfg") or {}).get(length)
        if new is None:
            continue
        if not isinstance(new, int) or new < 1:
            raise UserError(f"--set train_cfg.{length} must be a whole number, not {new!r}")
        done = newest.get("epoch" if length == "max_epochs" else "step", 0)
        if new <= done:
            raise UserError(f"{run.name} has already done {done} of train_cfg.{length}: {new} is not more")
        if isinstance(old, int):
            result = stretched(values.get("param_scheduler"), length, old, new, newest) | result
    return result


def stretched(schedulers: Any, length: str, old: int, new: int, newest: dict[str, Any]) -> dict[str, Any]:
    """Overrides that make every scheduler that ends with a training of `old` epochs or iterations (`length`)
    end with one of `new`, with its milestones at the same fractions of the training."""
    found: dict[str, Any] = {}
    single = isinstance(schedulers, dict)
    for number, one in enumerate([schedulers] if single else schedulers or []):
        if not isinstance(one, dict):
            continue
        where = "param_scheduler" if single else f"param_scheduler.{number}"
        unit = 1
        if length == "max_epochs" and not one.get("by_epoch", True):
            epochs = newest.get("epoch", 0)
            unit = newest["step"] // epochs if epochs and newest["step"] % epochs == 0 else 0
        elif length == "max_iters" and one.get("by_epoch", True):
            unit = 0  # it counts epochs, the training iterations
        begin = one.get("begin", 0)
        if unit and one.get("end") == old * unit:
            found[f"{where}.end"] = new * unit
        if not isinstance(begin, int):
            continue
        for name in ("T_max", "total_steps"):
            if unit and one.get(name) == old * unit - begin:
                found[f"{where}.{name}"] = new * unit - begin
        if one.get("end") is None or f"{where}.end" in found:
            found |= {f"{where}.{name}": value for name, value in in_proportion(one, begin, new / old)}
    return found


def in_proportion(scheduler: dict[str, Any], begin: int, factor: float) -> Iterator[tuple[str, Any]]:
    """(name, value) of a scheduler's milestones, periods and step size, moved to the same fractions of a
    training `factor` times as long. Milestones and periods count from `begin`, which stays."""
    for name in ("milestones", "periods"):
        values = scheduler.get(name)
        if isinstance(values, (list, tuple)) and values and all(type(one) is int for one in values):
            ends = values if name == "milestones" else list(itertools.accumulate(values))
            moved = [max(1, round((begin + one) * factor) - begin) for one in ends]
            if name == "periods":
                moved = [one - before for before, one in itertools.pairwise([0, *moved])]
            yield name, moved
    if type(size := scheduler.get("step_size")) is int:
        yield "step_size", max(1, round(size * factor))


def resolved(run: Run) -> dict[str, Any]:
    """The values of RUN/config.py; {} before the first start has written it, and if it cannot be read."""
    try:
        return dict(literals.values(ast.parse(run.config.read_text(encoding="utf-8"))))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return {}


def newest_checkpoint(run: Run) -> dict[str, Any]:
    """`step` and `epoch` of the checkpoint with the most steps; {} without one."""
    newest: dict[str, Any] = {}
    for path in run.checkpoints.glob("*.pth.json"):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if int(manifest["step"]) > newest.get("step", -1):
                newest = {"step": int(manifest["step"]), "epoch": int(manifest["epoch"])}
        except (OSError, *MALFORMED):
            continue
    return newest
