"""For the tests of examples/plain_pytorch.py: when two runs of it have come to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jobs.engine import checkpoints, safe_load
from jobs.run.directory import Run

EXAMPLE = "examples/plain_pytorch.py"


def final_state(path: Path) -> dict[str, Any]:
    """The last checkpoint's own part: weights, optimizer and learning-rate schedule, and the step."""
    last = checkpoints.newest(Run(path).checkpoints)
    assert last is not None
    state = safe_load.load(last.path)["state"]
    assert isinstance(state, dict)
    return state


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, value in enumerate(one):
            assert_same(value, other[number], f"{where}/{number}")
    else:
        assert one == other, where
