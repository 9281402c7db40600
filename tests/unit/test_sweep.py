"""`--sweep KEY=A,B,C` and `--set KEY=VALUE`, as typed and as meant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from jobs.run.errors import UserError
from launch.submit import options, sweep, sweep_options
from tests.unit.made_runs import common, made_run, submitted, write


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
    assert sweep_options.parse(text)[1] == values


@pytest.mark.parametrize(
    "text", ["lr", "lr=", "=1", "a..b=1", "a=1,,2", "a=[18,34", "a=18,34]", "a=[18,34)", "a='x,y"]
)
def test_what_is_no_sweep(text: str) -> None:
    with pytest.raises(UserError, match="--sweep"):
        sweep_options.parse(text)


@pytest.mark.parametrize("value", ["[18,34", "(1,2]", "{'a':3"])
def test_an_override_that_lacks_a_bracket_is_no_text(value: str) -> None:
    with pytest.raises(UserError, match=r"--set .*: a . (is missing|closes no bracket); as a text: a=\""):
        options.overrides([f"a={value}"])
    assert options.overrides([f'a="{value}"']) == {"a": value}


@pytest.mark.parametrize("value", [["it's"], {"a": "it's ["}, ['"', "(", 1], ("\\", "x")])
def test_what_python_reads_is_taken(value: Any) -> None:
    assert options.overrides([f"a={value!r}"]) == {"a": value}
    assert sweep_options.parse(f"a={value!r},1")[1] == [value, 1]


def test_overrides_are_typed() -> None:
    given = ["a.b=1e-3", "c=[1, 2]", "d=word", "e=x=y", "f=False"]
    assert options.overrides(given) == {"a.b": 1e-3, "c": [1, 2], "d": "word", "e": "x=y", "f": False}


def test_a_file_of_weights_is_found_where_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/epoch_3.pth", "data/x.pth"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    there = str(tmp_path / "runs/epoch_3.pth")
    pairs = ["load_from=runs/epoch_3.pth", "model.backbone.init_cfg.checkpoint=runs/epoch_3.pth"]
    assert list(options.overrides(pairs).values()) == [there, there]
    left = ["load_from=data/x.pth", "model.pretrained=runs/none.pth", "a.name=runs/epoch_3.pth"]
    assert [f"{key}={value}" for key, value in options.overrides(left).items()] == left
    assert sweep_options.parse("load_from=runs/epoch_3.pth,None") == ("load_from", [there, None])
    hook = {"type": "CheckpointHook", "save_best": "mIoU" * 99}  # longer than any file's name
    key = "default_hooks.checkpoint"
    assert options.overrides([f"{key}={hook}"]) == {key: hook}


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sweep_options.add(parser)
    parser.add_argument("--set", nargs="+", action="extend", default=[])
    parser.add_argument("--seed", type=int)
    return parser.parse_args(words)


def test_every_combination_or_one_after_the_other() -> None:
    lr, crop = ("--sweep", "lr=0.1,0.2"), ("--sweep", "crop=(3,4),(5,6)")
    assert sweep_options.elements(given(*lr)) == [{"lr": 0.1}, {"lr": 0.2}]
    found = sweep_options.elements(given(*lr, *crop, "--seeds", "0-1"))
    assert found[:3] == [
        {"lr": 0.1, "crop": (3, 4), "randomness.seed": 0},
        {"lr": 0.1, "crop": (3, 4), "randomness.seed": 1},
        {"lr": 0.1, "crop": (5, 6), "randomness.seed": 0},
    ]
    assert len(found) == 8
    assert sweep_options.elements(given(*lr, *crop, "--zip")) == [
        {"lr": 0.1, "crop": (3, 4)}, {"lr": 0.2, "crop": (5, 6)},
    ]  # fmt: skip
    assert sweep_options.seeds("3, 5-7") == [3, 5, 6, 7]


@pytest.mark.parametrize("values", ["0.01,0.01", "0.01,0.02,0.010", "1,1.0", "1e-2,.01", "SGD,'SGD'"])
def test_two_runs_of_a_sweep_are_not_the_same(values: str) -> None:
    for more in ((), ("--seeds", "0,1"), ("--zip", "--sweep", f"b={','.join('2' * len(values.split(',')))}")):
        with pytest.raises(UserError, match="two runs would be the same, with a="):
            sweep_options.elements(given("--sweep", f"a={values}", *more))


def test_a_value_may_be_there_twice_beside_another_one() -> None:
    found = sweep_options.elements(given("--sweep", "a=1,1,True", "--sweep", "b=2,3,2", "--zip"))
    assert found == [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": True, "b": 2}]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--sweep", "a=1,2", "--sweep", "b=1,2,3", "--zip"), "there are 2 of a, 3 of b"),
        (("--sweep", "a=1", "--sweep", "a=2"), "--sweep a: its values are given more than once"),
        (("--sweep", "a=1", "--set", "a=2"), "--sweep a: its values are given more than once"),
        (("--sweep", "randomness.seed=1,2", "--seeds", "3"), "given more than once"),
        (("--seeds", "1", "--seed", "2"), "--seeds and --seed"),
        (("--sweep", "randomness.seed=1,2", "--seed", "3"), "--sweep randomness.seed and --seed"),
        (("--seeds", "0,1,0"), "a seed appears twice"),
        (("--seeds", "3-1"), "write whole numbers"),
        (("--seeds", ""), "write whole numbers"),
        (("--sweep", f"a={'1,' * 999}1", "--sweep", f"b={'1,' * 999}1"), "1000000 runs are more than 1000"),
        (("--seeds", "one"), "write whole numbers"),
        (("--seeds", "0-99999"), "1000 runs at most"),
        (("--seeds", "4294967296"), "a seed must be 0 to 4294967295"),
        (("--sweep", "randomness.seed=-1"), "a seed must be 0 to"),
        (("--sweep", f"a={','.join('123456789')}", "--seeds", "0-199"), "1800 runs are more than 1000"),
    ],
)
def test_what_is_no_grid(words: tuple[str, ...], error: str) -> None:
    with pytest.raises(UserError, match=error):
        sweep_options.elements(given(*words))


def test_each_run_that_is_waited_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [made_run(tmp_path / f"g-{number}") for number in range(2)]
    for run in made:
        submitted(run)
        write(run, 1, "finished", step=1, epoch=1, **common(1))
    waits = argparse.Namespace(json=False, wait=True)
    assert sweep._tell(waits, made, [{"a": 1}, {"a": 2}], [({"train": "12"}, None)] * 2) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [lines.index(f"==> {run.name}") for run in made]
    assert [line.split()[2] for line in lines[named[0] + 1 : named[1]]] == ["submitted", "finished"]
