"""What research code keeps beside the weights, wherever it keeps it: given back by a resume, or said."""

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import _ParamScheduler
from torch import nn

from jobs.engine import safe_load, wire
from jobs.engine.snapshots import Snapshots
from jobs.mmseg import schedules
from jobs.mmseg.kept import HEAVY, Kept, check_groups, differing, groups, marks, of_rank
from jobs.run.errors import UserError


def one_hook(hook: Any) -> Iterator[tuple[str, Any]]:
    yield f"{type(hook).__name__}/0", hook


def resumed(make: Callable[[], Any], train: Callable[[Any], object], path: Path) -> tuple[Any, Any, Kept]:
    """A model or hook that has trained, and another that was given what a checkpoint held of it."""
    found, kept = [], []
    for _ in range(2):
        one = make()
        found.append(one)
        kept.append(
            Kept({"": one}, ()) if isinstance(one, nn.Module) else Kept({"": nn.ReLU()}, one_hook(one))
        )
    train(found[0])
    torch.save(Snapshots().take(kept[0].state()), path / "kept.pth")
    kept[1].restore(safe_load.load(path / "kept.pth"))
    # Another rank's travels otherwise.
    assert wire.unpack(wire.pack(kept[0].changed())).keys() == kept[0].changed().keys()
    return found[0], found[1], kept[0]


class Holding(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def made_of_numbers() -> Any:
    return defaultdict(int)


CONTAINERS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (dict, lambda d: d.update({3: torch.ones(2), "x": None})),
    (lambda: deque(maxlen=2), lambda q: q.extend([torch.zeros(1), torch.ones(1), torch.ones(3)])),
    (lambda: [deque(maxlen=2), deque(maxlen=3)], lambda q: q[0].extend([1.0, 2.0, 3.0])),
    (lambda: {"a": deque(maxlen=1)}, lambda d: d["a"].extend([1, 2])),
    (lambda: defaultdict(list), lambda d: d[5].append(torch.ones(1))),
    (lambda: defaultdict(made_of_numbers), lambda d: d["a"].update({1: 2})),
    (lambda: OrderedDict(a=1), lambda d: d.update(b=2)),
    (lambda: Counter("a"), lambda d: d.update("ab")),
    (lambda: {1}, lambda s: s.update({2, "x"})),
    (dict, lambda d: d.update({(1, 2): 3.0})),
    (lambda: np.arange(4).reshape(2, 2), lambda a: a.__setitem__(0, 7)),
    (lambda: [np.zeros(2), {"mean": [torch.zeros(1)]}], lambda v: v[1]["mean"][0].add_(1)),
]


@pytest.mark.parametrize(("make", "change"), CONTAINERS)
def test_containers_come_back(make: Any, change: Any, tmp_path: Path) -> None:
    model, fresh, kept = resumed(lambda: Holding(make()), lambda model: change(model.value), tmp_path)
    assert repr(fresh.value) == repr(model.value) != repr(make())
    assert type(fresh.value) is type(model.value)
    assert not kept.lost


def test_a_defaultdict_and_a_deque_go_on_as_they_were(tmp_path: Path) -> None:
    def train(model: Holding) -> None:
        model.value["a"].extend([1, 2, 3])

    _, fresh, _ = resumed(lambda: Holding(defaultdict(lambda: deque(maxlen=2))), train, tmp_path)
    for label in "ab":
        fresh.value[label].extend([4, 5, 6])
        assert list(fresh.value[label]) == [5, 6]


class Meter:
    def __init__(self) -> None:
        self.sum = 0.0
        self.history: list[float] = []


