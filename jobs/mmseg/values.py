"""Values that a training keeps in attributes, as a checkpoint can hold them, and back.

What is no plain value, list or dict becomes a tuple that says what it was: ("deque", [1, 2], 5). So it goes
into a file, and from rank to rank (wire.py), in the few types that both know.
"""

from __future__ import annotations

import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from jobs.engine import storable

MAPPINGS: dict[str, Any] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter, defaultdict)}
SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (tuple, set, frozenset)}
CHANGING = (list, deque, set, *MAPPINGS.values())
"""Containers that are given back their content in place."""
GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)


class Unholdable(Exception):
    """Of a value that a checkpoint cannot hold."""


class Passing(Unholdable):
    """Of one that belongs to a step that is over, or to the weights: nothing is lost without it."""


def is_number(value: Any) -> bool:
    # What is more than a number (an IntEnum) could not be loaded back, one that is too large not be told to
    # another rank.
    if type(value) is int:
        return value.bit_length() < 64
    return type(value) is float or (isinstance(value, np.number) and storable.is_usual(value))


def is_switch(value: Any) -> bool:
    return value is None or type(value) in (bool, str)


def memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.layout is torch.strided else 0


def encoded(value: Any, weights: Collection[int] = ()) -> Any:
    """A value as a checkpoint can hold it. Raises Unholdable. `weights`: where the memory of weights lies,
    which are no values."""
    try:
        return _encoded(value, weights, None)
    except RecursionError:  # of what holds itself
        raise Unholdable from None


def _encoded(value: Any, weights: Collection[int], inside: Any) -> Any:
    kind = type(value)
    if is_switch(value) or is_number(value):
        return value
    if isinstance(value, torch.Tensor):
        return _tensor(value, weights)
    if kind is np.ndarray:
        return _array(value, weights)
    if kind is defaultdict and inside is not None and not _makes_alike(inside, value):
        raise Unholdable  # what it makes of a new key could not be given back
    if kind in MAPPINGS.values():
        values = [_encoded(one, weights, value) for one in value.values()]
        if kind is dict and all(type(key) is str or (type(key) is int and is_number(key)) for key in value):
            return dict(zip(value, values, strict=True))
        return kind.__name__, [encoded(key) for key in value], values
    if kind is list:
        return [_encoded(one, weights, value) for one in value]
    if kind is deque:
        return "deque", [_encoded(one, weights, value) for one in value], value.maxlen
    if kind in SEQUENCES.values():
        return kind.__name__, [_encoded(one, weights, value) for one in value]
    raise Passing if isinstance(value, BaseDataElement) else Unholdable


def _makes_alike(outer: Any, value: Any) -> bool:
    if type(outer) is not defaultdict or outer.default_factory is None:
        return False
    return type(outer.default_factory()) is type(value)


def _tensor(value: torch.Tensor, weights: Collection[int]) -> Any:
    if value.grad_fn is not None or value.is_inference() or value.device.type == "meta":
        raise Passing
    if not storable.is_usual(value):
        raise Unholdable
    if memory(value) in weights:
        raise Passing
    where, plain = value.device.type, value.detach()
    if value.requires_grad or type(value) is torch.nn.Parameter:
        return "leaf", where, plain, type(value) is torch.nn.Parameter, value.requires_grad
    return plain if where == "cpu" else ("on", where, plain)


def _array(value: np.ndarray[Any, Any], weights: Collection[int]) -> Any:
    base = value.base
    while type(base) is np.ndarray:
        base = base.base
    if isinstance(base, torch.Tensor) and memory(base) in weights:
        raise Passing
    if value.dtype.kind not in "biuf" or isinstance(base, np.memmap):
        raise Unholdable
    return value


def decoded(saved: Any, like: Any, home: torch.device) -> Any:
    """The value that was `encoded`. `like`: what is in its place now; `home`: where tensors that were not on
    the CPU belong."""
    kind = type(saved)
    if kind is torch.Tensor:
        return saved.clone()  # nothing of the checkpoint's memory map
    if kind is np.ndarray:
        return saved.copy()
    if kind is list:
        return [decoded(one, at(like, n), home) for n, one in enumerate(saved)]
    if kind is dict:
        return {key: decoded(one, at(like, key), home) for key, one in saved.items()}
    if kind is not tuple:
        return saved
    name, *parts = saved or ("",)
    if name == "on":
        return parts[1].to(home, copy=True)
    if name == "leaf":
        return _leaf(like, home, *parts)
    if name == "deque":
        return deque((decoded(one, None, home) for one in parts[0]), parts[1])
    if name in SEQUENCES:
        return SEQUENCES[name](decoded(one, at(like, n), home) for n, one in enumerate(parts[0]))
    if name in MAPPINGS:
        keys = [decoded(key, None, home) for key in parts[0]]
        values = {k: decoded(one, at(like, k), home) for k, one in zip(keys, parts[1], strict=True)}
        if name != "defaultdict":
            return MAPPINGS[name](values)
        return defaultdict(like.default_factory if type(like) is defaultdict else None, values)
    return saved  # an earlier version's: of numbers


