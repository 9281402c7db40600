"""Which samples a rank draws in an iteration, and the seed of everything random: pure functions.

Nothing of this is saved, replayed or fast-forwarded. A global batch depends on (seed, iteration), a sample's
augmentation on (seed, epoch, position), a step's dropout on (seed, iteration, slot). So a run that starts at
any iteration, with any number of ranks or workers, sees what the uninterrupted run would have seen.

A global batch is distributed over `ranks * rounds` slots: a rank processes `rounds` slots per iteration and
accumulates their gradients (1 round in an ordinary run; 2 if a run made for 4 GPUs resumes on 2).
"""

from __future__ import annotations

import random
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.mmseg import data
from jobs.run.errors import UserError

# The purposes of seeds: keep their random streams apart.
ORDER, SAMPLE, STEP, VALIDATION, HOOKS, EVALUATION = 1, 2, 3, 4, 5, 6

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """32 bits that depend on all of `values` (a chain of splitmix64)."""
    h = 0x9E3779B97F4A7C15
    for value in values:
        h = ((h ^ (value & _MASK)) * 0xBF58476D1CE4E5B9) & _MASK
        h ^= h >> 27
        h = (h * 0x94D049BB133111EB) & _MASK
        h ^= h >> 31
    return h & 0xFFFFFFFF


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch in this process."""
    import torch

    from jobs.engine import devices

    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed costs 200 µs (it formats a stack); the generator itself takes 10.
    torch.default_generator.manual_seed(seed)
    devices.seed(seed)


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    """The permutation of an epoch, shape (samples,). Hashed keys, sorted: the same in every NumPy release."""
    with np.errstate(over="ignore"):
        h = np.arange(samples, dtype=np.uint64) ^ np.uint64(mix(seed, ORDER, epoch) << 32)
        for factor, shift in ((0xBF58476D1CE4E5B9, 27), (0x94D049BB133111EB, 31)):
            h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
        h ^= h >> np.uint64(29)
    return np.argsort(h, kind="stable")


class Sample(int):
    """An index into a dataset that carries this sample's seed. Any dataset accepts it as an int."""

    seed: int

    def __new__(cls, index: int, seed: int) -> Sample:
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Sample, (int(self), self.seed)


