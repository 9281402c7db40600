"""Finds what a training has changed in the attributes of objects, for a checkpoint, and restores it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from io import IOBase
from typing import Any

import numpy as np
import torch

from jobs.mmseg import values
from jobs.mmseg.reach import attributes, of_process, slots
from jobs.mmseg.values import Decoder, Encoder, Passing, Place, Unholdable, is_number, is_switch, same

KINDS = ("numbers", "data", "new")
"""Of changed attributes: numbers; data of the same type as at the beginning; everything else."""

NOTHING = object()

LARGE = 1 << 26
"""Of an attribute with this many bytes of tensors and arrays, no copy is held for comparison."""

TRACED = 20
"""The first draws of a start, in which attributes that transforms use as scratch are detected."""


class _First:
    """An attribute when this start of the training began. `held`: its encoded value; None if it has none."""

    def __init__(self, value: Any, held: Any) -> None:
        self.value = value
        self.number, self.switch = is_number(value), is_switch(value)
        self.parts = [id(part) for _, part in values.parts(value)]
        self.large = values.bytes_of(held) >= LARGE
        self.known = held is not None
        self.held = values.mark(held) if self.large else values.copied(held)
        stream = isinstance(value, Iterator)
        plain = type(value) is tuple and all(is_number(part) or is_switch(part) for part in value)
        unknown = not self.known and not self.parts and not stream
        self.fixed = self.number or self.switch or plain or unknown
        """Whether the same object need not be looked at: its value is the same, or unknown."""
        self.size = [*value.shape] if isinstance(value, (torch.Tensor, np.ndarray)) else None
        if self.known and isinstance(value, values.CONTAINERS):
            self.size = [len(value)]

    def is_other(self, value: Any) -> bool:
        """Whether a value that cannot be compared is another object, or has other parts."""
        return value is not self.value or self.parts != [id(part) for _, part in values.parts(value)]

    def is_same(self, now: Any) -> bool:
        """Whether the encoded value `now` is that of the beginning."""
        return bool(values.mark(now) == self.held) if self.large else same(now, self.held)

    def is_like(self, value: Any) -> bool:
        return self.known and type(value) is type(self.value)


def _filled(old: Any, value: Any, saved: Any) -> Any:
    """`old` filled with the content of `value`, since others may hold `old`; `value` itself if that is not
    possible. `saved`: `value`, encoded."""
    if value is old or values.refers(saved):
        return value
    if isinstance(old, torch.Tensor) and isinstance(saved, torch.Tensor):
        value = value.to(old.device)  # checkpoints of earlier versions have no device
    if isinstance(old, (dict, set)):
        old.clear()
        old.update(value)
    elif isinstance(old, values.CHANGING):
        old.clear()
        old.extend(value)
    elif isinstance(old, np.ndarray) and _is_like(old, value) and old.flags.writeable:
        old[...] = value
    elif isinstance(old, torch.Tensor) and _is_like(old, value):
        with torch.no_grad():
            old.copy_(value)
    else:
        return value
    return old


def _is_like(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and getattr(a, "device", 0) == getattr(b, "device", 0)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type):
        setattr(owner, name, value)
        return
    # Where it was read: a property of that name may have no setter.
    if slot := slots(owner).get(name):
        slot.__set__(owner, value)
        return
    buffers = getattr(owner, "_buffers", {}) if isinstance(owner, torch.nn.Module) else {}
    (buffers if name in buffers else vars(owner))[name] = value


def _remove(owner: Any, name: str) -> None:
    if isinstance(owner, type):
        delattr(owner, name)
    elif slot := slots(owner).get(name):
        slot.__delete__(owner)
    else:
        vars(owner).pop(name, None)


class Attributes:
    """Follows changes in the attributes of `owners` (by key).

    `weights`: addresses of the weights' memory. `shy`: keys of owners whose switches (`done`) stand for
    something that each process must do itself. `of_data`: large attributes count only when replaced.
    """

    def __init__(
        self,
        owners: dict[str, Any],
        weights: Collection[int] = (),
        shy: Collection[str] = (),
        of_data: bool = False,
    ) -> None:
        self.owners, self.weights, self.shy = owners, weights, shy
        held = self._all_held()
        self.first = {
            key: {name: _First(value, held[key].get(name)) for name, value in attributes(owner).items()}
            for key, owner in owners.items()
        }
        for key, of in self.first.items() if of_data else ():
            for name, began in of.items():
                elsewhere = [self.first[way][its] for way, its, *_ in values.places_in(held[key].get(name))]
                began.fixed |= began.large or any(one.large for one in elsewhere)
        self.given: dict[str, set[str]] = {}
        """What a resume has restored: saved again, even if each start begins with the same."""
        self.lost: dict[str, str] = {}
        """What the last call could not save: key and attribute -> type."""
        self.said: set[str] = set()
        self.scratch: set[tuple[str, str]] = set()
        """Attributes that are scratch, not state."""
        self.traced = 0

    def _encoder(self) -> Encoder:
        return Encoder(self.weights, {id(owner): (key,) for key, owner in self.owners.items()})

    def _all_held(self) -> dict[str, dict[str, Any]]:
        """All attributes, encoded, except those that a checkpoint cannot hold."""
        encode = self._encoder()
        found: dict[str, dict[str, Any]] = {}
        for key, owner in self.owners.items():
            found[key] = {}
            for name, value in attributes(owner).items():
                if not (is_number(value) or is_switch(value)):
                    with contextlib.suppress(Unholdable):
                        found[key][name] = encode(value, (key, name))
        return found

    def of_owners(self, rewired: bool = False, large: bool = False) -> dict[str, Any]:
        """What has changed since this object was created; without switches if the networks are `rewired`.
        `large`: with large attributes even if unchanged, for a restore in this start, which has no copy."""
        self.lost = {}
        found: dict[str, Any] = {kind: {} for kind in KINDS}
        encode = self._encoder()
        changed: set[Place] = set()
        for key, owner in self.owners.items():
            for kind, parts in self._of(key, owner, rewired, large, encode, changed).items():
                if parts:
                    found[kind][key] = parts
        return found

    def without_trace(self, work: Callable[[], Any]) -> Any:
        """Returns `work()`; what that changes is `scratch`."""
        if self.traced == TRACED:
            return work()
        self.traced += 1
        before, lost = values.copied(self.of_owners()), self.lost
        result = work()
        now_found = self.of_owners()
        self.scratch |= {(way.rpartition(".")[0], way.rpartition(".")[2]) for way in self.lost.keys() - lost}
        for kind, owners in now_found.items():
            for key, found in owners.items():
                old = before[kind].get(key, {})
                self.scratch |= {
                    (key, n) for n, now in found.items() if n not in old or not same(now, old[n])
                }
        return result

    def while_given(self, state: dict[str, Any], work: Callable[[], Any]) -> Any:
        """Returns `work()`, called while the owners have the attributes in `state`; then restores theirs."""
        now = values.copied(self.of_owners())
        before = {key: dict(attributes(owner)) for key, owner in self.owners.items()}
        home = torch.device("cpu")
        self.give_owners(state, home)
        result = work()
        self.give_owners(now, home)
        for key, owner in self.owners.items():
            for name, value in before[key].items():
                if attributes(owner).get(name, NOTHING) is not value:
                    _set(owner, name, value)
        return result

    def _of(
        self, key: str, owner: Any, rewired: bool, large: bool, encode: Encoder, changed: set[Place]
    ) -> dict[str, Any]:
        """What has changed in one owner, by KINDS. Adds it to `changed`."""
        numbers, data, new, switches = {}, {}, {}, {}
        shy, whole = key in self.shy, True
        first, given = self.first[key], self.given.get(key, ())
        for name, value in attributes(owner).items():
            began = first.get(name)
            if began and began.fixed and value is began.value and name not in given:
                continue
            if (key, name) in self.scratch:
                continue
            if of_process(value):
                whole &= began is not None and value is began.value
                continue
            again = name in given
            if began and began.number and is_number(value):
                if again or not same(value, began.value):
                    numbers[name] = value
                continue
            try:
                now = encode(value, (key, name))
            except Unholdable as why:
                # An iterator begins anew in each start, whether or not it is the one of the beginning.
                stream = isinstance(value, Iterator) and not isinstance(value, IOBase)
                if not isinstance(why, Passing) and (stream or not began or began.is_other(value)):
                    self.lost[f"{key}.{name}"] = type(value).__name__
                    whole &= stream
                continue
            stands = is_switch(value) or values.is_owner(now) or (shy and values.has_switches(now))
            if began and began.is_like(value):
                # A reference to a changed place is a reference to another object.
                moves = any((way, its) in changed for way, its, *_ in values.places_in(now))
                again |= (large and began.large) or moves or (shy and values.has_tensors(now))
                if not again and began.is_same(now):
                    continue
                if stands:
                    switches[name] = now
                else:
                    data[name] = {"began": began.size, "now": now, "same": value is began.value}
            elif not stands:
                new[name] = now
            elif again or not (began and began.switch and same(began.value, now)):
                switches[name] = now
            else:
                continue
            changed.add((key, name))
        # In a hook, a switch such as `done` stands for something that each process must do itself. Elsewhere
        # it may, too, if something has changed that is not restored.
        if shy or rewired or not whole:
            self._lose(key, owner, switches)
            switches = {}
        if not whole:
            self._lose(key, owner, new)
            new = {}
        return {"numbers": numbers, "data": data, "new": new | switches}

    def _lose(self, key: str, owner: Any, names: Iterable[str]) -> None:
        here = attributes(owner)
        self.lost |= {f"{key}.{name}": type(here[name]).__name__ for name in names}

    def say_lost(self) -> None:
        """Prints, once, what a resume will not restore."""
        if new := [f"{way.lstrip('.')} ({kind})" for way, kind in self.lost.items() if way not in self.said]:
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            print(
                f"changed in training, and forgotten by every resume: {', '.join(new[:5])}{more} "
                "(docs/surviving.md says what comes back)",
                flush=True,
            )
        self.said |= self.lost.keys()

    def give_owners(self, state: dict[str, Any], home: torch.device) -> None:
        """Restores what was saved, and resets the rest to the beginning. Checkpoints of earlier versions have
        fewer keys."""
        held, decode, later = self._all_held(), Decoder(home, self._look), []
        for key, owner in self.owners.items():
            of = {kind: state.get(kind, {}).get(key, {}) for kind in KINDS}
            first, here = self.first[key], attributes(owner)
            for name in {**first, **here, **of["new"]}:
                began, now = first.get(name), here.get(name, NOTHING)
                if (key, name) in self.scratch:
                    continue
                if name in of["new"]:
                    later.append((key, name, now, of["new"][name], False))
                elif began is None:
                    _remove(owner, name)
                elif began.number and is_number(now):
                    if not same(now, value := of["numbers"].get(name, began.value)):
                        _set(owner, name, value)
                # Not if it began with another size, by the number of ranks for example.
                elif began.known and name in of["data"] and of["data"][name]["began"] == began.size:
                    entry = of["data"][name]
                    later.append((key, name, began.value, entry["now"], entry.get("same", True)))
                elif began.large or not began.known:
                    if now is not began.value:
                        _set(owner, name, began.value)
                elif now is not began.value or not same(held[key].get(name), began.held):
                    later.append((key, name, began.value, began.held, True))
            if names := {name for parts in of.values() for name in parts}:
                self.given.setdefault(key, set()).update(names)
        # References come last, when what they refer to is there.
        for key, name, old, saved, in_place in sorted(later, key=lambda one: bool(values.places_in(one[3]))):
            with contextlib.suppress(LookupError, TypeError):  # what it refers to may not exist in this start
                like = old if in_place or isinstance(old, values.CONTAINERS) else None
                value = decode(saved, like, (key, name))
                decode.made[key, name] = value = _filled(old, value, saved) if in_place else value
                if value is not attributes(self.owners[key]).get(name, NOTHING):
                    _set(self.owners[key], name, value)

    def _look(self, place: Place) -> Any:
        key, *inside = place
        if not inside:
            return self.owners[key]
        value = attributes(self.owners[key])[inside[0]]
        for one in inside[1:]:
            value = value[one]
        return value
