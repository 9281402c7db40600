"""Saves and restores objects in attributes that have a state: optimizers, scalers, random generators."""

from __future__ import annotations

import random
import types
from typing import Any

import numpy as np
import torch

from jobs.mmseg.values import Decoder, Encoder

GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)


def is_generator(value: Any) -> bool:
    # The global generators are seeded at each step.
    shared = (getattr(random, "_inst", None), np.random.mtrand._rand, torch.default_generator)
    return isinstance(value, GENERATORS) and all(value is not one for one in shared)


def has_state(value: Any) -> bool:
    """Whether its state can be read and set: an optimizer, a scaler, a generator."""
    if isinstance(value, (type, types.ModuleType, torch.utils.data.DataLoader)):
        return False
    kind = type(value)
    return is_generator(value) or (hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict"))


def state_of(thing: Any) -> Any:
    """Raises Unholdable."""
    if isinstance(thing, random.Random):
        return Encoder()(thing.getstate())
    if isinstance(thing, np.random.RandomState):
        return _in_digits(thing.get_state(legacy=False))
    if isinstance(thing, np.random.Generator):
        return _in_digits(thing.bit_generator.state)
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    return Encoder()(thing.state_dict())


def give_state(thing: Any, saved: Any, home: torch.device) -> None:
    found = Decoder(home)(saved)
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
    """128-bit integers become text: see `is_number`."""
    if isinstance(state, dict):
        return {key: _in_digits(value) for key, value in state.items()}
    return f"#{state}" if type(state) is int else Encoder()(state)


def _from_digits(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _from_digits(value) for key, value in state.items()}
    return int(state[1:]) if type(state) is str and state.startswith("#") else state
