"""A run that is resumed for a longer training: which overrides it takes, and what becomes of its schedule."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.mmseg import compat
from jobs.run import events
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from launch.submit import longer, options

compat.prepare()

from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.optim.scheduler import LinearLR, MultiStepLR, PolyLR  # noqa: E402

from jobs.mmseg import schedules, state  # noqa: E402

CONFIG = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, begin=0, end=3),
    dict(type='PolyLR', by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=3, T_max=37, end=40),
]
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text(CONFIG)
    for epoch in (2, 4):
        manifest = {"step": 10 * epoch, "epoch": epoch}
        (run.checkpoints / f"epoch_{epoch}.pth.json").write_text(json.dumps(manifest))
    return run


def test_what_ended_with_the_training_ends_with_it_again(run: Run) -> None:
    assert longer.overrides(run, {"train_cfg.max_epochs": 6}) == {
        "train_cfg.max_epochs": 6,
        "param_scheduler.1.end": 6,
        "param_scheduler.2.end": 60,
        "param_scheduler.2.T_max": 57,
    }
    own = {"train_cfg.max_epochs": 6, "param_scheduler.1.end": 5}
    assert longer.overrides(run, own)["param_scheduler.1.end"] == 5


@pytest.mark.parametrize(
    ("scheduler", "stretched"),
    [
        ({"type": "MultiStepLR", "milestones": [3, 4]}, {"milestones": [6, 8]}),
        ({"type": "MultiStepLR", "by_epoch": False, "milestones": [20, 30]}, {"milestones": [40, 60]}),
        ({"type": "MultiStepLR", "begin": 1, "end": 4, "milestones": [2]}, {"end": 8, "milestones": [5]}),
        ({"type": "MultiStepLR", "end": 2, "milestones": [1]}, {}),
        ({"type": "StepLR", "step_size": 2}, {"step_size": 4}),
        ({"type": "CosineRestartLR", "periods": [1, 3]}, {"periods": [2, 6]}),
        ({"type": "OneCycleLR", "by_epoch": False, "total_steps": 40}, {"total_steps": 80}),
        ({"type": "ExponentialLR", "gamma": 0.5}, {}),
    ],
)
def test_what_has_steps_on_the_way_has_them_at_the_same_shares(
    run: Run, scheduler: dict[str, Any], stretched: dict[str, Any]
) -> None:
    run.config.write_text(f"train_cfg = dict(max_epochs=4)\nparam_scheduler = [{scheduler!r}]\n")
    found = longer.overrides(run, {"train_cfg.max_epochs": 8})
    del found["train_cfg.max_epochs"]
    assert found == {f"param_scheduler.0.{name}": value for name, value in stretched.items()}


def with_steps(milestones: list[int]) -> Any:
    made = training(4)
    made.param_schedulers[1] = MultiStepLR(made.optim_wrapper, milestones=milestones, by_epoch=True)
    return made


def test_moved_milestones_are_those_of_the_longer_training() -> None:
    short, straight, on = with_steps([1, 2]), with_steps([2, 4]), with_steps([2, 4])
    assert trained(short, 10) == pytest.approx(0.001)
    saved = state.plain([one.state_dict() for one in short.param_schedulers])
    assert schedules.changed(on.param_schedulers, saved)
    assert not schedules.changed(with_steps([1, 2]).param_schedulers, saved)
    on.train_loop.iter = 10
    assert schedules.replay(on)
    assert on.optim_wrapper.param_groups[0]["lr"] == trained(straight, 10) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model.decode_head.num_classes": 3}, "would make it a different one"),
        ({"train_cfg.max_epochs": 4}, "has already done 4 of train_cfg.max_epochs"),
        ({"train_cfg.max_epochs": "many"}, "must be a whole number"),
    ],
)
def test_another_training_or_a_shorter_one_is_refused(run: Run, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        longer.overrides(run, given)


def test_a_run_with_nothing_to_go_on_from_takes_any_override(run: Run) -> None:
    given = {"train_dataloader.batch_size": 3, "model.decode_head.num_classes": 5}
    for manifest in run.checkpoints.glob("*.json"):
        assert not longer.begins_anew(run)
        manifest.unlink()
    assert longer.overrides(run, given) == given
    first = {"stage": "train", "job": "1", "start": 1}
    events.append(run.events, "started", hosts=["n1"], world_size=1, **first)
    events.append(run.events, "validated", step=9, epoch=1, seconds=1.0, metrics={"mIoU": 1.0}, **first)
    with pytest.raises(UserError, match="would make it a different one"):
        longer.overrides(run, given)


def training(end: int) -> Any:
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    schedulers = [
        LinearLR(wrapper, start_factor=0.1, by_epoch=False, begin=0, end=3),
        PolyLR(wrapper, eta_min=1e-4, power=0.9, by_epoch=True, begin=0, end=end),
    ]
    loop = SimpleNamespace(by_epoch=True, iter=0, plan=SimpleNamespace(iterations=5))
    return SimpleNamespace(optim_wrapper=wrapper, param_schedulers=schedulers, train_loop=loop)


def trained(runner: Any, steps: int) -> float:
    for done in range(1, steps + 1):
        runner.param_schedulers[0].step()
        if done % 5 == 0:
            runner.param_schedulers[1].step()
    return float(runner.optim_wrapper.param_groups[0]["lr"])


def test_the_rate_is_what_it_would_have_been_in_the_longer_training() -> None:
    short, straight, on = training(2), training(4), training(4)
    assert trained(short, 10) == pytest.approx(1e-4)
    saved = [one.state_dict() for one in short.param_schedulers]
    assert schedules.changed(on.param_schedulers, saved)
    assert not schedules.changed(training(2).param_schedulers, saved)
    on.train_loop.iter = 10
    assert schedules.replay(on)
    assert on.optim_wrapper.param_groups[0]["lr"] == trained(straight, 10) > 0.01


def test_tuples_stay_tuples_through_the_request(tmp_path: Path) -> None:
    pairs = ["a.scale=(90,60)", "b=[(1,2),3]", "c=1,2", "d=[1,2]"]
    given = options.overrides(pairs)
    assert given == {"a.scale": (90, 60), "b": [(1, 2), 3], "c": [1, 2], "d": [1, 2]}
    run = Run(tmp_path)
    request = Request(name="x", config="c", data_root="/d", created="now", set=given)
    run.write_request(request)
    assert run.request().overrides == given
    assert run.request().set["a.scale"] == [90, 60]
    # A run whose code is older knows nothing of tuples.
    run.write_request(Request(name="x", config="c", data_root="/d", created="now", set={"c": [1, 2]}))
    assert "tuples" not in run.request_file.read_text()
