"""`--sweep KEY=A,B,C` and `--set KEY=VALUE`, as typed and as meant."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.run.errors import UserError
from launch.submit import options, sweep


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr=0.01,0.02", [0.01, 0.02]),
        ("a.b=(1,2),[3,4]", [(1, 2), [3, 4]]),
        ("a='x,y',z", ["x,y", "z"]),
        ("a=SGD", ["SGD"]),
        ("a=true,None", [True, None]),
    ],
)
def test_values_of_a_sweep(text: str, values: list[Any]) -> None:
    assert sweep.parse(text)[1] == values


@pytest.mark.parametrize("text", ["lr", "lr=", "=1", "a..b=1", "a=1,,2"])
def test_what_is_no_sweep(text: str) -> None:
    with pytest.raises(UserError, match="--sweep"):
        sweep.parse(text)


def test_overrides_are_typed() -> None:
    given = ["a.b=1e-3", "c=[1, 2]", "d=word", "e=x=y", "f=False"]
    assert options.overrides(given) == {"a.b": 1e-3, "c": [1, 2], "d": "word", "e": "x=y", "f": False}
