"""Objects that a training keeps: in several places, of odd classes, of each process; large ones."""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from jobs.mmseg import attributes, state, values
from jobs.mmseg.attributes import Attributes
from jobs.mmseg.kept import Kept
from jobs.mmseg.reach import data_owners
from jobs.mmseg.things import give_state
from tests.unit.test_attributes import Data, resumed
from tests.unit.test_attributes import Holding as Kind


class Holding(Kind):
    """Of this module, as the objects are: of the user's."""


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = self.now = torch.zeros(2)
        self.one = self.other = [0.0]
        self.bank = torch.zeros(1)
        self.by_name, self.rows = {"a": self.bank}, [torch.zeros(1)] * 2
        self.queue: Any = None
        self.again: Any = None
        self.nets = [nn.Linear(1, 1), nn.Linear(1, 1)]
        self.chosen = SimpleNamespace(net=self.nets[0], queue=None, row=None)

    def train_a_step(self) -> None:
        self.before, self.now = torch.ones(2), torch.ones(2) * 2
        self.one, self.other = [1.0], [2.0]
        self.bank += 3
        self.queue = self.again = deque([1.0], maxlen=2)
        self.rows[0] = torch.ones(1)
        self.chosen.net, self.chosen.queue, self.chosen.row = self.nets[1], self.queue, self.rows[1]


def test_what_lies_in_several_places_is_one_object_again(tmp_path: Path) -> None:
    model, fresh, kept = resumed(Sharing, Sharing.train_a_step, tmp_path)
    for one in (model, fresh):
        assert (one.before.tolist(), one.now.tolist()) == ([1, 1], [2, 2])
        assert (one.one, one.other) == ([1.0], [2.0])
        assert one.by_name["a"] is one.bank
        assert one.queue is one.again is one.chosen.queue
        assert one.chosen.row is one.rows[1] is not one.rows[0]
        assert (one.rows[0].item(), one.rows[1].item(), one.bank.item()) == (1, 0, 3)
        assert one.chosen.net is one.nets[1]
    assert not kept.lost


def test_what_began_as_one_object_is_one_after_a_trial_step() -> None:
    model = Sharing()
    kept = Kept({"": model}, ())
    before = values.copied(kept.state())
    now, one, rows = model.now, model.one, model.rows
    model.train_a_step()
    kept.restore(before)
    assert model.before is model.now is now
    assert model.one is model.other is one
    assert (one, now.tolist(), model.bank.item(), model.queue) == ([0.0], [0, 0], 0, None)
    assert model.rows is rows
    assert rows[0] is rows[1]


def test_what_is_trained_by_itself_too() -> None:
    """Where it is replaced, another that began as the same keeps its own."""
    model: Any = Holding(None)
    model.before = model.now = torch.zeros(1, requires_grad=True)
    kept = Kept({"": model}, ())
    model.before, model.now = torch.ones(1, requires_grad=True), torch.tensor([2.0], requires_grad=True)
    kept.restore(values.copied(kept.state()))
    assert (model.before.tolist(), model.now.tolist()) == ([1], [2])


class Drawing:
    def __init__(self, images: Any) -> None:
        self.images = images

    def __call__(self, results: Any) -> Any:
        return results


class Lookup(dict):
    __getattr__ = dict.__getitem__


class Noisy:
    __slots__ = ("steps",)

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


@dataclass(slots=True)
class Book:
    steps: int = 0
    last: Any = None


class Stage(Enum):
    WARM = 1
    HOT = 2


def read(steps: int) -> Callable[[Any], None]:
    def train(model: Any) -> None:
        model.value.steps = steps

    return train


@pytest.mark.parametrize("kind", [Book, Noisy, SimpleNamespace])
def test_objects_with_and_without_a_dict(kind: Any, tmp_path: Path) -> None:
    _, fresh, kept = resumed(lambda: Holding(kind()), read(3), tmp_path)
    assert (fresh.value.steps, kept.lost) == (3, {})


def test_a_dict_that_answers_for_attributes_ends_no_run(tmp_path: Path) -> None:
    _, fresh, _ = resumed(lambda: Holding(Lookup(a=1)), lambda _: None, tmp_path)
    assert fresh.value.a == 1


PLAIN: list[tuple[Any, Any]] = [
    (None, torch.Size((2, 3))),
    (None, torch.float16),
    (None, torch.device("cpu")),
    ({}, {(2, 3, torch.device("cpu")): torch.ones(1)}),
    (False, np.True_),
    (Stage.WARM, Stage.HOT),
]


