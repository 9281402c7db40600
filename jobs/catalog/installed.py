"""What is installed in this environment, without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def has_compiled_mmcv() -> bool:
    """Whether the installed mmcv has compiled operations; mmcv-lite has none."""
    spec = importlib.util.find_spec("mmcv")
    places = list(spec.submodule_search_locations or []) if spec else []
    return any(next(Path(place).glob("_ext*"), None) for place in places)


def is_installed(package: str) -> bool:
    """Whether a top-level package or module can be imported; imports nothing."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # loaded without a spec, as `__main__` is
        return True
