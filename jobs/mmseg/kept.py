"""Saves and restores what a training changes in the user's models and hooks beside the weights.

A model may count its steps in an attribute (for a warm-up of pseudo labels, say), or keep past losses,
prototypes or a bank of features there; a hook may thaw the backbone at some epoch. Without these, training
after a resume would differ. Such values (values.py), wherever they are found (reach.py), and the frozen
parameters are saved with the weights; what has changed and cannot be saved is reported. Also saved: weights
that a model leaves out of its `state_dict` (as adapters do with those of a large frozen network), networks
that it hides, and the state of an optimizer inside another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from jobs.engine import storable
from jobs.mmseg import values
from jobs.mmseg.attributes import KINDS, Attributes
from jobs.mmseg.reach import Reached, data_owners, is_known, remembers
from jobs.mmseg.things import give_state, state_of
from jobs.mmseg.values import memory
from jobs.run.errors import UserError, one_line

CPU = torch.device("cpu")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a model by name, including those that its `state_dict` leaves out."""
    known = dict(model.state_dict())
    return known | _lacking(model, known)


def left_out(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a model's `state_dict` leaves out."""
    return _lacking(model, model.state_dict())


def _lacking(model: torch.nn.Module, known: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in _all(model) if name not in known}


def put_left_out(networks: dict[str, Any], saved: dict[str, dict[str, torch.Tensor]]) -> None:
    """Restores what was `left_out` of each network. Both are by the prefix of its names."""
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
    """Raises UserError if a hook removed or renamed weights in a checkpoint."""
    if gone := [name for name in before if name not in after]:
        raise UserError(
            f"a hook's before_save_checkpoint leaves {len(gone)} weights out of the checkpoint that the "
            f"run resumes from ({gone[0]}, …): remove the hook, and strip the finished run's checkpoint "
            "instead"
        )


def check_names(built: Collection[str], now: Collection[str]) -> None:
    """Raises UserError if a model has other weights than when it was built: a resume builds it so."""
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


def groups(optim_wrappers: list[Any]) -> list[list[int]]:
    """The number of parameters in each group of each optimizer."""
    return [[len(group["params"]) for group in one.optimizer.param_groups] for one in optim_wrappers]


def check_groups(built: list[list[int]], now: list[list[int]]) -> None:
    """Raises UserError if an optimizer has other parameters than when it was built: a resume builds it so."""
    if built != now:
        raise UserError(
            f"an optimizer has groups of {now} parameters, and had {built} when it was built "
            "(add_param_group?), which could not be restored on resume: give it all parameters from the "
            "beginning, and freeze those that are to be trained later (requires_grad)"
        )


def inner(optimizer: Any) -> list[Any]:
    """The optimizers inside another, such as SAM or Lookahead, whose state lacks theirs."""
    found = [optimizer]
    for outer in found:  # they may refer to each other
        for one in vars(outer).values():
            if isinstance(one, torch.optim.Optimizer) and all(one is not other for other in found):
                found.append(one)
    return found[1:]


def load_optimizers(optim_wrapper: Any, wrappers: list[Any], state: Any, of_inner: list[Any]) -> None:
    """Restores the optimizers of `wrappers` and those inside them (`of_inner`). An inner one that shares the
    parameter groups of the outer one, and so its learning rate, does so again."""
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


class Kept(Attributes):
    """The attributes of all modules, and of the user's hooks, optimizers and other objects; objects with a
    state and hidden networks in them; and which parameters train.

    `networks`: by the prefix of their modules' names. `hooks`, `optimizers`: by key. `known`: objects that
    are saved otherwise.
    """

    def __init__(
        self,
        networks: dict[str, Any],
        hooks: Iterable[tuple[str, Any]],
        optimizers: Collection[tuple[str, Any]] = (),
        known: Iterable[Any] = (),
        dataset: Any = None,
    ) -> None:
        self.model = networks[""]
        own = [(key, one) for key, one in optimizers if not is_known(one)]
        own += [(f"hook {key}", one) for key, one in hooks if not (is_known(one) or remembers(one))]
        reached = Reached(networks, own, known)
        self.things = reached.things
        weights = {memory(value) for network in networks.values() for _, value in _all(network)} - {0}
        self.hidden = {
            way: {name: value for name, value in _all(network) if memory(value) not in weights}
            for way, network in reached.hidden.items()
        }
        self.networks = [*networks.values(), *reached.hidden.values()]
        self.weights = weights | {memory(v) for found in self.hidden.values() for v in found.values()} - {0}
        # A network in a hook is treated as any other.
        modules = {key for key, one in reached.owners.items() if isinstance(one, torch.nn.Module)}
        shy = {key for key in reached.owners if key.startswith(("hook ", "class "))} - modules
        super().__init__(reached.owners, self.weights, shy)
        self.wiring = self._wiring()
        self.dataset = Attributes(data_owners(dataset), of_data=True)
        optim_wrappers = [one for _, one in optimizers if hasattr(one, "_accumulative_counts")]
        self.accumulating = {one: one._accumulative_counts for one in optim_wrappers}
        self.handed: dict[str, Any] | None = None
        """The dataset's attributes when the current workers got it."""

    def count_from(self, built: Kept, initialised: dict[str, Any]) -> None:
        """Counts changes from what was `built`, where the initialisation of the weights has changed it, or
        where tensors have come in since: a resume does not initialise."""
        now = built.changed()
        for kind in KINDS:
            for key, found in now[kind].items():
                for name, value in found.items():
                    mine = self.first.get(key, {})
                    if name in mine and (name in initialised[kind].get(key, ()) or values.has_tensors(value)):
                        del mine[name]
                        if name in built.first[key]:
                            mine[name] = built.first[key][name]

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Of the model and of hidden networks."""
        yield from self.model.named_parameters()
        for way, found in self.hidden.items():
            for name, value in found.items():
                if isinstance(value, torch.nn.Parameter):
                    yield f"{way}/{name}", value

    def state(self, large: bool = False) -> dict[str, Any]:
        """What has `changed`, which parameters train, and which modules are not in training mode."""
        trains = {name: value.requires_grad for name, value in self.parameters()}
        modules = ((key, one) for key, one in self.owners.items() if isinstance(one, torch.nn.Module))
        resting = [key for key, one in modules if not one.training]
        return self.changed(large) | {"trains": trains, "resting": resting}

    def changed(self, large: bool = False) -> dict[str, Any]:
        """What has changed since this object was created, and the state of all things."""
        found = self.of_owners(self._wiring() != self.wiring, large)
        dataset = self.dataset.of_owners()
        self.lost |= self.dataset.lost
        handed = None if values.same(self.handed, dataset) else self.handed
        for one, count in self.accumulating.items():
            if one._accumulative_counts != count:
                self.lost["optim_wrapper._accumulative_counts"] = "int"
        things = {}
        for way, thing in self.things.items():
            try:
                things[way] = state_of(thing)
            except Exception:  # whatever somebody's state_dict raises
                self.lost[way] = type(thing).__name__
        own = {"dataset": dataset, "handed": handed, "things": things, "hidden": self.hidden}
        return found | own

    def _wiring(self) -> list[Any]:
        """The modules of the networks, and the number of torch's hooks on each."""
        modules = [one for network in self.networks for one in network.modules()]
        return [(id(one), len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules]

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what was saved, and resets the rest to the beginning. Checkpoints of earlier versions have
        fewer keys."""
        home = next((value.device for value in self.model.parameters()), torch.device("cpu"))
        self.give_owners(state, home)
        for way, thing in self.things.items():
            if way in state.get("things", {}):
                try:
                    give_state(thing, state["things"][way], home)
                except Exception as error:  # whatever somebody's load_state_dict raises
                    print(f"{way} does not take its state back: {one_line(error)}", flush=True)
        with torch.no_grad():
            for way, weights in self.hidden.items():
                saved = state.get("hidden", {}).get(way, {})
                for name, value in weights.items():
                    if name in saved and saved[name].shape == value.shape:
                        value.copy_(saved[name])
        trains = state.get("trains")
        if trains is None:  # an earlier version saved only the model's
            trains = {name: name not in state["frozen"] for name, _ in self.model.named_parameters()}
        for name, parameter in self.parameters():
            if parameter.requires_grad != trains.get(name, parameter.requires_grad):
                parameter.requires_grad_(trains[name])
        self.restore_modes(state, of_model=False)

    def restore_modes(self, state: dict[str, Any], of_model: bool = True) -> None:
        """Restores which modules are in eval mode: `of_model`, only within an epoch, since an epoch begins
        with `train()`; of other networks, at any step."""
        registered = {id(one) for one in self.model.modules()}
        for key, one in self.owners.items():
            if (
                isinstance(one, torch.nn.Module)
                and (id(one) in registered) is of_model
                and "resting" in state
            ):
                one.training = key not in state["resting"]

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients that are left after a step, usually because they are being accumulated."""
        found = {name: one.grad for name, one in self.parameters() if one.grad is not None}
        unusual = {name: one for name, one in found.items() if not storable.is_usual(one)}
        self.lost |= {f"{name}.grad": str(one.layout) for name, one in unusual.items()}
        return {name: one for name, one in found.items() if name not in unusual}

    def give_gradients(self, found: dict[str, torch.Tensor | None]) -> None:
        for name, parameter in self.parameters():
            if (gradient := found.get(name)) is not None:
                parameter.grad = gradient.to(parameter.device, copy=True)

    def restore_dataset(self, state: dict[str, Any], anew: bool) -> None:
        """Restores what hooks changed in the dataset and its transforms. `anew`: the workers start with an
        epoch, after the hooks that run before it."""
        self.dataset.give_owners(state.get("dataset", {}), CPU)
        same_as_now = None if anew else values.copied(self.dataset.of_owners())
        self.handed = state.get("handed") or same_as_now

    def hand_out(self, loader: Any, first: bool) -> Iterator[Any]:
        """Starts loading; `first`: for the first time in this start. Workers get the dataset as it is now. If
        the run resumes within an epoch, they get what they had, without later changes by hooks."""
        if not loader.num_workers or (self.handed is not None and not first and loader.persistent_workers):
            return iter(loader)
        if first and self.handed is not None:
            return self.dataset.while_given(self.handed, lambda: iter(loader))
        self.handed = values.copied(self.dataset.of_owners())
        return iter(loader)

    def workers_end(self, loader: Any) -> None:
        """At the end of an epoch: workers of the next get the dataset as it is then."""
        if not loader.persistent_workers:
            self.handed = None


HEAVY = ("things", "hidden")
"""Parts that are mostly equal on all ranks, and sent only where they differ from rank 0."""


def marks(heavy: dict[str, Any]) -> dict[str, Any]:
    return {kind: {way: values.mark(one) for way, one in of.items()} for kind, of in heavy.items()}


def differing(heavy: dict[str, Any], elsewhere: dict[str, Any]) -> dict[str, Any]:
    """The parts that differ from those of rank 0, whose `marks` are `elsewhere`."""
    return {
        kind: {way: one for way, one in of.items() if values.mark(one) != elsewhere[kind].get(way)}
        for kind, of in heavy.items()
    }


def of_rank(own: dict[str, Any], its: dict[str, Any]) -> dict[str, Any]:
    """What to restore on a rank: rank 0's (`own`), overridden by `its`."""
    if not own:
        return {}  # a checkpoint of an earlier version
    heavy = {kind: own.get(kind, {}) | its.get(kind, {}) for kind in HEAVY}
    return own | its | heavy
