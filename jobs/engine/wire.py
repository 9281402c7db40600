"""Serializes what ranks exchange: whoever can write to one of their sockets may send a false value, but
nothing that executes code when it is read, as a pickle does.

The format is msgpack (msgspec), with extensions for tuples, sets, tensors, arrays and NumPy's numbers. A
tensor comes back on the CPU, without gradient.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import torch

from jobs.run.errors import UserError

_TUPLE, _SET, _TENSOR, _ARRAY, _NUMBER = range(1, 6)
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for name in dir(torch)
    if isinstance(dtype := getattr(torch, name), torch.dtype) and not name.startswith(("q", "bits"))
}
_KINDS = "biufcSUmM"
"""NumPy's type kinds; not objects, which would need a pickle."""


class WireError(ValueError):
    """The bytes are not a valid value."""


def pack(value: Any) -> bytearray:
    """`value` as bytes. Raises UserError if it contains a type that cannot be sent."""
    packed = bytearray()
    try:
        msgspec.msgpack.Encoder().encode_into(_plain(value), packed)
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise UserError(f"what one rank tells the others cannot be sent: {error}") from None
    return packed


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """The value in `data`. Raises WireError if that was not made by `pack`."""
    try:
        return msgspec.msgpack.decode(data, ext_hook=_extension)
    except (ValueError, TypeError, RecursionError, RuntimeError, OverflowError) as error:
        raise WireError(f"what came from another rank cannot be read: {error}") from None


def _plain(value: Any) -> Any:
    """`value`, converted to types that msgpack supports."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor):
        return _tensor(value.detach())
    if isinstance(value, np.generic | np.ndarray):
        return _array(value)
    if isinstance(value, tuple):
        return _extended(_TUPLE, [_plain(one) for one in value])
    if isinstance(value, set | frozenset):
        return _extended(_SET, [_plain(one) for one in value])
    raise UserError(
        f"what one rank tells the others (a metric's results, say) holds a {kind.__module__}."
        f"{kind.__qualname__}; only numbers, strings, tensors, arrays, and lists, tuples, sets and "
        "dictionaries of these can be sent"
    )


def _key(key: Any) -> Any:
    if type(key) in (str, int, bool, float, bytes) or key is None:
        return key
    if isinstance(key, np.generic):
        return key.item()
    raise UserError(f"a dictionary with a key of type {type(key).__name__} cannot be sent to other ranks")


def _extended(code: int, content: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content))


def _tensor(tensor: torch.Tensor) -> msgspec.msgpack.Ext:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError("a sparse or quantised tensor cannot be sent to other ranks")
    flat = tensor.cpu().contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    name = str(tensor.dtype).removeprefix("torch.")
    return _extended(_TENSOR, [name, list(tensor.shape), content])


def _array(value: np.generic | np.ndarray[Any, Any]) -> msgspec.msgpack.Ext:
    array = np.asarray(value)
    if array.dtype.kind not in _KINDS:
        raise UserError(f"an array of {array.dtype} cannot be sent to other ranks")
    code = _NUMBER if isinstance(value, np.generic) else _ARRAY
    return _extended(code, [array.dtype.str, list(array.shape), array.tobytes()])


def _extension(code: int, data: memoryview) -> Any:
    if code == _TENSOR:
        return _read_tensor(*_described(data))
    if code in (_ARRAY, _NUMBER):
        array = _read_array(*_described(data))
        return array if code == _ARRAY else array[()]
    if code not in (_TUPLE, _SET):
        raise WireError(f"unknown extension {code}")
    parts = msgspec.msgpack.decode(data, type=list[Any], ext_hook=_extension)
    return tuple(parts) if code == _TUPLE else set(parts)


def _described(data: memoryview) -> tuple[str, list[int], bytes]:
    return msgspec.msgpack.decode(data, type=tuple[str, list[int], bytes])


def _read_tensor(name: str, shape: list[int], content: bytes) -> torch.Tensor:
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise WireError(f"unknown type of tensor {name!r}")
    _check_size(shape, dtype.itemsize, content)
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(dtype).reshape(shape)


def _read_array(name: str, shape: list[int], content: bytes) -> np.ndarray[Any, Any]:
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS:
        raise WireError(f"unknown type of array {name!r}")
    _check_size(shape, dtype.itemsize, content)
    return np.frombuffer(content, dtype).reshape(shape).copy() if content else np.empty(shape, dtype)


def _check_size(shape: list[int], itemsize: int, content: bytes) -> None:
    if any(length < 0 for length in shape) or math.prod(shape) * itemsize != len(content):
        raise WireError(f"{len(content)} bytes do not make an array of {shape}")
