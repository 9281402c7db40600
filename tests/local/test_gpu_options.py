"""The options for GPUs (docs/gpu-options.md), as far as a CPU runs them: each trains, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.engine import checkpoints
from jobs.mmseg import compat
from jobs.run.exit_codes import RESUME
from tests import tiny

pytestmark = pytest.mark.slow

STEPS = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {"optim_wrapper__type": "AmpOptimWrapper", "optim_wrapper__dtype": "bfloat16"},
    "channels_last": {"baton__channels_last": True},
    # dynamo as on a GPU, without minutes of a C++ compiler behind it.
    "compile": {"compile": {"backend": "eager"}},
    "fused": {"optim_wrapper__optimizer__fused": True},
    # Moments in the weights' own order of elements, which a fused update needs.
    "channels_last, fused": {"baton__channels_last": True, "optim_wrapper__optimizer__fused": True},
}
SETTINGS = {
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}],
    "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": STEPS, "val_interval": 1000},
    "val_dataloader": None,
    "val_cfg": None,
    "val_evaluator": None,
    "default_hooks__checkpoint__interval": 1000,
    "default_hooks__checkpoint__by_epoch": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("option", OPTIONS)
def test_each_resumes_exactly(option: str, data: Path, tmp_path: Path) -> None:
    whole = tiny.make_run(tmp_path / "whole", data, **SETTINGS, **OPTIONS[option])
    assert tiny.start(whole) == [0], tiny.log_of(whole, 1)
    interrupted = tiny.make_run(tmp_path / "interrupted", data, **SETTINGS, **OPTIONS[option])
    plan = {"at": "step", "step": 2, "signal": "SIGUSR2"}
    assert tiny.start(interrupted, plan=plan) == [RESUME], tiny.log_of(interrupted, 1)
    assert tiny.start(interrupted) == [0], tiny.log_of(interrupted, 2)

    expected, found = content(whole), content(interrupted)
    assert found["baton"]["step"] == STEPS
    for part in ("state_dict", "optimizer"):
        assert tiny.differences(found[part], expected[part]) == []
    if "channels_last" in option:
        for state in (expected, found):
            for tensor in (state["state_dict"]["backbone.stem.0.weight"], first_moment(state)):
                assert tensor.is_contiguous(memory_format=torch.channels_last)
    if option == "compile":
        assert 'has been "compiled"' in "".join(path.read_text() for path in interrupted.path.rglob("*.log"))


def content(run: Any) -> dict[str, Any]:
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None
    return compat.load(newest.path)


def first_moment(state: dict[str, Any]) -> torch.Tensor:
    return state["optimizer"]["state"][0]["momentum_buffer"]
