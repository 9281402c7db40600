"""What a checkpoint can contain, so that a later start gets back exactly what was saved."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from jobs.engine import numpy_data, safe_load
from jobs.run.errors import UserError

PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size))
"""Immutable types that are stored as they are."""

MAPPINGS = (dict, OrderedDict, Counter)

Path = tuple[Any, ...]


def check(tree: Any, where: str, path: Path = ()) -> None:
    """Raises UserError, naming the place below `where`, for a part of `tree` that could not be loaded again:
    that must be known at the first save, not when all checkpoints turn out to be useless.

    For other than the usual types, it tries the loader itself.
    """
    kind = type(tree)
    if is_usual(tree):
        return
    if kind in MAPPINGS:
        for key, value in tree.items():
            check(key, where, path)
            check(value, where, (*path, key))
    elif kind in (list, tuple):
        for number, value in enumerate(tree):
            check(value, where, (*path, number))
    elif kind in (set, frozenset):
        for value in tree:
            check(value, where, path)
    elif not _comes_back(tree):
        place = where + "".join(f"[{key!r}]" for key in path)
        raise UserError(
            f"{place}: {kind.__module__}.{kind.__qualname__} cannot be loaded back from a checkpoint: "
            f"give {_instead(tree)} instead, and rebuild it from that when loading"
        )


def is_usual(value: Any) -> bool:
    """Whether a value is a tensor, array or plain value that is loaded back unchanged."""
    return (type(value) in PLAIN and not _is_huge(value)) or _is_array(value)


def _is_huge(value: Any) -> bool:
    """Whether a value is an int with more bytes than weights_only can read (pickle's LONG1)."""
    return type(value) is int and value.bit_length() >= 8 * 255


def _is_array(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        usual = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
        return usual and not value.is_quantized and not vars(value)
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return value.dtype.kind in numpy_data.KINDS
    return False


def _comes_back(value: Any) -> bool:
    try:
        return type(safe_load.round_trip(value)) is type(value)
    except Exception:
        # Pickling somebody's object may raise anything.
        return False


def _instead(value: Any) -> str:
    if callable(getattr(value, "state_dict", None)):
        return "its .state_dict()"
    if isinstance(value, (str, os.PathLike)):
        return "str(…)"
    if isinstance(value, Mapping):
        return "dict(…)"
    if isinstance(value, Iterable):
        return "list(…)"
    return "tensors, NumPy arrays, numbers, text, lists, tuples, sets or dicts"
