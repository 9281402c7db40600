"""Whether an error of a training is a mistake in its config, or in the user's code, and how it is told.

Read only once there is an error.
"""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.catalog.supported import LOOPS, name_of
from jobs.engine import devices
from jobs.mmseg import data
from jobs.run.errors import described, limited, one_line, said_by, users_place
from jobs.supervise import budget

ARGUMENTS = re.compile(r"unexpected keyword argument|missing \d+ required")
"""Python's words for arguments that a function does not take, or lacks."""

MOST = 500
"""Characters of an error's words that are told: mmengine's may hold half a config."""
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy"}
"""Packages whose errors are mistakes of those who call them."""
Steps = list[tuple[FrameType, int]]


def told(raised: Exception, begins: bool) -> str | None:
    """What is wrong and where, in one line, of an error that the next start would meet again. That is what
    building raises for a type that mmengine does not know, or for an argument that a type does not take,
    lacks, or whose value it refuses; where a run only `begins`, also what other code raises. None of others.
    """
    error = _unwrapped(raised)
    steps = list(traceback.walk_tb(error.__traceback__))
    if isinstance(error, KeyError) and "registry" in said_by(error):
        return _unknown(str(error.args[0]), steps[-1][0].f_locals)
    arguments = isinstance(error, TypeError) and ARGUMENTS.search(said_by(error))
    machines = data.transient(error) or _module(steps[-1]).startswith(devices.RAISING)
    # A shared library may be there on another node; of a worker's error the causes are not known here.
    machines |= isinstance(error, ImportError) and ".so" in said_by(error)
    machines |= "in DataLoader worker process" in said_by(error)
    refuses = isinstance(error, (ValueError, AssertionError))
    if not (_builds(steps) and (arguments or (refuses and not machines))):
        ours = _module(_outside(steps, LIBRARIES)[-1]).startswith("jobs.")
        if not begins or ours or machines or budget.is_hardware(described(error)):
            return None
        # The line alone may be too little to find it by.
        traceback.print_exception(error)
    reason = limited(one_line(error), MOST)
    if isinstance(error, KeyError) and 'must contain the key "type"' in reason:
        reason = f"a part of it has no type: {steps[-1][0].f_locals.get('cfg')}"
    elif not (arguments or refuses or reason.startswith(_kind(error))):
        reason = f"{_kind(error)}: {reason}"
    part = _part(steps)
    reason = f"{part}: {reason}" if part and part not in reason else reason
    placed = not said_by(error).strip() or (arguments and _builds(steps))
    return reason if placed else reason + _place(error, steps)


def _unwrapped(error: Exception) -> Exception:
    """The error that a hook has raised, which mmengine tells anew, without where it came from."""
    inner = error.__context__
    wrapped = isinstance(inner, TypeError) and said_by(error).startswith(f"{said_by(inner)} in ")
    return inner if wrapped and isinstance(inner, Exception) else error


def _kind(error: Exception) -> str:
    return type(error).__qualname__


def _module(step: tuple[FrameType, int]) -> str:
    return str(step[0].f_globals.get("__name__"))


def _builds(steps: Steps) -> bool:
    """Whether that came up in mmengine's building: others, in the midst of a training, have functions of such
    names, too."""
    return any(
        _module(one).startswith("mmengine.") and one[0].f_code.co_name.startswith("build") for one in steps
    )


def _part(steps: Steps) -> str:
    """The `type` of the config's innermost part that was being built, as the config has it; "" if there is
    none."""
    built = [one[0].f_locals for one in steps if one[0].f_code.co_name == "build_from_cfg"]
    kind = built[-1].get("obj_type") if built else None
    name = getattr(kind, "__name__", "") or name_of(kind or "")
    if built and str(getattr(built[-1].get("obj_cls"), "__module__", "")).startswith("jobs."):
        standing_for = {ours: theirs for theirs, ours in LOOPS.items()}
        name = standing_for.get(name, name.removeprefix("Fast"))
    return name


def _unknown(words: str, found: dict[str, Any]) -> str:
    """That a type is not known, and the known one that was probably meant. `found`: what the function that
    looked it up, one of mmengine's or mmcv's, has."""
    kinds = [found[name] for name in ("obj_type", "scheduler_type", "layer_type") if name in found]
    reason = " ".join(words.split()).split(". ")[0]
    if not kinds:
        return reason
    if "Cannot find None" in reason:  # mmcv's, of a layer
        reason = reason.replace("None", str(kinds[0]))
    registry, known = found.get("registry"), list[str]()
    while registry is not None:
        known += registry.module_dict
        registry = registry.parent
    near = difflib.get_close_matches(str(kinds[0]), known, 1)
    return reason + (f": did you mean {near[0]}?" if near else "")


def _outside(steps: Steps, packages: Collection[str]) -> Steps:
    return [one for one in steps if _module(one).partition(".")[0] not in packages]


def _place(error: Exception, steps: Steps) -> str:
    """Where it was raised: of the user's own code, or the innermost that is not of Python and its library,
    whose words do not tell where they come from."""
    frame, line = _outside(steps, sys.stdlib_module_names)[-1]
    return users_place(error) or f" ({Path(frame.f_code.co_filename).name}:{line})"
