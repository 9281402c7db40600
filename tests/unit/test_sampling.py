import pickle
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.mmseg import sampling
from jobs.mmseg.sampling import Plan, Sample, SeededDataset, deal, mix, order, rounds_for
from jobs.run.errors import UserError


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
def test_every_sample_of_an_epoch_exactly_once(samples: int, batch: int, epoch: int) -> None:
    plan = Plan(samples, batch, seed=3)
    first = epoch * plan.iterations
    seen = [int(s) for i in range(first, first + plan.iterations) for s in plan.global_batch(i)]
    assert sorted(seen) == list(range(samples))


@given(st.integers(1, 60), st.integers(1, 20))
def test_an_endless_plan_goes_through_whole_epochs(samples: int, batch: int) -> None:
    plan = Plan(samples, batch, seed=3, endless=True)
    stream = [int(s) for i in range(3 * samples) for s in plan.global_batch(i)]
    for epoch in range(3):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_any_number_of_ranks_deals_out_the_same_batch(size: int, ranks: int, most: int) -> None:
    batch = Plan(100, size, seed=1).global_batch(0)
    if size < ranks:
        with pytest.raises(UserError, match="at most"):
            rounds_for(size, ranks, most)
        return
    rounds = rounds_for(size, ranks, most)
    parts = [part for rank in range(ranks) for part in deal(batch, rank, ranks, rounds)]
    assert all(len(samples) <= most for samples, _ in parts)
    drawn = [int(s) for samples, weight in parts if weight for s in samples]
    assert sorted(drawn) == sorted(map(int, batch))
    # The mean over slots of (weight × mean loss) is the mean loss of the batch.
    slots = ranks * rounds
    loss = sum(weight * sum(samples) / len(samples) for samples, weight in parts) / slots
    assert loss == pytest.approx(sum(batch) / len(batch))


def test_weights_are_one_where_the_batch_divides_evenly() -> None:
    batch = Plan(100, 8, seed=1).global_batch(0)
    assert [weight for rank in range(2) for _, weight in deal(batch, rank, 2, 2)] == [1.0] * 4


def test_two_rounds_on_one_rank_are_the_slots_of_two_ranks() -> None:
    batch = Plan(100, 8, seed=1).global_batch(0)
    assert deal(batch, 0, 1, 2) == deal(batch, 0, 2, 1) + deal(batch, 1, 2, 1)


def test_orders_and_seeds_differ_by_epoch_position_and_seed() -> None:
    assert list(order(0, 0, 50)) != list(order(0, 1, 50)) != list(order(1, 1, 50))
    seeds = {sample.seed for i in range(20) for sample in Plan(50, 10, seed=0).global_batch(i)}
    assert len(seeds) == 200
    assert mix(1, 2) != mix(2, 1)


def test_order_and_seeds_stay_what_they_were() -> None:
    """Running trainings depend on it: a change here would break their resuming exactly."""
    assert list(order(7, 3, 8)) == ORDER_7_3_8
    drawn = Plan(8, 2, seed=7).global_batch(13)
    assert [(int(sample), sample.seed) for sample in drawn] == [(1, 3992587118), (3, 3254593673)]
    streams = (sampling.STEP, sampling.VALIDATION, sampling.HOOKS, sampling.EVALUATION)
    assert [mix(7, stream, 3) for stream in streams] == [1449780438, 1148427050, 3413105667, 578654523]


ORDER_7_3_8 = [0, 6, 1, 3, 4, 5, 7, 2]


def test_a_sample_passes_to_a_worker_whole() -> None:
    sample = pickle.loads(pickle.dumps(Sample(5, 77)))  # noqa: S301 - its own
    assert (int(sample), sample.seed) == (5, 77)


class Drawing:
    """As the transforms of albumentations 2: each has generators of its own."""

    def __init__(self) -> None:
        self.numpy, self.older = np.random.default_rng(), np.random.RandomState()
        self.python, self.torch = random.Random(), torch.Generator()
        self.torch.seed()
        self.inner = [SimpleNamespace(only=np.random.default_rng())]
        self.everybodys = np.random.mtrand._rand

    def __call__(self, index: int) -> list[float]:
        drawn = [self.numpy.random(), self.older.rand(), self.python.random(), self.inner[0].only.random()]
        drawn += [float(torch.rand((), generator=self.torch)), self.everybodys.rand(), index]
        return drawn


class Data:
    def __init__(self) -> None:
        self.pipeline = SimpleNamespace(transforms=[Drawing()])

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        return self.pipeline.transforms[0](index)


def test_a_transforms_own_generators_follow_from_the_place_too() -> None:
    """In any order, in every start, in a dataset inside another."""
    places = [Sample(1, 5), Sample(1, 6), Sample(2, 5)]
    first = SeededDataset(Data())
    drawn = [first[place] for place in places]
    assert len({number for one in drawn for number in one[:-1]}) == 12  # two seeds, six generators
    for other in (first, SeededDataset(Data()), SeededDataset(Around(Data()))):
        assert [other[place] for place in reversed(places)] == drawn[::-1]


class Around(Data):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


class Late:
    """As AlbumentationsX: it makes its generators when it first draws."""

    own: Any = None

    def set_random_state(self, numpy: np.random.Generator, python: random.Random) -> None:
        self.own = numpy, python

    def __call__(self, index: int) -> list[float]:
        numpy, python = self.own = self.own or (np.random.default_rng(), random.Random())
        return [numpy.random(), python.random(), index]


def test_generators_that_are_made_late_follow_from_the_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Late, "__module__", "albumentations.core.composition")
    drawn = []
    for _ in range(2):
        data = Data()
        data.pipeline.transforms = [Late()]
        drawn.append(SeededDataset(data)[Sample(1, 5)])
    assert drawn[0] == drawn[1]
