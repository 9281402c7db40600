"""Encodes the values that a training keeps in attributes for a checkpoint, and decodes them.

Anything but a plain value, a list or a dict becomes a tuple that starts with its kind: ("deque", [1, 2], 5).
The result has only types that both a checkpoint and wire.py (from rank to rank) support.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from jobs.engine import storable

MAPPINGS: dict[str, Any] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter, defaultdict)}
SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (tuple, torch.Size, set, frozenset)}
CHANGING = (list, deque, set, *MAPPINGS.values())
"""Containers whose content is restored in place."""
CONTAINERS: tuple[Any, ...] = (tuple, frozenset, *CHANGING)


class Unholdable(Exception):
    """Raised for a value that a checkpoint cannot hold."""


class Passing(Unholdable):
    """Raised for a value that belongs to a finished step or to the weights: not saving it loses nothing."""


def is_number(value: Any) -> bool:
    # A subclass (IntEnum) could not be loaded back; a larger int could not be sent to another rank.
    if type(value) is int:
        return value.bit_length() < 64
    return type(value) is float or (isinstance(value, np.number) and storable.is_usual(value))


def is_switch(value: Any) -> bool:
    return value is None or type(value) in (bool, str, np.bool_)


def memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.layout is torch.strided else 0


Place = tuple[Any, ...]
"""Where a value is: its owner's key, the attribute, and the keys inside it."""


class Encoder:
    """Encodes values for a checkpoint. An object found in several places is saved at the first; at the
    others, a reference to that place is.

    `weights`: addresses of the weights' memory, which is not encoded. `places`: objects with a known place,
    by id.
    """

    def __init__(self, weights: Collection[int] = (), places: dict[int, Place] | None = None) -> None:
        self.weights, self.places = weights, dict(places or {})

    def __call__(self, value: Any, place: Place | None = None) -> Any:
        """Raises Unholdable."""
        known = len(self.places)
        try:
            return self._value(value, None, place)
        except (Unholdable, RecursionError) as error:
            for one in [*self.places][known:]:
                del self.places[one]
            if isinstance(error, Unholdable):
                raise
            raise Unholdable from None  # it contains itself

    def _value(self, value: Any, inside: Any, place: Place | None) -> Any:
        kind = type(value)
        if is_switch(value) or is_number(value):
            return value
        if kind is torch.dtype:
            return "dtype", str(value).removeprefix("torch.")
        if kind is torch.device:
            return "device", value.type, value.index
        if where := self.places.get(id(value)):
            if len(where) == 1 and inside is not None:
                # An owner in a list: each process may take it out itself.
                raise Unholdable
            return "same", *where
        found = self._content(value, inside, place)
        if place is not None and isinstance(value, (*CHANGING, torch.Tensor, np.ndarray)):
            self.places[id(value)] = place
        return found

    def _content(self, value: Any, inside: Any, place: Place | None) -> Any:
        kind = type(value)
        if kind in (list, dict) and _is_simple(value):
            return value.copy()
        if isinstance(value, torch.Tensor):
            return _tensor(value, self.weights)
        if kind is np.ndarray:
            return _array(value, self.weights)
        if kind is defaultdict and inside is not None and not _makes_alike(inside, value):
            raise Unholdable  # its default_factory could not be restored
        if kind in MAPPINGS.values():
            values = [self._value(one, value, below(place, key)) for key, one in value.items()]
            if kind is dict and all(
                type(key) is str or (type(key) is int and is_number(key)) for key in value
            ):
                return dict(zip(value, values, strict=True))
            return kind.__name__, [self._value(key, None, None) for key in value], values
        if kind in (set, frozenset):
            return kind.__name__, [self._value(one, value, None) for one in value]
        if kind not in (list, deque, *SEQUENCES.values()):
            raise Passing if isinstance(value, BaseDataElement) else Unholdable
        values = [self._value(one, value, below(place, n)) for n, one in enumerate(value)]
        if kind is list:
            return values
        return ("deque", values, value.maxlen) if kind is deque else (kind.__name__, values)


