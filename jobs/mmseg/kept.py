"""What a training changes in the user's models and hooks beside weights: numbers, and what is frozen.

A model that counts its steps in an attribute (a warm-up of pseudo labels, a loss whose weight changes), or a
hook that thaws the backbone at one epoch, would train otherwise after a resume. Their numbers and the frozen
parameters are saved with the weights, and given back; so are weights that a model leaves out of its
`state_dict`, as those do that train a few of their own beside a large frozen network, and the state of an
optimizer inside another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from jobs.engine import storable
from jobs.run.errors import UserError

STOCK = ("mmengine", "mmseg", "jobs")
"""Packages whose hooks are known."""


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
            f"a hook's before_save_checkpoint leaves {len(gone)} weights out of the checkpoint ({gone[0]}, "
            "…), from which the run resumes: remove the hook, and do that to the finished run's checkpoint"
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


def _numbers(owner: Any) -> dict[str, Any]:
    # A switch such as `done` may stand for something that this process has still to do. What is more than a
    # number (an IntEnum), or too large, could not be loaded back.
    return {
        name: value
        for name, value in vars(owner).items()
        if (type(value) in (int, float) or isinstance(value, np.number)) and storable.is_usual(value)
    }


class Kept:
    """The numbers in the attributes of all modules and of the user's hooks, and the parameters that train.

    `networks`: by what the names of their modules begin with; `hooks`: by their keys.
    """

    def __init__(self, networks: dict[str, Any], hooks: Iterator[tuple[str, Any]]) -> None:
        self.model = networks[""]
        self.owners = dict(_owners(networks, hooks))
        self.at_first = {key: _numbers(owner) for key, owner in self.owners.items()}

    def state(self) -> dict[str, Any]:
        """What has changed since this object was made, and which parameters are frozen."""
        changed = {}
        for key, owner in self.owners.items():
            first, now = self.at_first[key], _numbers(owner)
            # Without those that this process has set for the first time: what they go with is not known.
            if new := {n: v for n, v in now.items() if n in first and not _same(v, first[n])}:
                changed[key] = new
        frozen = [name for name, value in self.model.named_parameters() if not value.requires_grad]
        return {"numbers": changed, "frozen": frozen}

    def restore(self, state: dict[str, Any]) -> None:
        for key, owner in self.owners.items():
            now, saved = _numbers(owner), state["numbers"].get(key, {})
            for name, first in self.at_first[key].items():
                if name in now and not _same(now[name], value := saved.get(name, first)):
                    vars(owner)[name] = value  # as it was read: a property of that name may have no setter
        frozen = set(state["frozen"])
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad != (name not in frozen):
                parameter.requires_grad_(name not in frozen)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)