@pytest.mark.parametrize(("first", "then"), PLAIN)
def test_what_a_cache_goes_by_comes_back_with_it(first: Any, then: Any, tmp_path: Path) -> None:
    """Positions made for one size of the input: silently made again, or used again."""

    def train(model: Any) -> None:
        model.value, model.grid = then, torch.ones(2)

    _, fresh, kept = resumed(lambda: Holding(first), train, tmp_path)
    assert (repr(fresh.value), type(fresh.value)) == (repr(then), type(then))
    assert fresh.grid.tolist() == [1, 1]
    assert not kept.lost


def test_what_each_process_makes_is_not_said(tmp_path: Path) -> None:
    class Writer:
        def add_histogram(self) -> None: ...

    class Late(Hook):
        writer = log = lock = it = None

    def train(hook: Any) -> None:
        hook.writer, hook.log = Writer(), logging.getLogger("mine")
        hook.lock, hook.it = threading.Lock(), weakref.ref(hook)

    _, fresh, kept = resumed(Late, train, tmp_path)
    assert (fresh.writer, fresh.log, kept.lost) == (None, None, {})


def test_which_objects_are_in_a_list_is_lost_and_said(tmp_path: Path) -> None:
    """A hook may take one out in each process, by a switch of its own."""
    _, fresh, kept = resumed(lambda: Holding([Book(), Book()]), lambda model: model.value.pop(), tmp_path)
    assert (len(fresh.value), kept.lost) == (2, {".value": "list"})


def test_networks_that_are_hidden_rest_whenever_a_run_is_resumed(tmp_path: Path) -> None:
    """`if step == 0: teacher.eval()` is not reached again."""

    def train(model: Holding) -> None:
        model.value[0].eval()
        model.value[0].requires_grad_(False)

    _, fresh, _ = resumed(lambda: Holding([nn.BatchNorm1d(2)]), train, tmp_path)
    assert (fresh.value[0].training, fresh.value[0].weight.requires_grad) == (False, False)
    assert fresh.training


def test_a_checkpoint_of_an_earlier_version_thaws_no_hidden_network() -> None:
    """It says which parameters of the model are frozen, and of no others."""
    model = Holding([nn.Linear(1, 1).requires_grad_(False)])
    model.layer = nn.Linear(1, 1)
    kept = Kept({"": model}, ())
    saved = kept.state() | {"frozen": ["layer.bias"]}
    del saved["trains"]
    kept.restore(saved)
    trains = [value.requires_grad for value in (*model.value[0].parameters(), *model.layer.parameters())]
    assert trains == [False, False, True, False]


def test_gradients_that_are_left_after_a_step_come_back() -> None:
    def make() -> Any:
        model = Holding([nn.Linear(1, 1)])
        model.layer = nn.Linear(1, 1)
        return SimpleNamespace(kept=Kept({"": model}, ()), model=model, hooks=[])

    session: Any = SimpleNamespace(ranks=1, rank=0, main=True)
    trained, fresh = make(), make()
    assert state.gather_local(trained, session, trained.kept.state()) == []
    trained.model.value[0].weight.grad = torch.ones(1, 1)
    trained.model.layer.bias.grad = torch.ones(1) * 2
    saved = state.gather_local(trained, session, trained.kept.state())
    fresh.kept.give_gradients(state._gradients(session, saved))
    assert fresh.model.value[0].weight.grad.item() == 1
    assert fresh.model.layer.bias.grad.item() == 2
    assert fresh.model.layer.weight.grad is None