class Research(nn.Module):
    seen = 0
    shared: ClassVar[list[float]] = []

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(2, 2)
        self.prototype: Any = None
        self.average: Any = 0
        self.ready, self.phase = False, "warm"
        self.pair, self.meter, self.meters = (0, 0.0), Meter(), {"a": [Meter()]}
        self.free = SimpleNamespace(steps=0)
        self.teacher = [copy.deepcopy(self.part)]
        self.sigmas = [torch.zeros(1, requires_grad=True)]
        self.optimizer = torch.optim.Adam(self.sigmas, lr=0.1)
        self.drawing = (random.Random(0), np.random.default_rng(0), np.random.RandomState(0))
        self.drawing_too = torch.Generator().manual_seed(0)

    def draw(self) -> list[float]:
        a, b, c = self.drawing
        return [a.random(), b.random(), c.rand(), torch.rand(1, generator=self.drawing_too).item()]

    def train_a_step(self) -> None:
        self.prototype, self.average = torch.ones(2), 0.9 * self.average + torch.ones(1)
        self.ready, self.phase, self.late = True, "hot", torch.ones(1)
        self.seen += 1
        self.shared.append(0.5)
        self.pair, self.meter.sum, self.free.steps = (1, 0.5), 3.0, 7
        self.meters["a"][0].history.append(2.0)
        self.teacher[0].weight.data.add_(1)
        self.sigmas[0].sum().backward()
        self.optimizer.step()
        self.features = self.part(torch.ones(2))
        self.draw()


def test_what_research_code_keeps_comes_back(tmp_path: Path) -> None:
    def make() -> Research:
        Research.shared.clear()
        torch.manual_seed(0)
        return Research()

    def train(model: Research) -> None:
        model.train_a_step()
        Research.shared.clear()
        Research.shared.append(0.5)

    model, fresh, kept = resumed(make, train, tmp_path)
    assert (fresh.ready, fresh.phase, fresh.seen, fresh.pair) == (True, "hot", 1, (1, 0.5))
    assert (fresh.meter.sum, fresh.free.steps, fresh.meters["a"][0].history) == (3.0, 7, [2.0])
    for name in ("prototype", "average", "late"):
        assert torch.equal(getattr(fresh, name), getattr(model, name)), name
    assert torch.equal(fresh.teacher[0].weight, model.teacher[0].weight)
    assert Research.shared == [0.5]
    assert model.draw() == fresh.draw()
    for one in (model, fresh):
        one.optimizer.zero_grad()
        one.sigmas[0].sum().backward()
        one.optimizer.step()
    assert torch.equal(fresh.sigmas[0], model.sigmas[0])
    # A tensor with a gradient belongs to a step that is over.
    assert not hasattr(fresh, "features")
    assert not kept.lost


