"""What ranks tell each other arrives as it was, and of anything else nothing is run."""

from __future__ import annotations

import os
import pickle
import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from jobs.engine import wire
from jobs.run.errors import UserError

VALUE: dict[Any, Any] = {
    "plain": [None, True, -5, 2**63, 1.5, float("inf"), "é\n", b"\x00"],
    "nested": ({"a": (1, [2, (3,)])}, ()),
    4: {1, 2},
    "float64": np.float64(0.1),
    "array": np.arange(6, dtype=">i4").reshape(2, 3),
    "empty": np.empty((0, 3)),
    "words": np.array(["a", "bc"]),
}
TENSORS = {
    str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)
} | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "turned": torch.arange(6.0).reshape(2, 3).T}


def test_values_come_back_as_they_were() -> None:
    back = wire.unpack(wire.pack(VALUE))
    for key in ("plain", "nested", 4):
        assert back[key] == VALUE[key]
    assert (type(back["nested"]), type(back["float64"])) == (tuple, np.float64)
    assert back["float64"] == VALUE["float64"]
    for key in ("array", "empty", "words"):
        assert (back[key].dtype, back[key].shape) == (VALUE[key].dtype, VALUE[key].shape)
        assert np.array_equal(back[key], VALUE[key])


def test_tensors_come_back_as_they_were() -> None:
    back = wire.unpack(wire.pack(TENSORS))
    for key, tensor in TENSORS.items():
        assert back[key].dtype == tensor.dtype
        assert torch.equal(back[key], tensor)
    back["torch.int64"] += 1  # its memory is its own
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not wire.unpack(wire.pack(parameter)).requires_grad


class Code:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("echo ran > ran",)


@pytest.mark.parametrize(
    "value",
    [
        Code(),
        [Code()],
        {"a": (Code(),)},
        np.array([Code()], dtype=object),
        {Code(): 1},
        2**70,
        lambda: 0,
        torch.eye(2).to_sparse(),
        *([torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)] if hasattr(torch, "qint8") else []),
    ],
)
def test_what_cannot_be_sent_is_the_users_to_mend(value: Any) -> None:
    with pytest.raises(UserError):
        wire.pack(value)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Code()),
        b"",
        b"\xc1",
        wire.pack([1]) + b"x",
        b"\x91" * 100_000 + b"\x01",
        msgspec.msgpack.encode(msgspec.msgpack.Ext(99, b"")),
        *(
            msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content)))
            for code, content in (
                (wire._TENSOR, ["float32", [2**40], b""]),
                (wire._TENSOR, ["float32", [-1, -1], b"1234"]),
                (wire._TENSOR, ["float32", [2], b"1234"]),
                (wire._TENSOR, ["system", [1], b"1234"]),
                (wire._TENSOR, "float32"),
                (wire._ARRAY, ["O", [1], bytes(8)]),
                (wire._ARRAY, ["O,i4", [1], bytes(12)]),
                (wire._ARRAY, ["O", [0], b""]),
                (wire._ARRAY, ["V4", [1], bytes(4)]),
                (wire._ARRAY, ["", [1], b"1"]),
                (wire._NUMBER, ["<f8", [1, 2], b"1"]),
                (wire._SET, [[1]]),
                (wire._TUPLE, 5),
            )
        ),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_was_not_packed_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.unpack(data)


def test_damaged_bytes_are_another_value_or_refused() -> None:
    whole = wire.pack(VALUE | TENSORS)
    rng = random.Random(13)
    refused = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            wire.unpack(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        except wire.WireError:
            refused += 1
    assert 1000 < refused < 3000