def at(like: Any, key: Any) -> Any:
    """What lies in a container at a place; what a defaultdict would put there."""
    if type(like) is defaultdict and key not in like and like.default_factory:
        return like.default_factory()
    try:
        return like[key]
    except (TypeError, LookupError):
        return None


def _leaf(like: Any, home: torch.device, where: str, value: Any, parameter: bool, trains: bool) -> Any:
    """One that is trained: an optimizer may know it, so that it is changed in place."""
    if isinstance(like, torch.Tensor) and like.is_leaf and like.shape == value.shape:
        with torch.no_grad():
            like.copy_(value)
        return like
    value = value.to("cpu" if where == "cpu" else home, copy=True)
    return torch.nn.Parameter(value, trains) if parameter else value.requires_grad_(trains)


def same(a: Any, b: Any) -> bool:
    """Whether two encoded values are equal in all bits that count."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(one, b[key]) for key, one in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


def parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """What lies in a container, with its places."""
    if type(value) in MAPPINGS.values():
        return value.items()
    return enumerate(value) if type(value) in (list, tuple, deque) else ()


def held_of(value: Any, weights: Collection[int]) -> Any:
    """`encoded`; None for what a checkpoint cannot hold."""
    try:
        return encoded(value, weights)
    except Unholdable:
        return None


def _leaves(held: Any) -> Iterator[Any]:
    """The plain values, tensors and arrays in an encoded value."""
    if isinstance(held, dict):
        held = list(held.values())
    elif isinstance(held, tuple):
        held = held[2:3] if held and held[0] in ("on", "leaf", *MAPPINGS) else list(held[1:])
    for one in held if isinstance(held, (list, tuple)) else ():
        yield from _leaves(one)
    if not isinstance(held, (list, tuple)):
        yield held


def has_tensors(held: Any) -> bool:
    return any(isinstance(one, (torch.Tensor, np.ndarray)) for one in _leaves(held))


def has_switches(held: Any) -> bool:
    """Or text: the names of what has been done, say."""
    return any(type(one) in (bool, str) for one in _leaves(held))


SMALL = 4096


def mark(held: Any) -> list[Any]:
    """What tells an encoded value from another: of large tensors, sums."""
    found: list[Any] = []
    for one in _leaves(held):
        if isinstance(one, torch.Tensor) and one.numel() > SMALL:
            wide = one.double()
            found += torch.stack((wide.sum(), wide.square().sum())).tolist()
        elif isinstance(one, torch.Tensor):
            found.append(one.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.append(one.tobytes() if isinstance(one, np.ndarray) else repr(one))
    return found


# --------------------------------------------------------------------------------- things that have a state


def is_generator(value: Any) -> bool:
    # Those of everybody are seeded in each step.
    shared = (getattr(random, "_inst", None), np.random.mtrand._rand, torch.default_generator)
    return isinstance(value, GENERATORS) and all(value is not one for one in shared)


def has_state(value: Any) -> bool:
    """Whether it can say what it holds, and be given it: an optimizer, a scaler, a generator."""
    if isinstance(value, (type, types.ModuleType, torch.utils.data.DataLoader)):
        return False
    kind = type(value)
    return is_generator(value) or (hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict"))


def state_of(thing: Any) -> Any:
    """Raises Unholdable."""
    if isinstance(thing, random.Random):
        return encoded(thing.getstate())
    if isinstance(thing, np.random.RandomState):
        return _in_digits(thing.get_state(legacy=False))
    if isinstance(thing, np.random.Generator):
        return _in_digits(thing.bit_generator.state)
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    return encoded(thing.state_dict())


def give_state(thing: Any, saved: Any) -> None:
    found = decoded(saved, None, torch.device("cpu"))
    if isinstance(thing, random.Random):
        thing.setstate(found)
    elif isinstance(thing, np.random.RandomState):
        thing.set_state(_from_digits(found))
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = _from_digits(found)
    elif isinstance(thing, torch.Generator):
        thing.set_state(found)
    else:
        thing.load_state_dict(found)


def _in_digits(state: Any) -> Any:
    """Numbers of 128 bits as text: see `is_number`."""
    if isinstance(state, dict):
        return {key: _in_digits(value) for key, value in state.items()}
    return f"#{state}" if type(state) is int else encoded(state)


def _from_digits(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _from_digits(value) for key, value in state.items()}
    return int(state[1:]) if type(state) is str and state.startswith("#") else state
