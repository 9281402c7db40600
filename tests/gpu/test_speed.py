"""What a step, a save, a start and an evaluation take, against plain mmengine with the same config: figures
for the table, none of which decides whether a test passes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evaluation
from benchmarks.trainings import start
from tests.gpu import work
from tests.gpu.work import ON_CPU, RECIPE, Show

pytestmark = pytest.mark.slow

WARM_UP, COUNTED, PROFILED, EVERY, SAVES = (2, 3, 5, 2, 2) if ON_CPU else (10, 30, 5, 10, 4)
BATCH = 4
AMP = {"optim_wrapper__type": "AmpOptimWrapper", "optim_wrapper__dtype": "bfloat16"}
LAST = {"baton__channels_last": True}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    # Convolutions take TF32 by default, products of matrices do not.
    "as torch has it": ({}, {}),
    "float32": ({}, {"NVIDIA_TF32_OVERRIDE": "0"}),
    "TF32": ({}, {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}),
    "bfloat16": (AMP, {}),
    "bfloat16, channels_last": (AMP | LAST, {}),
    "bfloat16, compile": (AMP | {"compile": True}, {}),
}
ON_THE_CPU = ("as torch has it",)


def measured(side: str, path: Path, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    hook = {
        "type": "Measure", "result": str(path / "result.json"), "warm_up": WARM_UP, "counted": COUNTED
    }  # fmt: skip
    begin = WARM_UP + COUNTED + PROFILED + 1
    steps = work.by_iteration(begin + EVERY * SAVES, EVERY, begin)
    run = start.make_run(path, data, RECIPE, hook, **steps | settings)
    found: dict[str, Any] = start.result(side, run)
    start.delete(run)
    return found


@pytest.mark.parametrize("option", ON_THE_CPU if ON_CPU else OPTIONS)
def test_a_step(option: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Show) -> None:
    settings, environment = OPTIONS[option]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = {side: measured(side, tmp_path / side, data, settings) for side in ("ours", "peer")}
    for side, one in found.items():
        stalls = [seconds for _, seconds in one["saves"][1:]]
        busy = "–" if one["busy"] is None else f"{one['busy']:.0%}"
        show(
            f"training, {option}, {'Baton' if side == 'ours' else 'mmengine'}",
            f"{BATCH / one['step']:.3g} images/s, {one['step'] * 1000:.3g} ms a step, GPU busy {busy}, "
            f"waits for data {one['wait']:.1%}, save stall {statistics.median(stalls):.3f} s, "
            f"first step after {one['first']:.1f} s, peak {one['peak'] / 2**30:.2f} GiB",
        )
    ours, peer = found["ours"], found["peer"]
    show(f"training, {option}, step against mmengine", f"{ours['step'] / peer['step']:.3f}× (goal ≤ 1.00)")
    assert ours["step"] > 0
    assert peer["step"] > 0


def test_an_evaluation(show: Show) -> None:
    """That both sides find the same figures, `whole_test` looks itself."""
    images = 6 if ON_CPU else 60
    config = "configs/demo.py" if ON_CPU else "configs/upernet_r50_voc-aug_512x512_epoch-200.py"
    with evaluation.whole_test(config, images, 1) as (ours, peer, details):
        ours()
        peer()
        parts = details["seconds_rank_0"]
    mine = sum(parts["ours"][-1][key] for key in ("loading", "model", "counting"))
    theirs = parts["peer"][-1]["all"]
    show("evaluation", f"{images / mine:.3g} images/s, mmseg {images / theirs:.3g} (goal ≥ 2×)")
