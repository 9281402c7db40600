"""`--sweep KEY=A,B,C` and `--set KEY=VALUE`, as typed and as meant."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.observe.report.data import repeat_command
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


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sweep.add_options(parser)
    parser.add_argument("--set", nargs="+", action="extend", default=[])
    parser.add_argument("--seed", type=int)
    return parser.parse_args(words)


def test_every_combination_or_one_after_the_other() -> None:
    lr, crop = ("--sweep", "lr=0.1,0.2"), ("--sweep", "crop=(3,4),(5,6)")
    assert sweep.elements(given(*lr)) == [{"lr": 0.1}, {"lr": 0.2}]
    found = sweep.elements(given(*lr, *crop, "--seeds", "0-1"))
    assert found[:3] == [
        {"lr": 0.1, "crop": (3, 4), "randomness.seed": 0},
        {"lr": 0.1, "crop": (3, 4), "randomness.seed": 1},
        {"lr": 0.1, "crop": (5, 6), "randomness.seed": 0},
    ]
    assert len(found) == 8
    assert sweep.elements(given(*lr, *crop, "--zip")) == [
        {"lr": 0.1, "crop": (3, 4)}, {"lr": 0.2, "crop": (5, 6)},
    ]  # fmt: skip
    assert sweep.seeds("3, 5-7") == [3, 5, 6, 7]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--sweep", "a=1,2", "--sweep", "b=1,2,3", "--zip"), "there are 2 of a, 3 of b"),
        (("--sweep", "a=1", "--sweep", "a=2"), "--sweep a: its values are given twice"),
        (("--sweep", "a=1", "--set", "a=2"), "--sweep a: its values are given twice"),
        (("--sweep", "randomness.seed=1,2", "--seeds", "3"), "given twice"),
        (("--seeds", "1", "--seed", "2"), "--seeds and --seed"),
        (("--seeds", "0,1,0"), "a seed is there twice"),
        (("--seeds", "3-1"), "write whole numbers"),
        (("--seeds", "one"), "write whole numbers"),
        (("--seeds", "0-99999"), "write whole numbers"),
        (("--seeds", "4294967296"), "a seed must be 0 to 4294967295"),
        (("--sweep", "randomness.seed=-1"), "a seed must be 0 to"),
        (("--sweep", f"a={','.join('123456789')}", "--seeds", "0-199"), "1800 runs are more than 1000"),
    ],
)
def test_what_is_no_grid(words: tuple[str, ...], error: str) -> None:
    with pytest.raises(UserError, match=error):
        sweep.elements(given(*words))


def made(runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["launch/train.py", "--config", "tests/configs/tiny.py", "--cluster", "slurm", *arguments]
    return subprocess.run(
        [sys.executable, *command], cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"BATON_RUNS": str(runs)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_grid_of_runs_is_made(tmp_path: Path) -> None:
    grid = ["--run", "g", "--sweep", "optim_wrapper.optimizer.lr=0.1,0.2", "--seeds", "0,7", "--no-submit"]
    done = made(tmp_path, *grid)
    assert done.returncode == 0, done.stderr
    found = [Run(tmp_path / f"g-{number}").request() for number in range(4)]
    assert [(one.seed, one.set["randomness.seed"]) for one in found] == [(0, 0), (7, 7)] * 2
    assert [one.set["optim_wrapper.optimizer.lr"] for one in found] == [0.1, 0.1, 0.2, 0.2]
    assert {one.sweep for one in found} == {"g"}
    assert "#SBATCH --array=0-3" in (tmp_path / "g-3/job/train.sbatch").read_text()
    # The script of a dry run makes the same runs, each element its own.
    shown = made(tmp_path, *grid[2:-1], "--run", "h", "--dry-run").stdout
    assert "--seeds=0,7" in shown
    assert "--sweep=optim_wrapper.optimizer.lr=0.1,0.2" in shown
    repeated = repeat_command(found[3])
    assert repeated[-4:] == ["--set", "optim_wrapper.optimizer.lr=0.2", "--set", "randomness.seed=7"]


def test_options_of_a_sweep_without_one(tmp_path: Path) -> None:
    done = made(tmp_path, "--zip", "--no-submit")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --zip is about the values of several --sweep")
    done = made(tmp_path, "--resume", "x", "--seeds", "1")
    assert done.returncode == 2
    assert "it takes no --seeds" in done.stderr
