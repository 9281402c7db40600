"""How batches come from a DataLoader's workers to the trainer: through memory that is used again and again.

torch gives every tensor of a batch a new file in shared memory, whose descriptor the trainer fetches over a
socket (https://docs.pytorch.org/docs/stable/multiprocessing.html): the kernel fills megabytes with zeros, and
maps them, for every sample. Here a loader has some buffers, made before its workers are forked. A worker lays
the tensors of a batch side by side in one that is free; the trainer has them where they lie, and the buffer
is free again when the last of them is gone. (So they are not shared memory to torch: `is_shared()` is False.)
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
"""Bytes: a cache line, and no element of a tensor is larger."""
BUFFER = 64 << 20
"""Bytes of a buffer, of which only what batches fill takes memory. A larger batch comes as torch has it."""
MORE = 4
"""Buffers beside those for the batches that torch asks for ahead: for the trainer's, for the one before, of
which it is not yet known that it is gone, and two for a loop that keeps some. A batch that finds none free
comes as torch has it."""
PATIENCE = 1.0
"""Seconds to wait for another worker that is looking for a buffer; it may have died."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s."""
KEPT, LARGEST = 1 << 30, 32 << 20
"""Bytes that a worker keeps when they are free, and of the largest array that may be among them."""

_starting = threading.RLock()
_forks = threading.local()
"""`_forks.workers`: this thread starts an iterator's workers."""


def through_buffers(loader: Any) -> None:
    """Makes the workers of a DataLoader, before they are started, deliver so, and keep their memory. Those
    that are not forked (`multiprocessing_context`) deliver as torch has it."""
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
    """The buffers of one iterator, and a byte for each that says whether it is in use: a worker sets it, the
    trainer clears it."""

    def __init__(self, count: int) -> None:
        self.number = id(self)
        self.in_use = mmap.mmap(-1, count)
        self.memory = [mmap.mmap(-1, BUFFER) for _ in range(count)]
        self.lock = multiprocessing.get_context("fork").Lock()
        self.delivered: dict[int, list[StorageWeakRef]] = {}
        _known[self.number] = self

    def take(self) -> int | None:
        """In a worker: a buffer that was free; None if there is none."""
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
        """In the trainer: the tensors in a buffer, which is in use until the last one's memory is."""
        # A copy: another thread may fork just now (_leave_to_child).
        for gone in [other for other, held in list(self.delivered.items()) if _all_gone(held)]:
            self.delivered.pop(gone, None)
            self.in_use[gone] = 0
        tensors = [place.tensor(self.memory[index]) for place in places]
        self.delivered[index] = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return tensors


def _all_gone(storages: list[StorageWeakRef]) -> bool:
    return all(storage.expired() for storage in storages)


_known: weakref.WeakValueDictionary[int, Buffers] = weakref.WeakValueDictionary()
"""In the trainer, by their number."""


def _leave_to_child() -> None:
    """A child that is forked sees what is in the buffers then; those are not used again. (Workers are
    children, too, but look at no batch.)"""
    if getattr(_forks, "workers", False):
        return
    for buffers in list(_known.values()):
        for index, held in list(buffers.delivered.items()):
            if not _all_gone(held):
                buffers.delivered.pop(index, None)


os.register_at_fork(before=_leave_to_child)


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
    size: int
    """Both in bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, memory: mmap.mmap) -> torch.Tensor:
        """Its bytes."""
        return torch.frombuffer(memory, dtype=torch.uint8, count=self.size, offset=self.start)

    def tensor(self, memory: mmap.mmap) -> torch.Tensor:
        """It, in a storage of its own: what is done with that must not touch another's."""
        storage = self.of(memory).untyped_storage()
        return torch.empty(0, dtype=self.dtype, device="cpu").set_(storage, 0, self.shape, self.stride)


class Packed(NamedTuple):
    """A batch that is unpickled as the batch."""

    where: tuple[int, int] | None
    """The number of the buffers, and which of them."""
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
    """Pickles all but the tensors, for which it finds places. Those of an unusual kind are left to torch."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.tensors: list[torch.Tensor] = []
        self.places: list[Place] = []
        self.size = 0
        self.overlap = False
        """Two tensors share memory, as apart they would not."""
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
