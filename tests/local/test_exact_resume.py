"""A run that was interrupted ends with the same bits as one that was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events
from jobs.run.directory import Run
from jobs.run.exit_codes import RESUME, SUPERSEDED
from tests.support import tiny

pytestmark = pytest.mark.slow

HARD = "tests/support/configs/tiny_iters.py"
INTERRUPTIBLE = {
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "log_level": "WARNING",
}
KILLED = -9
EMA = {"type": "EMAHook", "momentum": 0.1}

State = Callable[[str, int], dict[str, Any]]
"""Gives the final state of a run, by its config and its ranks."""


def make(path: Path, data: Path, config: str, ranks: int = 1, ema: dict = EMA, /, **settings: Any) -> Run:
    settings["train_dataloader__batch_size"] = 4 // ranks
    hooks = [{"type": "Interrupt"}, {"type": "RecordDraws"}]
    if config == HARD:
        hooks.append(ema)
    return tiny.make_run(path, data, config, custom_hooks=hooks, **INTERRUPTIBLE, **settings)


def finish(run: Run, ranks: int = 1, starts: int = 12) -> None:
    for _ in range(starts):
        codes = tiny.start(run, ranks)
        if codes == [0] * ranks:
            return
        assert codes == [RESUME] * ranks, tiny.log_of(run, len(list(run.job.glob("start-*"))))
    raise AssertionError("the run did not finish")


def interrupt(run: Run, ranks: int, at: str, step: int, signal: str, rank: int | None) -> list[int]:
    return tiny.start(run, ranks, {"at": at, "step": step, "signal": signal, "rank": rank})


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The final state of an uninterrupted run, by (config, ranks); each is trained once."""
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def state(config: str, ranks: int) -> dict[str, Any]:
        if (config, ranks) not in known:
            run = make(tmp_path_factory.mktemp("runs") / "whole", data, config, ranks)
            finish(run, ranks, starts=1)
            known[config, ranks] = tiny.final_state(run)
        return known[config, ranks]

    return state


@pytest.mark.parametrize(
    ("config", "ranks", "workers"),
    [
        ("tests/support/configs/tiny.py", 1, 0),
        ("tests/support/configs/tiny.py", 2, 2),
        (HARD, 1, 1),
        (HARD, 2, 0),
    ],
)
def test_any_interruption(
    config: str, ranks: int, workers: int, data: Path, uninterrupted: State, tmp_path: Path
) -> None:
    persistent = {"train_dataloader__persistent_workers": workers > 0 and config == HARD}
    run = make(tmp_path / "run", data, config, ranks, train_dataloader__num_workers=workers, **persistent)
    # 18 steps; validations after 6, 12 and 18, or 7, 14 and 18.
    validated = 7 if config == HARD else 6
    unlucky = random.Random(f"{config} {ranks}").randint(16, 18)
    assert interrupt(run, ranks, "step", 2, "SIGUSR2", 0) == [RESUME] * ranks
    assert KILLED in interrupt(run, ranks, "validate", validated, "SIGKILL", ranks - 1)
    assert interrupt(run, ranks, "validate", validated, "SIGUSR2", 0) == [RESUME] * ranks
    # A signal that comes in a step is heeded at the end of the next: here the last before a validation.
    leave = 14 if config == HARD else 12
    assert interrupt(run, ranks, "step", leave - 1, "SIGTERM", ranks - 1) == [RESUME] * ranks
    assert KILLED in interrupt(run, ranks, "step", unlucky, "SIGKILL", 0)
    left = [event["step"] for event in events.read(run.events) if event["event"] == "preempted"]
    assert left == [3, validated, leave]
    finish(run, ranks)
    assert tiny.differences(tiny.final_state(run), uninterrupted(config, ranks)) == []


@pytest.mark.parametrize("config", ["tests/support/configs/tiny.py", HARD])
def test_interrupted_wherever_an_epoch_or_the_training_ends(
    config: str, data: Path, uninterrupted: State, tmp_path: Path
) -> None:
    """With a validation to come, and without: the last step of all."""
    run = make(tmp_path / "run", data, config)
    ends = [7, 14, 18] if config == HARD else [6, 12, 18]
    for step in ends:
        assert interrupt(run, 1, "step", step - 1, "SIGUSR2", None) == [RESUME]
    finish(run)
    log = [event for event in events.read(run.events) if event["event"] in ("preempted", "validated")]
    assert [event["step"] for event in log] == [step for end in ends for step in (end, end)]
    assert tiny.differences(tiny.final_state(run), uninterrupted(config, 1)) == []


@pytest.mark.parametrize("phase", ["opened", "synced", "renamed", "manifest"])
def test_killed_during_a_save(phase: str, data: Path, uninterrupted: State, tmp_path: Path) -> None:
    """By fault injection, on the thread that writes, while the training goes on beside it."""
    run = make(tmp_path / "run", data, "tests/support/configs/tiny.py")
    for save in (2, 1):
        assert interrupt(run, 1, phase, save, "SIGKILL", None) == [KILLED]
    finish(run)
    assert tiny.differences(tiny.final_state(run), uninterrupted("tests/support/configs/tiny.py", 1)) == []


