"""A training's schedulers: which state comes from the training, and which from the config."""

from __future__ import annotations

import warnings
from typing import Any

from jobs.engine.snapshots import plain

EVOLVING = {
    "last_step",
    "_global_step",
    "_last_value",
    "base_values",
    "best",
    "num_bad_epochs",
    "cooldown_counter",
}
"""State of a scheduler that comes from the training. The rest comes from the config, which may have been
extended since: mmengine would restore the old `end`, and the learning rate would stay at its minimum."""

PLAIN = (int, float, str, tuple, list, dict)


def flat(schedulers: Any) -> list[Any]:
    groups = schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]
    return [one for group in groups for one in group]


def changed(schedulers: Any, saved: Any, evolved: Any = ()) -> bool:
    """Whether the config of the schedulers has changed since their state was saved, for example because the
    training has been made longer."""
    before = flat(saved)
    return len(before) == len(flat(schedulers)) and any(
        plain(value) != old[key]
        for one, old, own in zip(flat(schedulers), before, of_each(evolved, before), strict=True)
        for key, value in one.state_dict().items()
        if key not in EVOLVING | own and key in old and isinstance(value, PLAIN)
    )


def of_each(evolved: Any, schedulers: list[Any]) -> list[set[str]]:
    """What has `evolved` in each scheduler; empty sets for checkpoints of earlier versions."""
    return [set(keys) for keys in evolved] if len(evolved) == len(schedulers) else [set() for _ in schedulers]


def states(schedulers: Any) -> list[dict[str, Any]]:
    """What may be state in each scheduler, as it is saved."""
    return [
        {key: plain(value) for key, value in one.state_dict().items() if isinstance(value, PLAIN)}
        for one in flat(schedulers)
    ]


def evolved(schedulers: Any, began: list[dict[str, Any]]) -> list[list[str]]:
    """What the training has changed in each scheduler since it `began`, besides what is known to change: a
    user's own one may count its restarts, for example."""
    return [
        [key for key in first if key not in EVOLVING and key in now and repr(now[key]) != repr(first[key])]
        for now, first in zip(states(schedulers), began, strict=True)
    ]


def replay(runner: Any) -> bool:
    """Advances fresh schedulers to the training's current step, as if they had been the same from the start.

    They compute each value from the one before, so a decay that had reached its end would stay there. Returns
    False, without doing anything, for schedulers that depend on validations.
    """
    schedulers, loop = flat(runner.param_schedulers), runner.train_loop
    if any(getattr(one, "need_val_args", False) for one in schedulers):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer has stepped in between
        for done in range(1, loop.iter + 1):
            ends = loop.by_epoch and done % loop.plan.iterations == 0
            for one in schedulers:
                if not one.by_epoch:
                    one.step()
            for one in schedulers if ends else []:
                if one.by_epoch:
                    one.step()
    return True


def restore(schedulers: Any, saved: Any, evolved: Any) -> None:
    """Restores the schedulers' state from the training."""
    before = flat(saved)
    for one, state, own in zip(flat(schedulers), before, of_each(evolved, before), strict=False):
        fresh = one.state_dict()
        one.load_state_dict({k: v for k, v in state.items() if k in EVOLVING | own or k not in fresh})