def test_a_gradient_that_no_checkpoint_can_hold_is_said() -> None:
    layer = nn.Embedding(9, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    kept = Kept({"": layer}, ())
    kept.state()
    assert (kept.gradients(), kept.lost) == ({}, {"weight.grad": "torch.sparse_coo"})


def test_what_rank_0_has_is_not_sent_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bytes that one rank sends, all send as many."""
    sent: list[Any] = []

    def gather(_: Any, value: Any) -> list[Any]:
        sent.append(value)
        return [value, {}]

    monkeypatch.setattr(state.distributed, "everywhere", lambda _, value: value)
    monkeypatch.setattr(state.distributed, "gather", gather)
    model = nn.Linear(1, 1)
    model.weight.grad = torch.ones(1, 1)
    runner: Any = SimpleNamespace(kept=Kept({"": model}, ()), model=model, hooks=[])
    session: Any = SimpleNamespace(ranks=2, rank=0, main=True)
    saved = state.gather_local(runner, session, runner.kept.state())
    assert (sent, saved[0]["gradients"], saved[1]) == ([{}], {"weight": model.weight.grad}, {})


def test_gradients_of_ranks() -> None:
    a, b = torch.ones(1), torch.ones(1) * 3
    saved: list[Any] = [{"gradients": {"x": a, "y": a}}, {"gradients": {"x": None, "z": b}}]

    def of(rank: int, ranks: int) -> dict[str, float | None]:
        session: Any = SimpleNamespace(rank=rank, ranks=ranks)
        found = state._gradients(session, saved)
        return {name: one if one is None else one.item() for name, one in found.items()}

    assert of(0, 2) == {"x": 1, "y": 1}
    assert of(1, 2) == {"x": None, "y": 1, "z": 3}
    assert of(0, 1) == {"x": 0.5, "y": 1, "z": 1.5}
    saved[1]["gradients"]["x"] = b
    assert of(0, 1)["x"] == 2


def test_states_go_where_the_training_is() -> None:
    """As those of a metric that is kept on the GPU."""
    given: list[Any] = []
    thing = SimpleNamespace(load_state_dict=given.append)
    give_state(thing, {"a": ("on", "cuda", torch.ones(1)), "b": torch.ones(1)}, torch.device("meta"))
    assert (given[0]["a"].device.type, given[0]["b"].device.type) == ("meta", "cpu")


def test_tensors_go_where_they_were() -> None:
    decode = values.Decoder(torch.device("meta"))
    for place, device in (("cpu", "cpu"), ("cuda", "meta")):
        leaf = decode(("leaf", place, torch.ones(2), True, True))
        assert (leaf.device.type, type(leaf), leaf.requires_grad) == (device, nn.Parameter, True)
    assert decode(("device", "cpu", None)).type == "cpu"


def test_a_file_in_memory_is_lost_and_said(tmp_path: Path) -> None:
    """What a np.memmap shows is on a disk: a copy of it would no longer be that file."""
    np.zeros(2).tofile(tmp_path / "bank")

    def train(model: Holding) -> None:
        model.value = np.asarray(np.memmap(tmp_path / "bank", mode="r"))

    _, fresh, kept = resumed(lambda: Holding(None), train, tmp_path)
    assert (fresh.value, kept.lost) == (None, {".value": "ndarray"})


def test_no_second_copy_is_held_of_what_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attributes, "LARGE", 1000)
    bank, data = Holding(torch.zeros(1000)), Data()
    data.images = [np.zeros(1000)]  # type: ignore[attr-defined]
    kept, of_data = Kept({"": bank}, ()), Attributes(data_owners(data), of_data=True)
    for first in (kept.first[""]["value"], of_data.first["dataset"]["images"]):
        assert values.bytes_of(first.held) == 0
    assert kept.state()["data"] == {}
    before = values.copied(kept.state(large=True))
    bank.value += 1
    data.images[0] += 1  # type: ignore[attr-defined]
    assert kept.state()["data"][""]["value"]["now"] is not None
    assert of_data.of_owners()["data"] == {}
    kept.restore(before)
    assert bank.value.max() == 0
    _, fresh, _ = resumed(lambda: Holding(torch.zeros(1000)), lambda model: model.value.add_(1), tmp_path)
    assert fresh.value.min() == 1


def test_what_is_large_is_replaced_for_the_workers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "LARGE", 1000)
    data: Any = Data()
    data.images = old = np.zeros(1000)
    kept = Attributes(data_owners(data), of_data=True)
    handed = values.copied(kept.of_owners())
    data.images = np.ones(1000)
    assert kept.while_given(handed, lambda: data.images) is old
    assert data.images[0] == 1


def test_nor_is_what_is_large_saved_for_another_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "LARGE", 1000)
    data: Any = Data()
    data.images = [np.zeros(1000)]
    data.pipeline = [Drawing(data.images[0])]
    assert Attributes(data_owners(data), of_data=True).of_owners()["data"] == {}


def test_marks_tell_the_same_numbers_in_other_places() -> None:
    numbers = torch.arange(10_000)
    for one in (numbers, numbers.float(), numbers.half(), numbers.double(), numbers > 5_000):
        assert values.mark([one]) == values.mark([one.clone()]) != values.mark([one.flip(0)])
        assert (
            values.mark([one.numpy()])
            == values.mark([one.numpy().copy()])
            != values.mark([one.flip(0).numpy()])
        )
    assert values.mark([numbers.bfloat16()[1:]]) != values.mark([numbers.bfloat16()[:-1]])
