"""How batches get from a DataLoader's workers to the trainer: through shared memory that is reused.

torch creates a new file in shared memory for every tensor of a batch, whose descriptor the trainer fetches
over a socket (https://docs.pytorch.org/docs/stable/multiprocessing.html): for every sample, the kernel zeroes
and maps megabytes. Here a loader has some buffers, created before its workers are forked. A worker puts the
tensors of a batch side by side into a free one; the trainer uses them in place, and the buffer is free again
when the last of them is gone. (So torch does not regard them as shared memory: `is_shared()` is False.)
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import multiprocessing
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import get_worker_info

ALIGNMENT = 64
"""In bytes: a cache line, and no tensor element is larger."""
BUFFER = 64 << 20
"""Bytes per buffer; only what batches fill takes memory. A larger batch is delivered as torch does it."""
MORE = 4
"""Buffers in addition to those for prefetched batches: one for the trainer's, one for the batch before, which
may not be known to be gone yet, and two for a loop that keeps some. If none is free, a batch is delivered as
torch does it."""
PATIENCE = 1.0
"""Seconds to wait for another worker that is searching for a buffer; it may have died."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT, LARGEST = 1 << 30, 32 << 20
"""Bytes of free memory that a worker keeps, and of the largest array that may be part of it."""

_starting = threading.RLock()
_forks = threading.local()
"""`_forks.workers` is set while this thread starts an iterator's workers."""


def through_buffers(loader: Any) -> None:
    """Makes the workers of a DataLoader, before they are started, use buffers and keep their memory. Workers
    that are not forked (`multiprocessing_context`) deliver as torch does it."""
    if isinstance(loader.collate_fn, Packs):
        return
    packs = loader.collate_fn = Packs(loader.collate_fn)
    loader.worker_init_fn = KeepsMemory(loader.worker_init_fn)
    make = loader._get_iterator

    def make_with_buffers() -> Any:
        context = loader.multiprocessing_context or multiprocessing
        with _starting:
            if loader.num_workers and context.get_start_method() == "fork":
                with contextlib.suppress(OSError):  # a limit on the address space
                    packs.buffers = Buffers(loader.num_workers * loader.prefetch_factor + MORE)
            _forks.workers = True
            try:
                iterator = make()
                iterator.buffers = packs.buffers
            finally:
                _forks.workers = False
                packs.buffers = None  # the workers have them, and the iterator
        return iterator

    loader._get_iterator = make_with_buffers


class KeepsMemory:
    """A `worker_init_fn`: the worker keeps the memory of a sample's arrays for the next sample.

    Otherwise the C library returns it to the kernel, which zeroes every page when it is requested again; that
    is a tenth of a worker's time.
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
    """The buffers of one iterator, and a byte for each that says whether it is in use: workers set it, the
    trainer clears it."""

    def __init__(self, count: int) -> None:
        self.number = id(self)
        self.in_use = mmap.mmap(-1, count)
        self.memory = [mmap.mmap(-1, BUFFER) for _ in range(count)]
        self.lock = multiprocessing.get_context("fork").Lock()
        self.delivered: dict[int, list[StorageWeakRef]] = {}
        _known[self.number] = self

    def take(self) -> int | None:
        """In a worker: takes a free buffer and returns its index; None if there is none."""
        if not self.lock.acquire(timeout=PATIENCE):
            return None
        try:
            index = self.in_use.find(b"\0", 0, len(self.memory))
            if index < 0:
                return None
            self.in_use[index] = 1
            return index
        finally:
            self.lock.release()

    def receive(self, index: int, places: list[Place]) -> list[torch.Tensor]:
        """In the trainer: the tensors in a buffer, which stays in use until all their storages are gone."""
        # A copy: another thread may be forking right now (_leave_to_child).
        for gone in [other for other, held in list(self.delivered.items()) if _all_gone(held)]:
            self.delivered.pop(gone, None)
            self.in_use[gone] = 0
        tensors = [place.tensor(self.memory[index]) for place in places]
        self.delivered[index] = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return tensors


def _all_gone(storages: list[StorageWeakRef]) -> bool:
    return all(storage.expired() for storage in storages)


_known: weakref.WeakValueDictionary[int, Buffers] = weakref.WeakValueDictionary()
"""In the trainer: the buffers by number."""


def _leave_to_child() -> None:
    """Before a fork, gives up the buffers that hold batches, because the child sees them, too. (Workers are
    children as well, but never look at a batch.)"""
    if getattr(_forks, "workers", False):
        return
    for buffers in list(_known.values()):
        for index, held in list(buffers.delivered.items()):
            if not _all_gone(held):
                buffers.delivered.pop(index, None)


os.register_at_fork(before=_leave_to_child)


class Packs:
    """A `collate_fn` that packs the result of another one if a worker is to deliver it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self.buffers: Buffers | None = None

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        return pack(batch, self.buffers) if self.buffers and get_worker_info() else batch


