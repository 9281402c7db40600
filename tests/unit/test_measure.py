"""What the hooks measure that trainings are compared by (benchmarks/trainings); how `make gpu` ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.trainings.hooks import Measure, Steps
from tests.gpu.__main__ import NOTHING_SELECTED, together


class Profiler:
    """torch's, as of a GPU that has computed for 50 ms; putting that together takes long."""

    def stop(self) -> None:
        time.sleep(0.1)

    def events(self) -> list[Any]:
        spans = ((0, 30_000, "CUDA"), (20_000, 50_000, "CUDA"), (60_000, 90_000, "CPU"))
        return [
            SimpleNamespace(device_type=f"DeviceType.{device}", time_range=SimpleNamespace(start=a, end=b))
            for a, b, device in spans
        ]


def test_how_busy_a_gpu_is_does_not_depend_on_what_the_profiler_takes(tmp_path: Path) -> None:
    hook = Measure(str(tmp_path / "result.json"), warm_up=1, counted=1)
    hook.profiler, hook.steps = Profiler(), 6  # the fifth step after the counted one follows
    hook.began = time.perf_counter() - 0.1
    hook.after_train_iter(None)
    assert hook.found["busy"] == pytest.approx(0.5, abs=0.05)


def test_waiting_for_the_last_save_is_none_of_its_own(tmp_path: Path) -> None:
    hook = Steps(str(tmp_path / "result.json"))
    saver = SimpleNamespace(save=lambda *_, **__: None)
    hook.before_train(SimpleNamespace(survival=SimpleNamespace(saver=saver)))
    runner = SimpleNamespace(iter=4)
    saver.save(runner, "interval", asked=True)
    saver.save(runner, "end", asked=True, wait=0.0)
    hook.after_train(None)
    assert [step for step, _ in json.loads(hook.result.read_text())["saves"]] == [4]


@pytest.mark.parametrize(
    ("holds", "speed", "code"),
    [
        (0, 0, 0),
        (0, None, 0),
        (None, 0, 1),
        (0, 2, 1),  # a test that cannot be imported
        (-11, 0, 1),
        (0, NOTHING_SELECTED, 0),
        (NOTHING_SELECTED, NOTHING_SELECTED, NOTHING_SELECTED),
    ],
)
def test_no_part_that_could_not_run_is_a_success(holds: int | None, speed: int | None, code: int) -> None:
    assert together({"holds": holds, "speed": speed}) == code
