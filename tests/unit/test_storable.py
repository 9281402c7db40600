"""What a checkpoint takes, and gives back as it was."""

from __future__ import annotations

import collections
import datetime
import enum
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.engine import safe_load, storable
from jobs.run.errors import UserError


class Kind(enum.IntEnum):
    ONE = 1


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return one.dtype == other.dtype and bool((one == other).all())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


CODES = [code for code in np.typecodes["All"] if code not in "OVmMqQ"]  # q: another name of l


@pytest.mark.parametrize(
    "value",
    [
        None, True, 7, 1 << 80, 0.1, 1 + 2j, "ü", b"\xff", [1, (2,)], {3, "x"}, frozenset({4}), {1: 2},
        collections.Counter("aab"),
        collections.OrderedDict(b=1, a=2), collections.OrderedDict(torch.nn.BatchNorm1d(2).state_dict()),
        np.random.RandomState(3).get_state(), random.getstate(), torch.get_rng_state(),
        np.random.default_rng(3).bit_generator.state, torch.arange(4), torch.zeros(2, dtype=torch.bfloat16),
        b"", {b"": 1}, np.array([]), np.zeros((0, 3), "U2"), np.str_(""), np.bytes_(b""), np.array("é", "U1"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(3, dtype=">i4"), np.zeros((2, 0, 3)),
        np.array(3.0), np.arange(8)[::2], np.array(["a", "bcd"]), (np.arange(2), [np.arange(3)]),
        *(np.ones(3, code) for code in CODES), *(np.ones(1, code)[0] for code in CODES),
        *(torch.float16, torch.device("cpu"), torch.Size([2, 3])),
    ],
)  # fmt: skip
def test_what_is_stored_comes_back_as_it_was(value: Any) -> None:
    storable.check({"x": [value]}, "state()")
    assert same(safe_load.round_trip({"x": [value]})["x"][0], value)


@pytest.mark.parametrize(
    ("value", "kind", "instead"),
    [
        (collections.deque([1]), "collections.deque", "list(…)"),
        (collections.defaultdict(int, a=1), "collections.defaultdict", "dict(…)"),
        (Path("x"), f"{type(Path()).__module__}.PosixPath", "str(…)"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear", "its .state_dict()"),
        (datetime.date(2026, 1, 1), "datetime.date", "tensors, NumPy arrays, numbers"),
        (Kind.ONE, f"{__name__}.Kind", "tensors, NumPy arrays, numbers"),
        (np.array([object()]), "numpy.ndarray", "list(…)"),
        (lambda: 0, "builtins.function", "tensors"),
        (io.BytesIO(b""), "_io.BytesIO", "list(…)"),
    ],
)
def test_what_would_not_come_back_is_named_with_its_place(value: Any, kind: str, instead: str) -> None:
    with pytest.raises(UserError) as caught:
        storable.check({"step": 3, "mine": [0, {"x": value}]}, "state()")
    text = str(caught.value)
    assert text.startswith(f"state()['mine'][1]['x']: {kind} cannot be loaded back "), text
    assert f"give {instead}" in text
    assert "\n" not in text


def test_a_huge_number_is_refused_where_torch_could_not_read_it() -> None:
    huge = 1 << 3000
    try:
        storable.check(huge, "state()")
    except UserError:
        return
    assert safe_load.round_trip(huge) == huge


def test_a_key_counts_too() -> None:
    with pytest.raises(UserError, match=r"^state\(\)\['seen'\]: .*PosixPath"):
        storable.check({"seen": {Path("x"): 1}}, "state()")


def test_a_checkpoint_that_holds_more_than_data_is_told_in_one_line(tmp_path: Path) -> None:
    for number, value in enumerate((collections.deque([1]), Path("x"), Kind.ONE, torch.nn.Linear(1, 1))):
        torch.save({"state": value}, path := tmp_path / f"iter_{number}.pth")
        with pytest.raises(
            UserError, match=rf"iter_{number}\.pth cannot be loaded, because it .*\("
        ) as caught:
            safe_load.load_own(path)
        assert len(str(caught.value)) - len(str(path)) < 400
        assert "\n" not in str(caught.value)
