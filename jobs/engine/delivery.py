"""How batches come from a DataLoader's workers to the trainer: through memory that is used again and again.

torch gives every tensor of a batch a new file in shared memory, whose descriptor the trainer fetches over a
socket (https://docs.pytorch.org/docs/stable/multiprocessing.html): the kernel fills megabytes with zeros, and
maps them, for every sample. Here a loader has some buffers, made before its workers are forked. A worker lays
the tensors of a batch side by side in one that is free; the trainer has them where they lie, and the buffer
is free again when the last of them is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import multiprocessing
import pickle
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import get_worker_info

ALIGNMENT = 64
"""Bytes: a cache line, and no element of a tensor is larger."""
BUFFER = 64 << 20
"""Bytes of a buffer, of which only what batches fill takes memory. A larger batch gets memory of its own."""
MORE = 4
"""Buffers beside those for the batches that torch asks for ahead: for the trainer's, for the one before, of
which it is not yet known that it is gone, and two for a loop that keeps some. A batch that finds none free
gets memory of its own."""
PATIENCE = 1.0
"""Seconds to wait for another worker that is looking for a buffer; it may have died."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s."""
KEPT, LARGEST = 1 << 30, 32 << 20
"""Bytes that a worker keeps when they are free, and of the largest array that may be among them."""


def through_buffers(loader: Any) -> None:
    """Makes the workers of a DataLoader, before they are started, deliver so, and keep their memory. Those
    that are not forked (`multiprocessing_context`) deliver as torch has it."""
    packs = loader.collate_fn = Packs(loader.collate_fn)
    loader.worker_init_fn = KeepsMemory(loader.worker_init_fn)
    make = loader._get_iterator

    def make_with_buffers() -> Any:
        context = loader.multiprocessing_context or multiprocessing
        if loader.num_workers and context.get_start_method() == "fork":
            with contextlib.suppress(OSError):  # a limit on the address space
                packs.buffers = Buffers(loader.num_workers * loader.prefetch_factor + MORE)
        try:
            iterator = make()
            iterator.buffers = packs.buffers
        finally:
            packs.buffers = None  # the workers have them, and the iterator, with which they go
        return iterator

    loader._get_iterator = make_with_buffers


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


class Buffers:
    """The buffers of one iterator, behind a byte for each that says whether it is in use: a worker sets it,
    the trainer clears it."""

    def __init__(self, count: int) -> None:
        self.number, self.count = id(self), count
        self.head = -(-count // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, self.head + count * BUFFER)
        self.lock = multiprocessing.get_context("fork").Lock()
        self.delivered: dict[int, StorageWeakRef] = {}
        _known[self.number] = self

    def take(self) -> int | None:
        """In a worker: a buffer that was free; None if there is none."""
        if not self.lock.acquire(timeout=PATIENCE):
            return None
        try:
            index = self.memory.find(b"\0", 0, self.count)
            if index < 0:
                return None
            self.memory[index] = 1
            return index
        finally:
            self.lock.release()

    def receive(self, index: int) -> torch.UntypedStorage:
        """In the trainer: what has come in a buffer, which is in use until the last tensor in it is gone."""
        for gone in [other for other, storage in self.delivered.items() if storage.expired()]:
            del self.delivered[gone]
            self.memory[gone] = 0
        storage = self.storage(index)
        self.delivered[index] = StorageWeakRef(storage)
        return storage

    def storage(self, index: int) -> torch.UntypedStorage:
        offset = self.head + index * BUFFER
        return torch.frombuffer(self.memory, dtype=torch.uint8, count=BUFFER, offset=offset).untyped_storage()


_known: weakref.WeakValueDictionary[int, Buffers] = weakref.WeakValueDictionary()
"""In the trainer, by their number."""


class Packs:
    """A `collate_fn`: what another makes of samples, packed where a worker is to deliver it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self.buffers: Buffers | None = None

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        return pack(batch, self.buffers) if self.buffers and get_worker_info() else batch


class Place(NamedTuple):
    """Where a tensor lies in its buffer, and what it is."""

    start: int
    """Bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor. (Not a view of one that all share: autograd would count a change of one as a change of
        all.)"""
        tensor = torch.empty(0, dtype=self.dtype)
        return tensor.set_(storage, self.start // self.dtype.itemsize, self.shape, self.stride)


class Packed(NamedTuple):
    """A batch in shared memory; it is unpickled as the batch."""

    where: tuple[int, int] | torch.UntypedStorage
    """(number of the buffers, which of them), or memory of its own."""
    places: list[Place]
    rest: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, tuple(self)


def pack(batch: Any, buffers: Buffers) -> Packed:
    """What cannot be pickled is an error here, which torch brings to the trainer. In the thread that sends
    batches it would leave the trainer waiting for ever."""
    stream = io.BytesIO()
    packer = _Packer(stream)
    packer.dump(batch)
    where: tuple[int, int] | torch.UntypedStorage
    index = buffers.take() if 0 < packer.size <= BUFFER else None
    if index is not None:
        where, storage = (buffers.number, index), buffers.storage(index)
    else:
        where = storage = torch.UntypedStorage._new_shared(max(packer.size, 1))
    for tensor, place in zip(packer.tensors, packer.places, strict=True):
        place.of(storage).copy_(tensor)
    return Packed(where, packer.places, stream.getvalue())


def _unpack(where: tuple[int, int] | torch.UntypedStorage, places: list[Place], rest: bytes) -> Any:
    storage = _known[where[0]].receive(where[1]) if isinstance(where, tuple) else where
    return _Unpacker(io.BytesIO(rest), [place.of(storage) for place in places]).load()


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