SIMPLE = {type(None), bool, str, float}


def _is_simple(value: Any) -> bool:
    """Whether it holds only text and numbers. Fast, because there may be many (paths, labels)."""
    if isinstance(value, dict):
        return {*map(type, value)} <= {str} and _is_simple([*value.values()])
    kinds = {*map(type, value)}
    whole = [one for one in value if type(one) is int] if int in kinds else [0]
    return kinds <= SIMPLE | {int} and is_number(max(whole)) and is_number(min(whole))


def below(place: Place | None, key: Any) -> Place | None:
    return (*place, key) if place is not None and type(key) in (str, int) else None


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


class Decoder:
    """Decodes what an `Encoder` made. `home`: the device for tensors that were not on the CPU. `look`:
    returns the object at a place, or raises LookupError."""

    def __init__(self, home: torch.device, look: Callable[[Place], Any] | None = None) -> None:
        self.home, self.look = home, look
        self.made: dict[Place, Any] = {}

    def __call__(self, saved: Any, like: Any = None, place: Place | None = None) -> Any:
        """`like`: what is at this place now."""
        kind = type(saved)
        if kind not in (torch.Tensor, np.ndarray, list, dict, tuple):
            return saved
        if refers(saved):
            where = saved[1:]
            if where not in self.made and self.look is None:
                raise LookupError(where)
            return self.made[where] if where in self.made else self.look(where)  # type: ignore[misc]
        value = self._content(saved, like, place)
        if place is not None:
            self.made[place] = value
        return value

    def _content(self, saved: Any, like: Any, place: Place | None) -> Any:
        kind = type(saved)
        if kind is torch.Tensor:
            return saved.clone()  # not a part of the checkpoint's memory map
        if kind is np.ndarray:
            return saved.copy()
        if kind is list:
            return [self(one, at(like, n), below(place, n)) for n, one in enumerate(saved)]
        if kind is dict:
            return {key: self(one, at(like, key), below(place, key)) for key, one in saved.items()}
        name, *parts = saved or ("",)
        if name == "dtype":
            return getattr(torch, parts[0])
        if name == "device":
            return self._device(*parts)
        if name == "on":
            return parts[1].to(self.home, copy=True)
        if name == "leaf":
            return self._leaf(like, *parts)
        if name == "deque":
            return deque((self(one, None, below(place, n)) for n, one in enumerate(parts[0])), parts[1])
        if name in SEQUENCES:
            return SEQUENCES[name](
                [self(one, at(like, n), below(place, n)) for n, one in enumerate(parts[0])]
            )
        if name in MAPPINGS:
            keys = [self(key) for key in parts[0]]
            pairs = zip(keys, parts[1], strict=True)
            values = {key: self(one, at(like, key), below(place, key)) for key, one in pairs}
            if name != "defaultdict":
                return MAPPINGS[name](values)
            return defaultdict(like.default_factory if type(like) is defaultdict else None, values)
        return saved  # a tuple of numbers, from an earlier version

    def _device(self, where: str, index: int | None) -> torch.device:
        if where == "cpu":
            return torch.device(where)
        return self.home if index is not None else torch.device(self.home.type)

    def _leaf(self, like: Any, where: str, value: Any, parameter: bool, trains: bool) -> Any:
        """A leaf tensor that trains: changed in place, because an optimizer may hold it."""
        if isinstance(like, torch.Tensor) and like.is_leaf and like.shape == value.shape:
            with torch.no_grad():
                like.copy_(value)
            return like
        value = value.to("cpu" if where == "cpu" else self.home, copy=True)
        return torch.nn.Parameter(value, trains) if parameter else value.requires_grad_(trains)


def at(like: Any, key: Any) -> Any:
    """The item of a container, or what a defaultdict would put there; None if there is none."""
    if type(like) is defaultdict and key not in like and like.default_factory:
        return like.default_factory()
    try:
        return like[key]
    except (TypeError, LookupError):
        return None