class Adversary(Hook):
    def __init__(self) -> None:
        self.teacher, self.anchor = nn.BatchNorm1d(2), {"w": torch.zeros(1)}
        self.optimizer = torch.optim.SGD(self.teacher.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        self.switched, self.names = False, ["a"]
        self.center: Any = None


def test_a_hooks_networks_come_back_but_not_its_switches(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """mmdet's PipelineSwitchHook, for one, has to switch again in each process."""

    def train(hook: Adversary) -> None:
        hook.teacher.weight.data += 1
        hook.teacher.eval()
        hook.optimizer.step()
        hook.schedule.step()
        hook.switched, hook.center = True, torch.ones(1)
        hook.names.append("b")

    _, fresh, kept = resumed(Adversary, train, tmp_path)
    assert fresh.teacher.weight.tolist() == [2, 2]
    assert fresh.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert (fresh.switched, fresh.names, fresh.center.item()) == (False, ["a"], 1)
    for _ in range(2):
        kept.say_lost()
    assert capsys.readouterr().out == (
        "changed in training, and forgotten by every resume: hook Adversary/0.switched (bool), "
        "hook Adversary/0.names (list) (docs/surviving.md says what comes back)\n"
    )


def test_tensors_that_a_hook_makes_of_the_first_weights_are_those_again(tmp_path: Path) -> None:
    """As those to which the weights are pulled back: a resumed start would make them of other weights."""
    made = iter((1.0, 2.0))

    def make() -> Adversary:
        hook = Adversary()
        hook.anchor["w"] += next(made)
        return hook

    _, fresh, _ = resumed(make, lambda _: None, tmp_path)
    assert fresh.anchor["w"].item() == 1


def test_what_goes_with_something_lost_is_lost_and_said(tmp_path: Path) -> None:
    def train(model: Research) -> None:
        model.prototype, model.ready, model.helper = torch.ones(2), True, open  # type: ignore[assignment]
        model.average = 1

    _, fresh, kept = resumed(Research, train, tmp_path)
    assert (fresh.prototype, fresh.ready, fresh.average) == (None, False, 1)
    assert kept.lost == {".helper": "builtin_function_or_method", ".prototype": "Tensor", ".ready": "bool"}

    def rewire(model: Research) -> None:
        model.part.register_forward_hook(lambda *_: None)
        model.ready = True

    _, fresh, kept = resumed(Research, rewire, tmp_path)
    assert not fresh.ready
    assert kept.lost == {".ready": "bool"}


def test_a_stream_begins_anew_and_is_said(tmp_path: Path) -> None:
    _, _, kept = resumed(lambda: Holding(iter([1, 2])), lambda model: next(model.value), tmp_path)
    assert kept.lost == {".value": "list_iterator"}
    _, _, kept = resumed(lambda: Holding([object()]), lambda model: model.value.append(object()), tmp_path)
    assert kept.lost == {".value": "list"}


def test_what_holds_itself_ends_no_run(tmp_path: Path) -> None:
    def train(model: Holding) -> None:
        model.value = {"x": [1]}
        model.value["x"].append(model.value)

    def make() -> Holding:
        model = Holding(None)
        other: list[Any] = [model]
        other.append(other)
        model.other = other  # type: ignore[assignment]
        return model

    _, fresh, kept = resumed(make, train, tmp_path)
    assert fresh.value is None
    assert kept.lost == {".value": "dict"}


class Refusing:
    def state_dict(self) -> dict[str, int]:
        return {"x": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise ValueError(f"not {state}")


def test_what_refuses_its_state_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    resumed(lambda: Holding(Refusing()), lambda _: None, tmp_path)
    assert capsys.readouterr().out == ".value does not take its state back: not {'x': 1}\n"


def test_what_the_initialisation_of_the_weights_sets_comes_back() -> None:
    """A resume leaves it out."""
    model = Holding(torch.zeros(2))
    built = Kept({"": model}, ())
    model.value, model.scale = torch.ones(3), 2  # type: ignore[assignment]
    initialised = built.changed()
    kept = Kept({"": model}, ())
    kept.count_from(built, initialised)
    fresh = Holding(torch.zeros(2))
    Kept({"": fresh}, ()).restore(kept.state())
    assert (fresh.value.tolist(), fresh.scale) == ([1, 1, 1], 2)


def test_a_rank_sends_what_it_has_otherwise() -> None:
    def make() -> Kept:
        torch.manual_seed(0)
        model = Holding([nn.Linear(80, 80), nn.Linear(80, 80)])
        model.random = random.Random(0)  # type: ignore[assignment]
        return Kept({"": model}, ())

    main, other = make(), make()

    def heavy(kept: Kept) -> dict[str, Any]:
        return {kind: kept.changed()[kind] for kind in HEAVY}

    assert differing(heavy(other), marks(heavy(main))) == {"things": {}, "hidden": {}}
    weight = next(iter(other.hidden[".value[1]"].values()))
    weight.data = weight.data.flip(0)  # the same numbers, in other places
    its = differing(heavy(other), marks(heavy(main)))
    assert (its["hidden"].keys(), its["things"]) == ({".value[1]"}, {})
    given = of_rank(main.changed(), its)
    assert given["hidden"][".value[0]"] is main.hidden[".value[0]"]
    assert given["hidden"][".value[1]"] is other.hidden[".value[1]"]


def test_modules_that_rest_go_on_resting_in_the_midst_of_an_epoch() -> None:
    model, fresh = nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Sequential(nn.ReLU(), nn.ReLU())
    kept = Kept({"": model}, ())
    model[1].eval()
    Kept({"": fresh}, ()).restore_modes(kept.state())
    assert [one.training for one in fresh.modules()] == [True, True, False]


class Resize:
    def __init__(self) -> None:
        self.scale: Any = (64, 64)
        self.note = 0

    def __call__(self, sample: int) -> int:
        self.note += sample
        return sample


class Data(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.pipeline, self.weights, self.data_list = [Resize()], np.ones(2), [object()]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.pipeline[0].scale, self.weights[index]


def of_dataset(data: Data) -> Kept:
    return Kept({"": nn.ReLU()}, (), dataset=data)


def test_what_hooks_change_in_a_data_set_comes_back() -> None:
    data, fresh = Data(), Data()
    kept = of_dataset(data)
    kept.dataset.without_trace(lambda: data.pipeline[0](3))
    data.pipeline[0].scale, data.weights[1] = (96, 96), 5
    of_dataset(fresh).restore_dataset(kept.state(), anew=True)
    assert (fresh.pipeline[0].scale, fresh.weights.tolist()) == ((96, 96), [1, 5])
    assert fresh.pipeline[0].note == 0


class Loader:
    num_workers = 1

    def __init__(self, data: Data, persistent: bool) -> None:
        self.data, self.persistent_workers = data, persistent
        self.seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self.seen.append(self.data[0][0])
        return iter(())


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("at", ["before", "after"])
def test_workers_of_a_resumed_start_get_what_those_before_had(persistent: bool, at: str) -> None:
    """Workers that live on do not see what hooks change in the data set; those of the next epoch do."""
    data, fresh = Data(), Data()
    kept, again = of_dataset(data), of_dataset(fresh)
    kept.hand_out(Loader(data, persistent), first=True)
    if at == "after":
        data.pipeline[0].scale = (96, 96)
    again.restore_dataset(copy.deepcopy(kept.state()), anew=False)
    assert fresh.pipeline[0].scale == data.pipeline[0].scale
    mine = fresh.pipeline[0].scale, fresh.weights = [96, 96], np.zeros(2)  # which a hook goes on changing
    loader = Loader(fresh, persistent)
    again.hand_out(loader, first=True)
    assert mine[0] is fresh.pipeline[0].scale
    assert mine[1] is fresh.weights
    assert (*mine[0], *mine[1]) == (96, 96, 0, 0)
    again.workers_end(loader)
    again.hand_out(loader, first=False)
    # (Of workers that live on, torch resets what they have.)
    assert loader.seen == [(64, 64), [96, 96]]
    assert mine[0] is fresh.pipeline[0].scale


def test_workers_of_a_resumed_epoch_see_what_hooks_do_before_it() -> None:
    data, fresh = Data(), Data()
    again = of_dataset(fresh)
    again.restore_dataset(of_dataset(data).state(), anew=True)
    fresh.pipeline[0].scale = (96, 96)
    loader = Loader(fresh, persistent=False)
    again.hand_out(loader, first=True)
    assert loader.seen == [(96, 96)]


def test_an_optimizer_keeps_the_parameters_that_it_was_built_with() -> None:
    parameter, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    wrapper = OptimWrapper(torch.optim.SGD([parameter], lr=0.1))
    built = groups([wrapper])
    check_groups(built, groups([wrapper]))
    wrapper.optimizer.add_param_group({"params": [other]})
    with pytest.raises(UserError, match=r"has groups of \[\[1, 1\]\] parameters, and had \[\[1\]\]"):
        check_groups(built, groups([wrapper]))


class Restarting(_ParamScheduler):
    """As torch's CosineAnnealingWarmRestarts, it remembers where in its period it is; the last it lengthens
    when somebody asks for it."""

    def __init__(self, optimizer: Any, period: int = 2) -> None:
        self.period, self.at = period, -1
        super().__init__(optimizer, "lr")

    def _get_value(self) -> list[float]:
        self.at = (self.at + 1) % self.period
        return [base * (1 - self.at / self.period) for base in self.base_values]


def test_a_schedulers_own_state_comes_back() -> None:
    def make() -> tuple[Any, list[Any]]:
        wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
        schedulers = [Restarting(wrapper)]
        return wrapper, schedulers

    wrapper, schedulers = make()
    began = schedules.states(schedulers)
    schedulers[0].period = 5
    for _ in range(3):
        schedulers[0].step()
    evolved, saved = schedules.evolved(schedulers, began), [one.state_dict() for one in schedulers]
    assert evolved == [["period", "at"]]
    other, fresh = make()
    assert not schedules.changed(fresh, saved, evolved)
    schedules.restore(fresh, saved, evolved)
    for _ in range(3):
        fresh[0].step()
        schedulers[0].step()
        assert other.get_lr() == wrapper.get_lr()
