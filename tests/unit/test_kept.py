"""What a training changes beside weights, and is given back by a resume."""

import copy
import enum
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook, Hook, IterTimerHook
from mmengine.optim import OptimWrapper
from torch import nn

from jobs.engine import safe_load
from jobs.engine.snapshots import Snapshots
from jobs.mmseg import state
from jobs.mmseg.kept import (
    Kept,
    check_names,
    check_weights,
    inner,
    left_out,
    load_optimizers,
    put_left_out,
    weights,
)
from jobs.run.errors import UserError


class Warming(nn.Module):
    """Counts its steps, as a mean teacher does, and leaves what is frozen out of its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.local_iter, self.alpha, self.ready = 0, 0.5, False
        self.frozen, self.adapter = nn.BatchNorm2d(2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.register_buffer("grid", torch.zeros(1), persistent=False)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        return {k: v for k, v in super().state_dict(*arguments, **options).items() if "adapter" in k}


class Counting(Hook):
    def __init__(self) -> None:
        self.best, self.seen = 0.0, 0


def hooks(*given: Hook) -> Iterator[tuple[str, Hook]]:
    yield from ((f"{type(hook).__name__}/0", hook) for hook in given)


def test_numbers_and_what_is_frozen_come_back() -> None:
    model, hook, timer = Warming(), Counting(), IterTimerHook()
    kept = Kept({"": model}, hooks(hook, timer))
    model.local_iter, model.ready, hook.best, timer.start_iter = 7, True, 0.25, 7
    model.frozen.weight.requires_grad_(True)
    state = kept.state()
    assert state["numbers"] == {"": {"local_iter": 7}, "hook Counting/0": {"best": 0.25}}
    assert [name for name, trains in state["trains"].items() if not trains] == ["frozen.bias"]

    fresh, other, timer = Warming(), Counting(), IterTimerHook()
    Kept({"": fresh}, hooks(other, timer)).restore(state)
    assert (fresh.local_iter, fresh.alpha, fresh.ready, other.best, other.seen) == (7, 0.5, True, 0.25, 0)
    assert fresh.frozen.weight.requires_grad
    assert not fresh.frozen.bias.requires_grad
    assert timer.start_iter == 0


def test_a_trial_step_leaves_no_trace() -> None:
    model = Warming()
    kept = Kept({"": model}, hooks())
    before = kept.state()
    model.local_iter = 1
    kept.restore(before)
    assert model.local_iter == 0


class Banking(nn.Module):
    """Keeps features and past losses, not as buffers, or in one that its state_dict lacks."""

    queue: torch.Tensor

    def __init__(self, ranks: int = 2) -> None:
        super().__init__()
        self.bank, self.grown, self.last = torch.zeros(2, 3), torch.zeros(0, 3), torch.zeros(1)
        self.losses: list[float] = []
        self.recent: deque[float] = deque(maxlen=2)
        self.of_class: list[list[float]] = [[], []]
        self.counts = {"seen": 0}
        self.confusion, self.of_ranks, self.paths = np.zeros((2, 2)), [0.0] * ranks, ["here"]
        self.same = self.losses
        self.register_buffer("queue", torch.zeros(2), persistent=False)

    def train_a_step(self) -> None:
        self.bank[0] += 1
        self.grown = torch.cat([self.grown, torch.ones(1, 3)])
        self.last = torch.ones(1, requires_grad=True) * 2
        self.losses.append(0.5)
        self.recent.extend([1.0, 2.0, 3.0])
        self.of_class[1].append(3.0)
        self.counts["seen"] += 4
        self.confusion[1, 1] = self.of_ranks[0] = 7
        self.paths[0] = "there"
        self.queue += 3


def test_banks_and_lists_of_numbers_come_back(tmp_path: Path) -> None:
    model = Banking()
    kept = Kept({"": model}, hooks())
    assert kept.state()["data"] == {}
    model.train_a_step()
    torch.save(Snapshots().take(kept.state()), tmp_path / "kept.pth")
    state = safe_load.load(tmp_path / "kept.pth")

    fresh = Banking()
    losses, again = fresh.losses, Kept({"": fresh}, hooks())
    again.restore(state)
    for name in ("bank", "grown", "queue"):
        assert torch.equal(getattr(fresh, name), getattr(model, name)), name
    assert (fresh.losses, fresh.counts, fresh.of_ranks) == ([0.5], {"seen": 4}, [7, 0])
    assert fresh.losses is fresh.same is losses
    assert (list(fresh.recent), fresh.recent.maxlen) == ([2.0, 3.0], 2)
    assert fresh.of_class == [[], [3.0]]
    assert np.array_equal(fresh.confusion, model.confusion)
    assert (fresh.last.item(), fresh.paths) == (0, ["there"])
    # What has been given back is saved again, though nothing has changed since.
    assert again.state()["data"].keys() == state["data"].keys()
    assert again.state()["data"][""].keys() == state["data"][""].keys()

    other = Banking(ranks=1)
    Kept({"": other}, hooks()).restore(state)
    assert (other.of_ranks, other.losses) == ([0.0], [0.5])


def test_what_is_another_view_of_the_weights_is_no_data() -> None:
    class Looking(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.seen, self.read = self.weight.data, self.weight.detach().numpy()
            self.by_name = {"weight": self.weight.data}

    for buffers in (False, True):
        runner, hook = SimpleNamespace(model=Looking()), EMAHook(update_buffers=buffers)
        hook.before_run(runner)
        networks = state.networks(SimpleNamespace(model=runner.model, hooks=[hook]))
        kept = Kept(networks, hooks())
        for network in networks.values():
            for value in network.state_dict().values():
                value += 1
        assert kept.state()["data"] == {}


def test_a_trial_step_leaves_no_trace_in_data() -> None:
    model = Banking()
    kept = Kept({"": model}, hooks())
    before = copy.deepcopy(kept.state())
    model.train_a_step()
    kept.restore(before)
    assert (model.losses, list(model.recent), model.of_class) == ([], [], [[], []])
    assert not model.bank.any()
    assert not model.queue.any()
    assert model.grown.shape == (0, 3)
    assert not model.confusion.any()


class Stage(enum.IntEnum):
    ONE = 1
    TWO = 2


class Odd(Hook):
    def __init__(self) -> None:
        self.stage, self.key, self.part = Stage.ONE, 0, np.float32(0)
        self.__dict__["done"] = 0

    @property
    def done(self) -> int:
        return int(self.__dict__["done"])


def test_a_number_that_could_not_be_loaded_ends_no_run() -> None:
    hook, fresh = Odd(), Odd()
    kept = Kept({"": nn.ReLU()}, hooks(hook))
    hook.stage, hook.key, hook.part, hook.__dict__["done"] = Stage.TWO, 1 << 4000, np.float32(0.1), 3
    Kept({"": nn.ReLU()}, hooks(fresh)).restore(Snapshots().take(kept.state()))
    assert (fresh.stage, fresh.key, fresh.done) == (Stage.ONE, 0, 3)
    assert (fresh.part, type(fresh.part)) == (np.float32(0.1), np.float32)


def test_the_average_of_weights_that_are_left_out_comes_back() -> None:
    class Apart(Warming):
        def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
            found = nn.Module.state_dict(self, *arguments, **options)
            for name in [name for name in found if "frozen" in name]:
                del found[name]  # also of the averaged model's
            return found

    def averaged() -> tuple[dict[str, Any], Any]:
        runner, hook = SimpleNamespace(model=Apart()), EMAHook()
        nn.init.normal_(runner.model.frozen.weight)
        hook.before_run(runner)
        return state.networks(SimpleNamespace(model=runner.model, hooks=[hook])), hook.ema_model

    (networks, average), (others, fresh) = averaged(), averaged()
    put_left_out(others, {key: left_out(one) for key, one in networks.items() if key})
    assert torch.equal(fresh.module.frozen.weight, average.module.frozen.weight)
    assert not torch.equal(others[""].frozen.weight, fresh.module.frozen.weight)
    assert left_out(nn.BatchNorm2d(2)) == {}


def test_weights_that_a_model_leaves_out_are_saved() -> None:
    found = weights(Warming())
    assert {"adapter.weight", "frozen.weight", "frozen.running_mean"} <= found.keys()
    assert "grid" not in found
    missing, unknown = Warming().load_state_dict(found, strict=False)
    assert not missing
    assert not unknown


def test_a_hook_may_take_no_weights_out() -> None:
    check_weights({"a": 1}, {"a": 2, "b": 3})
    with pytest.raises(
        UserError, match=r"leaves 1 weights out of the checkpoint that the run resumes from \(b, …\)"
    ):
        check_weights({"a": 1, "b": 2}, {"a": 1, "c": 2})


def test_weights_come_and_go_with_the_model_alone() -> None:
    check_names({"a", "b"}, ["b", "a"])
    with pytest.raises(UserError, match=r"has made 1 weights since it was built \(c, …\)"):
        check_names({"a"}, ["a", "c"])
    with pytest.raises(
        UserError, match=r"1 weights of the model have disappeared since it was built \(b, …\)"
    ):
        check_names(["a", "b"], ["a"])


class Around(torch.optim.Optimizer):
    """As the usual SAM has it: another optimizer steps, over the same groups."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.5})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.5, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        self.base_optimizer.step()


def test_an_optimizer_inside_another_goes_on_as_well() -> None:
    def make() -> tuple[nn.Parameter, OptimWrapper]:
        parameter = nn.Parameter(torch.ones(2))
        return parameter, OptimWrapper(Around([parameter]))

    def step(parameter: nn.Parameter, wrapper: OptimWrapper, rate: float) -> None:
        parameter.grad = torch.ones(2)
        wrapper.param_groups[0]["lr"] = rate
        wrapper.optimizer.step()

    parameter, wrapper = make()
    step(parameter, wrapper, 0.5)
    states = copy.deepcopy([one.state_dict() for one in inner(wrapper.optimizer)])
    fresh, other = make()
    fresh.data.copy_(parameter.data)
    load_optimizers(other, [other], wrapper.state_dict(), [states])
    step(parameter, wrapper, 0.25)
    step(fresh, other, 0.25)
    assert torch.equal(parameter, fresh)


def test_optimizers_that_know_each_other() -> None:
    one, other = (torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(2))
    one.other, other.one = other, one  # type: ignore[attr-defined]
    assert inner(one) == [other]