def test_with_warning_no_finished_step_is_lost(data: Path, tmp_path: Path) -> None:
    run = make(tmp_path / "run", data, "tests/support/configs/tiny.py")
    for step in (2, 4, 9, 13):
        assert interrupt(run, 1, "step", step, "SIGUSR2", None) == [RESUME]
    finish(run)
    log = [event for event in events.read(run.events) if event["event"] in ("preempted", "resumed")]
    steps = [(event["event"], event["step"]) for event in log]
    left = [3, 5, 10, 14]
    assert [step for name, step in steps if name == "preempted"] == left
    assert [step for name, step in steps if name == "resumed"] == left


def test_without_warning_the_first_step_is_reached_again(
    data: Path, uninterrupted: State, tmp_path: Path
) -> None:
    run = make(tmp_path / "run", data, "tests/support/configs/tiny.py")
    for _ in range(2):
        assert interrupt(run, 1, "step", 1, "SIGKILL", None) == [KILLED]
    finish(run)
    assert tiny.differences(tiny.final_state(run), uninterrupted("tests/support/configs/tiny.py", 1)) == []


def test_other_number_of_ranks_keeps_the_global_batch(
    data: Path, uninterrupted: State, tmp_path: Path
) -> None:
    """Two ranks, one, two again: the same slots, so, but for running statistics, even the same bits."""
    run = make(tmp_path / "run", data, "tests/support/configs/tiny.py", 2)
    assert interrupt(run, 2, "step", 2, "SIGUSR2", 0) == [RESUME] * 2
    assert interrupt(run, 1, "step", 8, "SIGUSR2", 0) == [RESUME]
    finish(run, 2)
    state, whole = tiny.final_state(run), uninterrupted("tests/support/configs/tiny.py", 2)
    assert state["step"] == whole["step"]
    weights = {key: value for key, value in state["state_dict"].items() if "running" not in key}
    expected = {key: whole["state_dict"][key] for key in weights}
    assert [d for d in tiny.differences(weights, expected) if "num_batches" not in d] == []


@pytest.mark.parametrize("config", ["tests/support/configs/tiny.py", HARD])
def test_four_ranks(config: str, data: Path, uninterrupted: State, tmp_path: Path) -> None:
    """Sums of more than two parts depend on their order, which a fresh DistributedDataParallel changes."""
    workers = {"train_dataloader__num_workers": 0, "train_dataloader__persistent_workers": False}
    run = make(tmp_path / "run", data, config, 4, **workers)
    assert interrupt(run, 4, "step", 2, "SIGUSR2", 3) == [RESUME] * 4
    finish(run, 4)
    assert tiny.differences(tiny.final_state(run), uninterrupted(config, 4)) == []


def test_several_optimizers_that_accumulate(data: Path, tmp_path: Path) -> None:
    """mmengine tells a single optimizer how many losses it has seen, several it does not."""
    part = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}}
    settings = {
        "custom_imports__imports": ["tests.interrupting", "tests.support.models"],
        "model__type": "TwoOptimizers",
        "param_scheduler": None,
        "optim_wrapper": {
            "_delete_": True,
            "constructor": "OneEach",
            "backbone": part | {"accumulative_counts": 2},
            "decode_head": part | {"accumulative_counts": 3},
        },
    }
    runs = []
    for name, interruptions in (("whole", []), ("interrupted", [2, 6])):
        run = make(tmp_path / name, data, "tests/support/configs/tiny.py", 1, **settings)
        for step in interruptions:
            assert interrupt(run, 1, "step", step, "SIGUSR2", None) == [RESUME]
        finish(run)
        runs.append(tiny.final_state(run))
    assert tiny.differences(runs[1], runs[0]) == []


def test_an_average_of_the_statistics_too(data: Path, tmp_path: Path) -> None:
    """With `update_buffers` each rank keeps an average of its own running statistics; a model, what it
    remembers."""
    settings = {
        "custom_imports__imports": ["tests.interrupting", "tests.support.models"],
        "model__type": "Remembering",
        "train_dataloader__num_workers": 1,
    }
    runs = []
    for name, interruptions in (("whole", []), ("interrupted", [2, 9])):
        ema = EMA | {"update_buffers": True}
        run = make(tmp_path / name, data, HARD, 2, ema, **settings)
        for step in interruptions:
            assert interrupt(run, 2, "step", step, "SIGUSR2", 1) == [RESUME] * 2
        finish(run, 2)
        runs.append(tiny.final_state(run))
    assert tiny.differences(runs[1], runs[0]) == []


def test_what_is_saved_is_what_was_validated(uninterrupted: State) -> None:
    """The averaged model's running statistics are those of all ranks, as its weights are."""
    state = uninterrupted(HARD, 2)
    saved = {key: value for key, value in state["state_dict"].items() if ".running_" in key}
    validated = {key: state["ema_state_dict"][f"module.{key}"] for key in saved}
    assert saved
    assert tiny.differences(saved, validated) == []


def test_a_later_start_fences_off_an_earlier_one(data: Path, tmp_path: Path) -> None:
    run = make(tmp_path / "run", data, "tests/support/configs/tiny.py")
    (run.job / "start-7").touch()  # the next one is number 2
    assert tiny.start(run) == [SUPERSEDED]
    assert list(run.checkpoints.glob("*.pth")) == []
    assert "start 7" in tiny.log_of(run, 2)
