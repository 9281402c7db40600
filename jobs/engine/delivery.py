"""How batches come from a DataLoader's workers to the trainer: each in one piece of shared memory.

torch gives every tensor of a batch a file in shared memory, whose descriptor the trainer fetches over a
socket (https://docs.pytorch.org/docs/stable/multiprocessing.html); a batch of mmseg's has two a sample. Here
a worker lays all tensors of a batch side by side in one such file, and the trainer has them as they were.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

ALIGNMENT = 64
"""Bytes: a cache line, and no element of a tensor is larger."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s."""
KEPT, LARGEST = 1 << 30, 32 << 20
"""Bytes that a worker keeps when they are free, and of the largest array that may be among them."""


def in_one_piece(loader: Any) -> None:
    """Makes the workers of a DataLoader, before they are started, deliver so, and keep their memory."""
    loader.collate_fn = OnePiece(loader.collate_fn)
    loader.worker_init_fn = KeepsMemory(loader.worker_init_fn)


class KeepsMemory:
    """A `worker_init_fn`: what a sample's arrays took stays with the worker for the next sample's.

    The C library would give it back to the kernel, which fills every page with zeros when it is asked for
    again; that is a tenth of a worker's time.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # not every C library has it
            mallopt(M_TRIM_THRESHOLD, KEPT)
            mallopt(M_MMAP_THRESHOLD, LARGEST)
        if self.then:
            self.then(worker)


class OnePiece:
    """A `collate_fn`: what another makes of samples, packed where a worker is to deliver it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        return batch if get_worker_info() is None else Parcel(batch)


class Place(NamedTuple):
    """Where a tensor lies in the piece, and what it is."""

    start: int
    """Bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, piece: torch.UntypedStorage) -> torch.Tensor:
        """The tensor. (Not a view of one that all share: autograd would count a change of one as a change of
        all.)"""
        tensor = torch.empty(0, dtype=self.dtype)
        return tensor.set_(piece, self.start // self.dtype.itemsize, self.shape, self.stride)


class Parcel:
    """A batch in one piece, unpickled as the batch. What cannot be pickled is an error here, which torch
    brings to the trainer; in the thread that sends batches it would leave the trainer waiting for ever."""

    def __init__(self, batch: Any) -> None:
        stream = io.BytesIO()
        packer = _Packer(stream)
        packer.dump(batch)
        self.piece = torch.UntypedStorage._new_shared(max(packer.size, 1))
        for tensor, place in zip(packer.tensors, packer.places, strict=True):
            place.of(self.piece).copy_(tensor)
        self.places, self.rest = packer.places, stream.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self.piece, self.places, self.rest)


def _unpack(piece: torch.UntypedStorage, places: list[Place], rest: bytes) -> Any:
    return _Unpacker(io.BytesIO(rest), [place.of(piece) for place in places]).load()


class _Packer(ForkingPickler):
    """Pickles all but the tensors, for which it finds places. Those of an unusual kind are left to torch."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self.places: list[Place] = []
        self.size = 0
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not torch.Tensor or not _is_plain(value):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
            self.places.append(Place(self.size, value.dtype, tuple(value.shape), value.stride()))
            size = value.numel() * value.element_size()
            self.size += -(-size // ALIGNMENT) * ALIGNMENT
        return self._numbers[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(stream)
        self.tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self.tensors[number]


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and tensor.numel() > 0
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not tensor.is_shared()
    )
