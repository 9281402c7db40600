"""The attributes of objects: what a training has changed in them, for a checkpoint, and giving it back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from io import IOBase
from typing import Any

import numpy as np
import torch

from jobs.mmseg import values
from jobs.mmseg.reach import attributes
from jobs.mmseg.values import Passing, Unholdable, decoded, encoded, held_of, is_number, is_switch, same

KINDS = ("numbers", "data", "new")
"""Of attributes: numbers as ever, data that began as such, and what was something else at first."""

NOTHING = object()


class _First:
    """What an attribute was when this start of the training began."""

    def __init__(self, value: Any, weights: Collection[int]) -> None:
        self.value, self.held = value, None
        self.number, self.switch = is_number(value), is_switch(value)
        self.parts = [id(part) for _, part in values.parts(value)]
        if not (self.number or self.switch):
            self.held = copy.deepcopy(held_of(value, weights))
        stream = isinstance(value, Iterator)
        plain = type(value) is tuple and all(is_number(part) or is_switch(part) for part in value)
        unknown = self.held is None and not self.parts and not stream
        self.fixed = self.number or self.switch or plain or unknown
        """Whether the same object is the same value, or none to be looked at."""
        self.size = [*value.shape] if isinstance(value, (torch.Tensor, np.ndarray)) else None
        if self.held is not None and self.size is None:
            self.size = [len(value)]

    def is_other(self, value: Any) -> bool:
        """Whether this, which cannot be compared, is another object, or has other parts."""
        return value is not self.value or self.parts != [id(part) for _, part in values.parts(value)]

    def is_like(self, value: Any) -> bool:
        return self.held is not None and type(value) is type(self.value)


def _put(owner: Any, name: str, old: Any, saved: Any, home: torch.device) -> None:
    """Gives an owner its data back, in place where that goes: others may know the same object."""
    value = decoded(saved, old, home)
    if value is old:
        return
    if isinstance(old, torch.Tensor) and isinstance(saved, torch.Tensor):
        value = value.to(old.device)  # checkpoints of earlier versions do not say where it was
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
        _set(owner, name, value)


def _is_like(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and getattr(a, "device", 0) == getattr(b, "device", 0)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type):
        setattr(owner, name, value)
        return
    # As it was read: a property of that name may have no setter.
    buffers = getattr(owner, "_buffers", {}) if isinstance(owner, torch.nn.Module) else {}
    (buffers if name in buffers else vars(owner))[name] = value


def _remove(owner: Any, name: str) -> None:
    if isinstance(owner, type):
        delattr(owner, name)
    else:
        vars(owner).pop(name, None)


class Attributes:
    """What is in the attributes of `owners`, by the ways to them, and changes.

    `weights`: where the memory of weights lies. `shy`: owners whose switches stand for what each process has
    to do itself.
    """

    def __init__(
        self, owners: dict[str, Any], weights: Collection[int] = (), shy: Collection[str] = ()
    ) -> None:
        self.owners, self.weights, self.shy = owners, weights, shy
        self.first = {
            key: {name: _First(value, weights) for name, value in attributes(owner).items()}
            for key, owner in owners.items()
        }
        self.given: dict[str, set[str]] = {}
        """What a resume has given back: it is saved again, even if each start begins with the same."""
        self.lost: dict[str, str] = {}
        """What could not be saved the last time, and what it is, by the way to it."""
        self.said: set[str] = set()
        self.scratch: set[tuple[str, str]] = set()
        """What is no state, but notes for the moment."""

    def of_owners(self, rewired: bool = False) -> dict[str, Any]:
        """What has changed since this object was made. `rewired`: no switch tells what was done."""
        self.lost = {}
        found: dict[str, Any] = {kind: {} for kind in KINDS}
        for key, owner in self.owners.items():
            for kind, parts in self._of(key, owner, rewired).items():
                if parts:
                    found[kind][key] = parts
        return found

    def without_trace(self, work: Callable[[], Any]) -> Any:
        """What `work` gives; what it changes is `scratch`."""
        before, lost = copy.deepcopy(self.of_owners()), self.lost
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

    def _of(self, key: str, owner: Any, rewired: bool) -> dict[str, Any]:
        """What one owner has otherwise than at first, by KINDS."""
        numbers, data, new, switches = {}, {}, {}, {}
        shy, whole = key in self.shy, True
        first, given = self.first[key], self.given.get(key, ())
        for name, value in attributes(owner).items():
            began = first.get(name)
            if began and began.fixed and value is began.value and not given:
                continue
            if (key, name) in self.scratch:
                continue
            again = name in given
            if began and began.number and is_number(value):
                if again or not same(value, began.value):
                    numbers[name] = value
                continue
            try:
                now = encoded(value, self.weights)
            except Unholdable as why:
                # A stream of data begins anew, whether or not it is the one that was there at first.
                stream = isinstance(value, Iterator) and not isinstance(value, IOBase)
                if not isinstance(why, Passing) and (stream or not began or began.is_other(value)):
                    self.lost[f"{key}.{name}"] = type(value).__name__
                    whole &= stream
                continue
            if shy and began and began.is_like(value) and values.has_switches(now):
                if not same(now, began.held):
                    switches[name] = now
            elif began and began.is_like(value):
                if again or (shy and values.has_tensors(now)) or not same(now, began.held):
                    data[name] = {"began": began.size, "now": now}
            elif not is_switch(value) and not (shy and values.has_switches(now)):
                new[name] = now
            elif again or not (began and began.switch and began.value == value):
                switches[name] = now
        # In a hook, a switch such as `done` stands for something that each process has still to do;
        # elsewhere, it may where something has changed that is not given back.
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
        """Says, once, what a resume will not give back."""
        if new := [f"{way.lstrip('.')} ({kind})" for way, kind in self.lost.items() if way not in self.said]:
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            print(
                f"changed in training, and forgotten by every resume: {', '.join(new[:5])}{more} "
                "(docs/surviving.md says what comes back)",
                flush=True,
            )
        self.said |= self.lost.keys()

    def give_owners(self, state: dict[str, Any], home: torch.device) -> None:
        """Gives back what was saved, and makes the rest what it was at first. A checkpoint of an earlier
        version has less of it."""
        for key, owner in self.owners.items():
            of = {kind: state.get(kind, {}).get(key, {}) for kind in KINDS}
            first, here = self.first[key], attributes(owner)
            for name in {**first, **here, **of["new"]}:
                began, now = first.get(name), here.get(name, NOTHING)
                if (key, name) in self.scratch:
                    continue
                if name in of["new"]:
                    _set(owner, name, decoded(of["new"][name], now, home))
                elif began is None:
                    _remove(owner, name)
                elif began.number and is_number(now):
                    if not same(now, value := of["numbers"].get(name, began.value)):
                        _set(owner, name, value)
                elif not began.is_like(now):
                    if now is not began.value:
                        _set(owner, name, began.value)
                # One that began with another size is another: of so many ranks, say.
                elif name in of["data"] and of["data"][name]["began"] == began.size:
                    _put(owner, name, now, of["data"][name]["now"], home)
                elif not same(held_of(now, self.weights), began.held):
                    _put(owner, name, now, began.held, home)
            if names := {name for parts in of.values() for name in parts}:
                self.given.setdefault(key, set()).update(names)