@dataclass(frozen=True)
class Plan:
    """The order of all samples of a training, for all ranks together."""

    samples: int
    batch: int
    """Samples of a global batch."""
    seed: int
    shuffle: bool = True
    endless: bool = False
    """Whether epochs follow each other without a break (InfiniteSampler); a batch may span two."""
    drop_last: bool = False

    @property
    def iterations(self) -> int:
        """Iterations per epoch."""
        if self.drop_last:
            return self.samples // self.batch
        return -(-self.samples // self.batch)

    def global_batch(self, iteration: int) -> list[Sample]:
        """The samples of an iteration (0-based, counted over the whole training), all ranks together."""
        if self.endless:
            first = iteration * self.batch
            return [self.sample(*divmod(p, self.samples)) for p in range(first, first + self.batch)]
        epoch, within = divmod(iteration, self.iterations)
        first = within * self.batch
        return [self.sample(epoch, p) for p in range(first, min(first + self.batch, self.samples))]

    def sample(self, epoch: int, position: int) -> Sample:
        index = int(order(self.seed, epoch, self.samples)[position]) if self.shuffle else position
        return Sample(index, mix(self.seed, SAMPLE, epoch, position))


def rounds_for(batch: int, ranks: int, most: int) -> int:
    """The rounds per iteration for a global batch of `batch` samples on `ranks` ranks with at most `most`
    samples at a time. Raises UserError if there are more ranks than samples."""
    if batch < ranks:
        raise UserError(
            f"a global batch of {batch} cannot be split over {ranks} ranks: use at most {batch} GPUs"
        )
    return -(-batch // (ranks * most))


def deal(batch: list[Sample], rank: int, ranks: int, rounds: int) -> list[tuple[list[Sample], float]]:
    """A rank's part of a global batch: for each round the samples, and the weight of their mean loss.

    With the weights, the mean over all ranks and rounds is the mean over the batch, however unevenly it
    divides; they are 1 if it divides evenly. A slot without a sample repeats one, with weight 0.
    """
    slots = ranks * rounds
    parts = [batch[slot::slots] for slot in range(rank, slots, ranks)]
    return [(part or batch[:1], len(part) * slots / len(batch)) for part in parts]


class Batches:
    """torch's `batch_sampler` of one rank: index lists from iteration `first` up to `stop`.

    `sampler` is an `ExactSampler`, whose plan, rank and rounds it follows.
    """

    def __init__(self, sampler: ExactSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.first = 0
        self.stop = 0

    def __len__(self) -> int:
        plan = self.sampler.plan
        # As in mmengine: an endless sampler's epoch counts as if one rank had all samples.
        return -(-plan.samples // self.batch_size) if plan.endless else plan.iterations

    def __iter__(self) -> Iterator[list[Sample]]:
        s = self.sampler
        for iteration in range(self.first, self.stop):
            for samples, _ in deal(s.plan.global_batch(iteration), s.rank, s.ranks, s.rounds):
                yield samples

    def weights(self, iteration: int) -> list[float]:
        s = self.sampler
        return [weight for _, weight in deal(s.plan.global_batch(iteration), s.rank, s.ranks, s.rounds)]


class ExactSampler:
    """Replaces DefaultSampler and InfiniteSampler in a config's `sampler`; `Batches` does the work."""

    def __init__(
        self,
        dataset: Any,
        seed: int,
        batch: int,
        rank: int,
        ranks: int,
        rounds: int,
        shuffle: bool = True,
        endless: bool = False,
        drop_last: bool = False,
    ) -> None:
        self.plan = Plan(len(dataset), batch, seed, shuffle, endless, drop_last)
        if not self.plan.iterations:
            raise UserError(
                f"{len(dataset)} image(s) do not fill a batch of {batch}, and train_dataloader.drop_last "
                "leaves out incomplete batches: use a smaller train_dataloader.batch_size, or drop_last=False"
            )
        self.rank, self.ranks, self.rounds = rank, ranks, rounds

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the epoch follows from the iteration."""

    def __len__(self) -> int:
        return self.plan.samples


class SeededDataset:
    """Wraps any dataset: everything random in it is seeded by the sample, and errors name its files."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = data.build(dataset) if isinstance(dataset, dict) else dataset
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()
        self.generators = own_generators(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, Sample):
            seed_everything(index.seed)
            for number, generator in enumerate(self.generators):
                seed_generator(generator, mix(index.seed, number))
        return data.sample(self.dataset, int(index))


INNER = {"pipeline", "dataset", "datasets"}
"""Attributes in which a dataset has its transforms, and inner datasets."""
MOST = 1000
"""The most parts of a transform that are searched; anything with more is data."""


def own_generators(dataset: Any) -> list[Any]:
    """The generators that the transforms of a dataset, and of inner datasets, keep for themselves (as
    albumentations' do), which seeding Python, NumPy and torch does not affect. An object that accepts
    generators stands for its own and all below it."""
    import torch

    kinds = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)
    found: list[Any] = []
    seen: set[int] = set()
    left = [dataset]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType)):
            continue
        seen.add(id(one))
        if isinstance(one, kinds) or takes_generators(one):
            found.append(one)
            continue
        kept = one if isinstance(one, dict) else getattr(one, "__dict__", {})
        if kept.keys() & INNER and one is not kept:
            # A dataset: its other attributes may include the list of all images.
            kept = {name: value for name, value in kept.items() if name in INNER or isinstance(value, kinds)}
        values = list(one) if isinstance(one, (list, tuple)) else list(kept.values())
        left += values if len(values) <= MOST else []
    # The global ones are seeded already.
    shared = (getattr(random, "_inst", None), np.random.mtrand._rand, torch.default_generator)
    return [one for one in reversed(found) if all(one is not other for other in shared)]


def takes_generators(one: Any) -> bool:
    """Whether an object is albumentations' and accepts generators. Newer releases (AlbumentationsX) create
    their own on first use, and anew in each process, so that there is none to be found or kept."""
    theirs = any(base.__module__.partition(".")[0] == "albumentations" for base in type(one).__mro__)
    return theirs and hasattr(one, "set_random_state")


def seed_generator(generator: Any, seed: int) -> None:
    """Gives a generator the state of a new one with this seed."""
    if hasattr(generator, "set_random_state"):
        generator.set_random_state(np.random.default_rng(seed), random.Random(seed))
    elif isinstance(generator, np.random.Generator):
        kind: Any = type(generator.bit_generator)
        generator.bit_generator.state = kind(seed).state
    elif hasattr(generator, "manual_seed"):
        generator.manual_seed(seed)
    else:
        generator.seed(seed)
