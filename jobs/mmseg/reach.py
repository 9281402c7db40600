"""Finds where a training keeps state beside its weights.

The search starts from the modules and the user's hooks and optimizers, and follows their attributes: to
objects of the user's classes, to networks that are not registered as modules (a teacher in a list, which is
not to be a part of the model), and to objects with a state of their own (a second optimizer, a generator).
"""

from __future__ import annotations

import contextlib
import logging
import types
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin

from jobs.mmseg import things, values

STOCK = ("mmengine", "mmseg", "jobs", "torch")
"""Packages whose hooks and optimizers need no search."""

OF_MODULES = {*vars(torch.nn.Module()), "_is_init"}
"""Attributes in which torch keeps a module's parts, and mmengine a note that they are initialised."""

OF_DATASETS = {"data_list", "data_bytes", "data_address", "_metainfo", "metainfo", "generators"}
INNER = ("pipeline", "dataset", "datasets")
"""Attributes of a dataset that hold its transforms and inner datasets."""

OF_OPTIMIZERS = frozenset((*vars(torch.optim.SGD([torch.ones(1)], lr=0.1)), "_global_step", "step"))
OF_WRAPPERS = {
    *("optimizer", "clip_func", "clip_grad_kwargs", "message_hub", "base_param_settings"),
    *("_inner_count", "_accumulative_counts", "_max_counts", "_remainder_counts"),
}

MOST = 1000
"""A container with more items is data, and not searched."""


def package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def is_known(value: Any) -> bool:
    """Whether its class is not the user's. (A Runner may get attributes from anyone.)"""
    return package(value) in STOCK and not isinstance(value, Runner)


def remembers(hook: Any) -> bool:
    """Whether a hook saves its own state."""
    return hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict")


def attributes(owner: Any) -> dict[str, Any]:
    """An owner's attributes, without those that its kind always has; with buffers that are not persistent."""
    if isinstance(owner, torch.nn.Module):
        found = {name: one for name, one in vars(owner).items() if name not in OF_MODULES}
        for name in owner._non_persistent_buffers_set:
            found[name] = owner._buffers.get(name)
        return found
    known: Iterable[str] = ()
    if isinstance(owner, type):
        return {n: one for n, one in vars(owner).items() if not (n.startswith("__") or _is_code(one))}
    if isinstance(owner, torch.optim.Optimizer):
        known = OF_OPTIMIZERS
    elif hasattr(type(owner), "optim_context"):
        known = OF_WRAPPERS
    elif is_dataset(owner):
        known = (*OF_DATASETS, *INNER)
    elif isinstance(owner, Runner):
        known = owner.own_attributes
    found = vars(owner) if has_attributes(owner) else {}
    return {name: one for name, one in {**found, **_in_slots(owner)}.items() if name not in known}


def slots(owner: Any) -> dict[str, Any]:
    """The descriptors of an object's `__slots__`."""
    of_kinds = [vars(kind).items() for kind in type(owner).__mro__]
    kind = types.MemberDescriptorType
    return {n: one for of in of_kinds for n, one in of if isinstance(one, kind) and not n.startswith("__")}


def _in_slots(owner: Any) -> dict[str, Any]:
    found = {}
    for name, one in slots(owner).items():
        with contextlib.suppress(AttributeError):  # an empty slot
            found[name] = one.__get__(owner)
    return found


def of_process(value: Any) -> bool:
    """Whether each process creates it anew, so that it need not be saved: a logger, a writer of curves, a
    lock, the runner."""
    kinds = (logging.Logger, weakref.ref, ManagerMixin, Runner)
    kind = type(value)
    if isinstance(value, kinds) or hasattr(kind, "add_histogram"):
        return True
    return kind.__module__ in ("_thread", "threading")


def _is_code(value: Any) -> bool:
    return callable(value) or hasattr(type(value), "__get__") or type(value).__name__ == "_abc_data"


def has_attributes(value: Any) -> bool:
    return bool(type(value).__dictoffset__)


