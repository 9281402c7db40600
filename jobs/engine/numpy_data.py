"""Reads NumPy's arrays and numbers from pickles without NumPy's own unpickling.

A crafted dtype makes that access memory outside the array (a negative size, a field of objects in bytes
chosen by the file). Here a dtype has to be a plain one, and an array has exactly as many bytes as its shape
and dtype say. The names and arguments are those of numpy.dtype.__reduce__ and numpy.ndarray.__reduce__ with
pickle protocol 2, which torch uses.
"""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import numpy as np

KINDS = "biufcSU"
"""Allowed values of np.dtype.kind."""

_CODE = re.compile(r"[biufc][0-9]{1,2}|[SU][0-9]{1,9}")


class Dtype:
    """Stands for `numpy.dtype` in a file; accepts only plain ones."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:  # noqa: ARG002
        _expect(isinstance(code, str) and _CODE.fullmatch(code) is not None, f"a dtype {code!r:.40}")
        try:
            self.value: np.dtype[Any] = np.dtype(code)
        except (TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"the file has an invalid dtype: {error}") from None

    def __setstate__(self, state: Any) -> None:
        _expect(isinstance(state, tuple) and len(state) >= 7, "a dtype's state")
        _, order, subarray, names, fields, size, _, *_ = state
        _expect(subarray is None and names is None and fields is None, "a dtype of several parts")
        _expect(
            order in ("<", ">", "|", "=") and size in (-1, self.value.itemsize), "a dtype's size or order"
        )
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class Array:
    """Stands for `numpy.ndarray` in a file; `made` replaces it with the array."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _expect(isinstance(state, tuple) and len(state) == 5, "an array's state")
        _, shape, dtype, by_columns, data = state
        plain = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        _expect(plain and type(dtype) is Dtype and isinstance(data, bytes), "an array's parts")
        self.value = _array(shape, dtype.value, data, "F" if by_columns else "C")


def reconstruct(kind: Any, shape: Any, code: Any) -> Array:  # noqa: ARG001
    """numpy's `_reconstruct`: an array that gets its state later."""
    _expect(kind is Array, "an array of another class")
    return Array()


def scalar(dtype: Any, data: Any = b"") -> Any:
    """numpy's `scalar`."""
    _expect(type(dtype) is Dtype and isinstance(data, bytes), "a number")
    return _array((), dtype.value, data, "C")[()]


def no_bytes() -> bytes:
    """The call with which protocol 2 writes b""."""
    return b""


def made(tree: Any, holding: tuple[type, ...]) -> Any:
    """A file's content with its arrays filled in. Lists, dicts and the attributes of instances of `holding`
    are changed in place."""
    return _made(tree, holding, set())


def _made(tree: Any, holding: tuple[type, ...], seen: set[int]) -> Any:
    kind = type(tree)
    if kind is Array:
        return tree.value
    if kind is tuple:
        parts = tuple(_made(part, holding, seen) for part in tree)
        return parts if any(new is not old for new, old in zip(parts, tree, strict=True)) else tree
    inner = tree if isinstance(tree, (dict, list)) else None
    if kind in holding and inner is None:
        inner = getattr(tree, "__dict__", None)
    if inner is None or id(tree) in seen:  # it may contain itself
        return tree
    seen.add(id(tree))
    for key, value in list(enumerate(inner) if isinstance(inner, list) else inner.items()):
        if (new := _made(value, holding, seen)) is not value:
            inner[key] = new
    return tree


def _array(shape: tuple[int, ...], dtype: np.dtype[Any], data: bytes, order: Any) -> np.ndarray[Any, Any]:
    _expect(math.prod(shape) * dtype.itemsize == len(data) and len(shape) <= 32, "an array's size")
    empty = np.zeros(shape, dtype, order)
    if data:
        # A view of its memory as bytes, in memory order.
        empty.reshape(-1, order="A").view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    return empty


def _expect(right: bool, what: str) -> None:
    if not right:
        raise pickle.UnpicklingError(f"the file has {what} as NumPy does not write it: no plain checkpoint")
