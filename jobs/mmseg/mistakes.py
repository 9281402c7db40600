"""Decides whether an error is a mistake in the config or in the user's code, and describes it.

Imported only after an error.
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
"""Python's messages for arguments that are unknown or missing."""

MOST = 500
"""Longest message that is shown, in characters: mmengine's may contain half a config."""
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy"}
"""Packages whose errors are blamed on their callers."""
Steps = list[tuple[FrameType, int]]


def told(raised: Exception, begins: bool) -> str | None:
    """What is wrong and where, in one line, if the next start would fail with the same error; else None.

    These are errors in building: an unknown type, or an argument that is unknown, missing or refused. As long
    as the run `begins`, they are also errors of other code.
    """
    error = _unwrapped(raised)
    steps = list(traceback.walk_tb(error.__traceback__))
    if isinstance(error, KeyError) and "registry" in said_by(error):
        return _unknown(str(error.args[0]), steps[-1][0].f_locals)
    arguments = isinstance(error, TypeError) and ARGUMENTS.search(said_by(error))
    machines = data.transient(error) or _module(steps[-1]).startswith(devices.RAISING)
    # Another node may have the shared library; a worker's error arrives without its causes.
    machines |= isinstance(error, ImportError) and ".so" in said_by(error)
    machines |= "in DataLoader worker process" in said_by(error)
    refuses = isinstance(error, (ValueError, AssertionError))
    if not (_builds(steps) and (arguments or (refuses and not machines))):
        ours = _module(_outside(steps, LIBRARIES)[-1]).startswith("jobs.")
        if not begins or ours or machines or budget.is_hardware(described(error)):
            return None
        # One line may not be enough to find the mistake.
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
    """The error that a hook raised, without mmengine's wrapping, which loses its place."""
    inner = error.__context__
    wrapped = isinstance(inner, TypeError) and said_by(error).startswith(f"{said_by(inner)} in ")
    return inner if wrapped and isinstance(inner, Exception) else error


def _kind(error: Exception) -> str:
    return type(error).__qualname__


def _module(step: tuple[FrameType, int]) -> str:
    return str(step[0].f_globals.get("__name__"))


def _builds(steps: Steps) -> bool:
    """Whether the error came from mmengine's building. Only its modules count: other code has functions with
    such names, too."""
    return any(
        _module(one).startswith("mmengine.") and one[0].f_code.co_name.startswith("build") for one in steps
    )


def _part(steps: Steps) -> str:
    """The `type`, as in the config, of the innermost part that was being built; "" if there is none."""
    built = [one[0].f_locals for one in steps if one[0].f_code.co_name == "build_from_cfg"]
    kind = built[-1].get("obj_type") if built else None
    name = getattr(kind, "__name__", "") or name_of(kind or "")
    if built and str(getattr(built[-1].get("obj_cls"), "__module__", "")).startswith("jobs."):
        standing_for = {ours: theirs for theirs, ours in LOOPS.items()}
        name = standing_for.get(name, name.removeprefix("Fast"))
    return name


def _unknown(words: str, found: dict[str, Any]) -> str:
    """The message for an unknown type, with the one that was probably meant. `found`: the local variables of
    the function that looked it up, in mmengine or mmcv."""
    kinds = [found[name] for name in ("obj_type", "scheduler_type", "layer_type") if name in found]
    reason = " ".join(words.split()).split(". ")[0]
    if not kinds:
        return reason
    if "Cannot find None" in reason:  # mmcv's message for a layer
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
    """Where the error was raised: the innermost line of the user's code, or else of any code but Python's
    library."""
    frame, line = _outside(steps, sys.stdlib_module_names)[-1]
    return users_place(error) or f" ({Path(frame.f_code.co_filename).name}:{line})"
