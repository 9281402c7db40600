"""argparse types for numbers in a range. Each raises a one-line UserError for anything else."""

from __future__ import annotations

import re
from collections.abc import Callable

from jobs.run.errors import UserError


def whole(option: str, low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`, in plain digits."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise UserError(f"{option} must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return read


def number(option: str, low: float, high: float) -> Callable[[str], float]:
    """A number from `low` to `high`; never `nan` or `inf`."""

    def read(text: str) -> float:
        try:
            if low <= (value := float(text)) <= high:
                return value
        except ValueError:
            pass
        raise UserError(f"{option} must be a number from {low:g} to {high:g}, not {text!r}")

    return read