def refers(held: Any) -> bool:
    """Whether an encoded value is only a reference to a place."""
    return type(held) is tuple and held[:1] == ("same",)


def is_owner(held: Any) -> bool:
    """Whether it is a reference to an owner of attributes."""
    return refers(held) and len(held) == 2


def places_in(held: Any) -> list[Place]:
    """The places that an encoded value refers to, without owners."""
    if refers(held):
        return [] if is_owner(held) else [held[1:]]
    if not isinstance(held, (list, tuple, dict)) or (type(held) is not tuple and _is_simple(held)):
        return []
    return [place for one in (held.values() if type(held) is dict else held) for place in places_in(one)]


def same(a: Any, b: Any) -> bool:
    """Whether two encoded values are equal in all bits that count."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and same([*a.values()], [*b.values()])
    if type(a) is list and _is_simple(a) and a == b and [*map(type, a)] == [*map(type, b)]:
        return True
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


def copied(held: Any) -> Any:
    """A copy of an encoded value that shares no memory with the training."""
    if isinstance(held, torch.Tensor):
        return held.detach().clone()
    if isinstance(held, np.ndarray):
        return held.copy()
    if isinstance(held, (list, tuple)):
        return held if type(held) is list and _is_simple(held) else type(held)(map(copied, held))
    return {key: copied(one) for key, one in held.items()} if isinstance(held, dict) else held


def parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """The items of a container, with their keys."""
    if type(value) in MAPPINGS.values():
        return value.items()
    return enumerate(value) if type(value) in (list, tuple, deque) else ()


def _leaves(held: Any) -> Iterator[Any]:
    """The plain values, tensors, arrays and references in an encoded value."""
    if refers(held):
        yield held
        return
    if isinstance(held, dict):
        held = list(held.values())
    elif isinstance(held, tuple):
        held = held[2:3] if held and held[0] in ("on", "leaf", *MAPPINGS) else list(held[1:])
    if type(held) is list and _is_simple(held):
        yield from held
        return
    for one in held if isinstance(held, (list, tuple)) else ():
        yield from _leaves(one)
    if not isinstance(held, (list, tuple)):
        yield held


def has_tensors(held: Any) -> bool:
    return any(isinstance(one, (torch.Tensor, np.ndarray)) for one in _leaves(held))


def has_switches(held: Any) -> bool:
    """Whether it holds a bool, text (such as the names of finished stages) or a reference to an owner."""
    return any(type(one) in (bool, str) or is_owner(one) for one in _leaves(held))


def bytes_of(held: Any) -> int:
    return sum(one.nbytes for one in _leaves(held) if isinstance(one, (torch.Tensor, np.ndarray)))


SMALL = 1 << 14


def mark(held: Any) -> list[Any]:
    """What distinguishes an encoded value from others: its bytes, or a digest of large tensors and arrays."""
    found: list[Any] = []
    for one in _leaves(held):
        if not isinstance(one, (torch.Tensor, np.ndarray)):
            found.append(repr(one))
            continue
        if isinstance(one, np.ndarray):
            bits = torch.from_numpy(np.require(one, None, ("C", "W")).reshape(-1).view(np.uint8))
        else:
            bits = one.detach().contiguous().view(-1).view(torch.uint8)
        content = _digest(bits) if len(bits) > SMALL else bits.cpu().numpy().tobytes()
        found.append([str(one.dtype), [*one.shape], content])
    return found


AT_ONCE = 1 << 20


def _digest(bits: torch.Tensor) -> int:
    """A hash of bytes and their order: sums of the words, each multiplied by another odd number."""
    if len(bits) % 8 == 0 == bits.storage_offset() % 8:
        bits = bits.view(torch.int64)
    factors = torch.arange(min(AT_ONCE, len(bits)), device=bits.device) * -7046029254386353131 | 1
    sums = [((one.long() + 1) * factors[: len(one)]).sum() for one in bits.split(AT_ONCE)]
    total = 0
    for one in torch.stack(sums).tolist():
        total = (total * 6364136223846793005 + one) % (1 << 63)
    return total