def is_dataset(value: Any) -> bool:
    # Of the class: an object's own __getattr__ may raise anything (a KeyError, if it looks into a dict).
    return isinstance(value, torch.utils.data.Dataset) or hasattr(type(value), "full_init")


def data_owners(dataset: Any) -> dict[str, Any]:
    """A dataset, its inner datasets and their transforms, by the path to each."""
    found: dict[str, Any] = {}
    left, seen = [("dataset", dataset)], set()
    for way, one in left:  # which grows
        if id(one) in seen or isinstance(one, (type, types.FunctionType, torch.nn.Module)):
            continue
        seen.add(id(one))
        if isinstance(one, (list, tuple)):
            left += [(f"{way}[{n}]", part) for n, part in enumerate(one)] if len(one) <= MOST else []
        elif has_attributes(one) and (is_dataset(one) or callable(one) or way == "dataset"):
            found[way] = one
            names = [n for n in INNER if n in vars(one)] if is_dataset(one) else [*vars(one)]
            left += [(f"{way}.{name}", vars(one)[name]) for name in names]
    return found


class Reached:
    """`owners`: objects whose attributes are followed; `things`: objects with a state; `hidden`: networks
    that are not registered. All by the path to them."""

    def __init__(self, networks: dict[str, Any], others: Iterable[tuple[str, Any]], known: Iterable[Any]):
        self.owners: dict[str, Any] = {}
        self.things: dict[str, Any] = {}
        self.hidden: dict[str, torch.nn.Module] = {}
        self.seen: set[int] = {id(one) for one in known}
        for prefix, network in networks.items():
            for name, module in network.named_modules():
                self.owners[f"{prefix}{name}"] = module
        self.owners |= dict(others)
        self.seen |= {id(one) for one in self.owners.values()}
        self.users = {package(one) for one in self.owners.values()} - {*STOCK, "mmcv", "builtins"}
        left = list(self.owners)
        for key in left:  # which grows
            left += self._classes(self.owners[key])
            for name, value in attributes(self.owners[key]).items():
                left += self._visit(f"{key}.{name}", value)

    def _classes(self, owner: Any) -> list[str]:
        """Adds the user's classes of an owner, which have attributes, too. Returns their keys."""
        found = [] if isinstance(owner, type) else [*type(owner).__mro__]
        new = {
            f"class {one.__module__}.{one.__qualname__}": one
            for one in found
            if id(one) not in self.seen and one.__module__.partition(".")[0] in self.users
        }
        self.seen |= {id(one) for one in new.values()}
        self.owners |= new
        return [*new]

    def _visit(self, way: str, value: Any) -> list[str]:
        """Returns the keys of the owners that were found."""
        kind = type(value)
        if values.is_switch(value) or values.is_number(value) or isinstance(value, torch.Tensor):
            return []
        if id(value) in self.seen:
            return []
        if kind in (list, tuple, values.deque, *values.MAPPINGS.values()):
            self.seen.add(id(value))
            inside = values.parts(value) if len(value) <= MOST else ()
            return [one for place, part in list(inside) for one in self._visit(f"{way}[{place!r}]", part)]
        if isinstance(value, (type, types.ModuleType, types.FunctionType)):
            return []
        self.seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            return self._network(way, value)
        if things.has_state(value):
            self.things[way] = value
            return []
        if (package(value) in self.users or kind is types.SimpleNamespace) and _is_plain(value):
            self.owners[way] = value
            return [way]
        return []

    def _network(self, way: str, network: torch.nn.Module) -> list[str]:
        if is_model_wrapper(network) and id(network.module) in self.seen:
            return []
        self.hidden[way] = network
        found = {f"{way}/{name}": one for name, one in network.named_modules() if id(one) not in self.seen}
        found[f"{way}/"] = network
        self.owners |= found
        self.seen |= {id(one) for one in found.values()}
        return list(found)


def _is_plain(value: Any) -> bool:
    """Whether it keeps its state in attributes, and is not a dataset, sampler or loader."""
    of_data = (torch.utils.data.Sampler, torch.utils.data.DataLoader)
    return (
        bool(has_attributes(value) or slots(value))
        and not isinstance(value, of_data)
        and not is_dataset(value)
    )
