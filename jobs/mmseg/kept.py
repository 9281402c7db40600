"""What a training changes in the user's models and hooks beside weights: numbers, and what is frozen.

A model that counts its steps in an attribute (a warm-up of pseudo labels, a loss whose weight changes) or
keeps past losses or a bank of features there, or a hook that thaws the backbone at one epoch, would train
otherwise after a resume. Their numbers, tensors and lists of numbers and the frozen parameters are saved with
the weights, and given back; so are weights that a model leaves out of its `state_dict`, as those do that
train a few of their own beside a large frozen network, and the state of an optimizer inside another.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch

from jobs.engine import storable
from jobs.run.errors import UserError

STOCK = ("mmengine", "mmseg", "jobs")
"""Packages whose hooks are known."""

OF_MODULES = frozenset(vars(torch.nn.Module()))
"""Attributes in which a module keeps its parts."""


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a model by name, those too that its `state_dict` leaves out."""
    known = dict(model.state_dict())
    return known | _lacking(model, known)


def left_out(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a model's `state_dict` leaves out."""
    return _lacking(model, model.state_dict())


def _lacking(model: torch.nn.Module, known: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in _all(model) if name not in known}


def put_left_out(networks: dict[str, Any], saved: dict[str, dict[str, torch.Tensor]]) -> None:
    """Gives networks, by the beginnings of their names, back what was `left_out` of them."""
    with torch.no_grad():
        for prefix, network in networks.items():
            for name, value in _all(network) if saved.get(prefix) else ():
                if name in saved[prefix]:
                    value.copy_(saved[prefix][name])


def _all(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for above, module in model.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and name not in passing:
                yield f"{above}.{name}" if above else name, value


def check_weights(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises UserError if a hook took weights out of a checkpoint, or named them otherwise."""
    if gone := [name for name in before if name not in after]:
        raise UserError(
            f"a hook's before_save_checkpoint leaves {len(gone)} weights out of the checkpoint that the "
            f"run resumes from ({gone[0]}, …): remove the hook, and strip the finished run's checkpoint "
            "instead"
        )


def check_names(built: Collection[str], now: Collection[str]) -> None:
    """Raises UserError if a model has other weights than when it was built, as a resume builds it."""
    if other := [name for name in now if name not in built]:
        raise UserError(
            f"the model has made {len(other)} weights since it was built ({other[0]}, …), which could not "
            "be restored on resume: create them in its __init__"
        )
    if other := [name for name in built if name not in now]:
        raise UserError(
            f"{len(other)} weights of the model have disappeared since it was built ({other[0]}, …), and a "
            "run cannot resume without them: leave them in place, unused"
        )


def inner(optimizer: Any) -> list[Any]:
    """The optimizers that one is made around, as SAM and Lookahead are: its state lacks theirs."""
    found = [optimizer]
    for outer in found:  # which may know of each other
        for one in vars(outer).values():
            if isinstance(one, torch.optim.Optimizer) and all(one is not other for other in found):
                found.append(one)
    return found[1:]


def load_optimizers(optim_wrapper: Any, wrappers: list[Any], state: Any, of_inner: list[Any]) -> None:
    """Gives a training's optimizers (`wrappers`) their state, and those inside them theirs (`of_inner`). One
    that had its groups of parameters from the outer one follows its learning rate as before."""
    pairs = [(wrapper.optimizer, one) for wrapper in wrappers for one in inner(wrapper.optimizer)]
    following = [_groups(one) == _groups(outer) for outer, one in pairs]
    optim_wrapper.load_state_dict(state)
    saved = [state for states in of_inner for state in states]
    for (outer, one), follows, its in zip(pairs, following, saved, strict=False):
        one.load_state_dict(its)
        if follows:
            one.param_groups = outer.param_groups


def _groups(optimizer: Any) -> list[int]:
    return [id(group) for group in optimizer.param_groups]


def _owners(networks: dict[str, Any], hooks: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for prefix, network in networks.items():
        for name, module in network.named_modules():
            yield f"{prefix}{name}", module
    for key, hook in hooks:
        stock = type(hook).__module__.partition(".")[0] in STOCK
        if not stock and not (hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict")):
            yield f"hook {key}", hook


def _is_number(value: Any) -> bool:
    # A switch such as `done` may stand for something that this process has still to do. What is more than a
    # number (an IntEnum) could not be loaded back, one that is too large not be told to another rank.
    if type(value) is int:
        return value.bit_length() < 64
    return type(value) is float or (isinstance(value, np.number) and storable.is_usual(value))


def _numbers(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if _is_number(value)}


def _data(owner: Any) -> dict[str, Any]:
    """The tensors, arrays, lists, deques and dicts of numbers among an owner's attributes."""
    found = {n: v for n, v in vars(owner).items() if n not in OF_MODULES and _is_data(v)}
    for name in owner._non_persistent_buffers_set if isinstance(owner, torch.nn.Module) else ():
        if _is_data(buffer := owner._buffers.get(name)):
            found[name] = buffer
    return found


def _is_data(value: Any) -> bool:
    if type(value) is torch.Tensor:
        # What has a gradient belongs to a step that is over.
        real = not (value.requires_grad or value.is_inference() or value.device.type == "meta")
        return real and storable.is_usual(value)
    if type(value) is np.ndarray:
        return value.dtype.kind in "iuf"
    return type(value) in (list, deque, dict) and _of_numbers(value)


def _of_numbers(value: Any) -> bool:
    # Tensors among them may well be the weights themselves (AveragedModel.avg_parameters).
    if type(value) is dict:
        return all((type(k) is str or _is_number(k)) and _of_numbers(v) for k, v in value.items())
    if type(value) in (list, tuple, deque):
        return all(map(_of_numbers, value))
    return _is_number(value)


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.layout is torch.strided else 0


class _First:
    """What data was when this start of the training began."""

    def __init__(self, value: Any) -> None:
        self.value = copy.deepcopy(value)
        self.size = [*value.shape] if isinstance(value, (torch.Tensor, np.ndarray)) else [len(value)]

    def is_like(self, other: Any) -> bool:
        return type(other) is type(self.value)

    def differs(self, now: Any) -> bool:
        try:
            if isinstance(now, torch.Tensor):
                return not torch.equal(now, self.value.to(now.device))
            return not np.all(now == self.value)
        except (RuntimeError, ValueError):  # of another type or shape
            return True


def _plain(value: Any) -> Any:
    """Data as a checkpoint can hold it."""
    if type(value) is dict:
        return {key: _plain(one) for key, one in value.items()}
    if type(value) in (list, tuple, deque):
        return (tuple if type(value) is tuple else list)(map(_plain, value))
    return value


def _put(owner: Any, name: str, old: Any, value: Any) -> None:
    """Gives an owner its data back, in place where that goes: others may know the same object."""
    value = copy.deepcopy(value)  # and nothing of the checkpoint's memory map
    if isinstance(old, dict):
        old.clear()
        old.update(value)
    elif isinstance(old, (list, deque)):
        old.clear()
        old.extend(value)
    elif old.shape == value.shape and old.dtype == value.dtype and isinstance(old, np.ndarray):
        old[...] = value
    elif old.shape == value.shape and old.dtype == value.dtype and old.is_contiguous():
        old.copy_(value)
    else:
        value = value if isinstance(old, np.ndarray) else value.to(old.device)
        (vars(owner) if name in vars(owner) else owner._buffers)[name] = value


class Kept:
    """The numbers and data in the attributes of all modules and of the user's hooks, and the parameters that
    train.

    `networks`: by what the names of their modules begin with; `hooks`: by their keys.
    """

    def __init__(self, networks: dict[str, Any], hooks: Iterator[tuple[str, Any]]) -> None:
        self.model = networks[""]
        self.owners = dict(_owners(networks, hooks))
        self.at_first = {key: _numbers(owner) for key, owner in self.owners.items()}
        weights = {_memory(value) for network in networks.values() for _, value in _all(network)} - {0}

        def alone(value: Any) -> bool:
            """Whether it is no other view of the weights."""
            if isinstance(value, torch.Tensor):
                return _memory(value) not in weights
            return not isinstance(value, np.ndarray) or value.flags.owndata

        self.data = {
            key: {name: _First(value) for name, value in _data(owner).items() if alone(value)}
            for key, owner in self.owners.items()
        }

    def state(self) -> dict[str, Any]:
        """What has `changed`, and which parameters are frozen."""
        frozen = [name for name, value in self.model.named_parameters() if not value.requires_grad]
        return self.changed() | {"frozen": frozen}

    def changed(self) -> dict[str, Any]:
        """What has changed since this object was made."""
        changed, data = {}, {}
        for key, owner in self.owners.items():
            first, now = self.at_first[key], _numbers(owner)
            # Without those that this process has set for the first time: what they go with is not known.
            if new := {n: v for n, v in now.items() if n in first and not _same(v, first[n])}:
                changed[key] = new
            began = self.data[key]
            if kept := {
                name: {"began": began[name].size, "now": _plain(value)}
                for name, value in (_data(owner) if began else {}).items()
                if name in began and began[name].is_like(value) and began[name].differs(value)
            }:
                data[key] = kept
        return {"numbers": changed, "data": data}

    def restore(self, state: dict[str, Any]) -> None:
        for key, owner in self.owners.items():
            now, saved = _numbers(owner), state["numbers"].get(key, {})
            for name, first in self.at_first[key].items():
                if name in now and not _same(now[name], value := saved.get(name, first)):
                    vars(owner)[name] = value  # as it was read: a property of that name may have no setter
            here, data = _data(owner), state.get("data", {}).get(key, {})
            for name, first in self.data[key].items():
                if not first.is_like(here.get(name)):
                    continue
                # One that began with another size is another: of so many ranks, say.
                if name in data and data[name]["began"] == first.size:
                    _put(owner, name, here[name], data[name]["now"])
                elif first.differs(here[name]):
                    _put(owner, name, here[name], first.value)
        frozen = set(state["frozen"])
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad != (name not in frozen):
                parameter.requires_grad_(name not in frozen)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)