class Place(NamedTuple):
    """Where a tensor is in its buffer, and its type and shape."""

    start: int
    size: int
    """`start` and `size` in bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, memory: mmap.mmap) -> torch.Tensor:
        """Its bytes, as a uint8 tensor."""
        return torch.frombuffer(memory, dtype=torch.uint8, count=self.size, offset=self.start)

    def tensor(self, memory: mmap.mmap) -> torch.Tensor:
        """The tensor, with a storage of its own: operations on that must not touch other tensors."""
        storage = self.of(memory).untyped_storage()
        return torch.empty(0, dtype=self.dtype, device="cpu").set_(storage, 0, self.shape, self.stride)


class Packed(NamedTuple):
    """A packed batch, which is unpickled as the batch itself."""

    where: tuple[int, int] | None
    """The number of the `Buffers`, and the index in them; None without a buffer."""
    places: list[Place]
    rest: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, tuple(self)


def pack(batch: Any, buffers: Buffers) -> Packed:
    """Packs a batch. Raises for what cannot be pickled, which torch reports to the trainer; in the thread
    that sends batches, the error would leave the trainer waiting for ever."""
    stream = io.BytesIO()
    packer = _Packer(stream)
    packer.dump(batch)
    index = buffers.take() if 0 < packer.size <= BUFFER and not packer.overlap else None
    if index is not None:
        for tensor, place in zip(packer.tensors, packer.places, strict=True):
            place.of(buffers.memory[index]).copy_(_bytes(tensor))
        return Packed((buffers.number, index), packer.places, stream.getvalue())
    if packer.tensors:
        stream = io.BytesIO()
        ForkingPickler(stream).dump(batch)
    return Packed(None, [], stream.getvalue())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    start = tensor.storage_offset() * tensor.element_size()
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(
        tensor.untyped_storage(), start, (tensor.nbytes,), (1,)
    )


def _unpack(where: tuple[int, int] | None, places: list[Place], rest: bytes) -> Any:
    tensors = _known[where[0]].receive(where[1], places) if where else []
    return _Unpacker(io.BytesIO(rest), tensors).load()


class _Packer(ForkingPickler):
    """Pickles everything but plain tensors, to which it assigns places; unusual tensors are left to torch."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.tensors: list[torch.Tensor] = []
        self.places: list[Place] = []
        self.size = 0
        self.overlap = False
        """Whether two tensors share memory, which they would not if delivered separately."""
        self._numbers: dict[int, int] = {}
        self._spans: dict[int, list[tuple[int, int]]] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not torch.Tensor or not _is_plain(value):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
            size = value.nbytes
            self.places.append(Place(self.size, size, value.dtype, tuple(value.shape), value.stride()))
            self.size += -(-size // ALIGNMENT) * ALIGNMENT
            begin, spans = value.data_ptr(), self._spans.setdefault(value.untyped_storage().data_ptr(), [])
            self.overlap |= any(begin < end and start < begin + size for start, end in spans)
            spans.append((begin, begin + size))
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
        and not tensor.is_nested
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and tensor.numel() > 0
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not tensor.is_shared()
    )
