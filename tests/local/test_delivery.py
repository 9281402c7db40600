"""Batches come to the trainer through buffers as torch itself would bring them, and stay as they came."""

from __future__ import annotations

import gc
import io
import itertools
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.multiprocessing import reductions
from torch.utils.data import DataLoader, Dataset, default_collate

from jobs.engine import delivery
from tests.support.tiny import ROOT


class Samples(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any], count: int = 6) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def loading(
    make: Callable[[int], Any], count: int = 6, *, batch: int | None = 2, ours: bool = True, **options: Any
) -> DataLoader[Any]:
    options = {"num_workers": 1, "collate_fn": pseudo_collate} | options
    loader = DataLoader(Samples(make, count), batch, timeout=60 if options["num_workers"] else 0, **options)
    if ours:
        delivery.through_buffers(loader)
    return loader


def batches(
    make: Callable[[int], Any],
    collate: Callable[[Any], Any] = pseudo_collate,
    ours: bool = True,
    workers: int = 2,
) -> list[Any]:
    return list(loading(make, ours=ours, num_workers=workers, collate_fn=collate))


def of_segmentation(number: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(number)
    label = torch.randint(0, 21, (1, 33, 17 + number), generator=draw)
    sample = SegDataSample(metainfo={"img_path": f"{number}.jpg", "scale_factor": (0.5, 0.25)})
    sample.gt_sem_seg = PixelData(data=label)
    image = torch.randint(0, 256, (3, 33, 17 + number), generator=draw, dtype=torch.uint8)
    return {"inputs": image, "data_samples": sample}


def of_all_kinds(number: int) -> list[Any]:
    draw = torch.Generator().manual_seed(number)
    plain = torch.rand((2, 3, 4, 5), generator=draw)
    return [
        plain,
        plain,  # the same once more
        plain.transpose(0, 3),
        plain.contiguous(memory_format=torch.channels_last),
        plain[1:],
        plain.bfloat16(),
        plain.to(torch.complex64).conj(),
        plain > 0.5,
        torch.tensor(number),
        torch.empty(0, 3, dtype=torch.float64),
        torch.nn.Parameter(plain.clone()),
        plain.clone().share_memory_(),
        np.frombuffer(b"bytes that are read-only", np.uint8),
        {"array": plain.numpy()[:, 1].copy(), "text": "täxt", "none": None, "number": np.float32(number)},
    ]


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, SegDataSample):
        return [value.gt_sem_seg.data]
    if isinstance(value, (list, tuple, dict)):
        return [
            one for part in (value.values() if isinstance(value, dict) else value) for one in tensors(part)
        ]
    return []


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.stride(), a.requires_grad) == (
            b.dtype,
            b.shape,
            b.stride(),
            b.requires_grad,
        )
        assert torch.equal(a, b)
    elif isinstance(a, SegDataSample):
        assert a.metainfo == b.metainfo
        same(a.gt_sem_seg.data, b.gt_sem_seg.data)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.flags.writeable) == (b.dtype, b.flags.writeable)
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [of_segmentation, of_all_kinds])
def test_a_batch_is_what_torch_brings(make: Callable[[int], Any], workers: int) -> None:
    same(batches(make, workers=workers), batches(make, ours=False, workers=workers))


def test_of_torchs_own_collating() -> None:
    """Which puts every tensor of a batch into shared memory of its own."""

    def make(number: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 5), number), number

    same(batches(make, default_collate), batches(make, default_collate, ours=False))


def test_tensors_lie_side_by_side() -> None:
    for batch in batches(of_segmentation):
        found = sorted(tensors(batch), key=torch.Tensor.data_ptr)
        assert len(found) == 4
        for one, following in itertools.pairwise(found):
            assert 0 <= following.data_ptr() - one.data_ptr() - one.nbytes < delivery.ALIGNMENT


def test_the_same_tensor_stays_one() -> None:
    for batch in batches(of_all_kinds, collate=lambda samples: samples):
        for sample in batch:
            assert sample[0] is sample[1]


def test_a_change_of_one_is_none_of_another() -> None:
    batch = batches(lambda number: torch.full((4,), float(number + 1)))[0]
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * batch[0]).sum()
    batch[1].zero_()  # an error in backward, if autograd took it for a change of batch[0]
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0] * 4


def numbered(number: int) -> torch.Tensor:
    return torch.full((1000,), number)


@pytest.mark.parametrize("kept", [0.0, 0.1, 1.0], ids=["none", "some", "all"])
def test_what_the_trainer_keeps_is_not_overwritten(kept: float) -> None:
    """Batches, a tensor of one, and an array that shares its memory."""
    loader = loading(numbered, 200, num_workers=2)
    draw = np.random.default_rng(0)
    mine: dict[int, Any] = {}
    places = set()
    for index, batch in enumerate(loader):
        assert [tensor.tolist() for tensor in batch] == [[2 * index] * 1000, [2 * index + 1] * 1000]
        places.add(batch[0].data_ptr())
        if draw.random() < kept:
            mine[index] = (batch[0], batch[0][10:], batch[0].numpy()[::2])[index % 3]
    for index, value in mine.items():
        assert set(value.tolist()) == {2 * index}
    assert len(places) <= 2 * 2 + delivery.MORE if not kept else len(places) > 2 * 2 + delivery.MORE


def test_a_storage_ends_where_its_tensor_does() -> None:
    one, other = batches(lambda number: torch.full((4,), float(number + 1)))[0]
    torch.save(one, stream := io.BytesIO())
    with pytest.raises(RuntimeError, match="resiz"):
        torch.arange(30.0, out=one)
    assert other.tolist() == [2.0] * 4
    assert len(stream.getvalue()) < 10_000


def test_tensors_that_share_memory_still_do() -> None:
    def make(number: int) -> list[torch.Tensor]:
        whole = torch.full((4,), number)
        return [whole, whole[1:3]]

    for batch in batches(make, collate=lambda samples: samples):
        for whole, part in batch:
            whole.add_(1)
            assert part.tolist() == whole[1:3].tolist()


def test_what_a_child_of_the_trainer_has_is_not_overwritten() -> None:
    def tell(tensor: torch.Tensor, go: Any, told: Any) -> None:
        go.wait(60)
        told.put(set(tensor.tolist()))

    loader = loading(numbered, 100)
    iterator = iter(loader)
    context = multiprocessing.get_context("fork")
    go, told = context.Event(), context.SimpleQueue()
    child = context.Process(target=tell, args=(next(iterator)[0], go, told))
    child.start()
    assert len(list(iterator)) == 49
    go.set()
    assert told.get() == {0}
    child.join()


def test_where_tensors_are_made_elsewhere_by_default() -> None:
    loader = loading(numbered)
    delivery.through_buffers(loader)  # a second time is none
    iterator = iter(loader)
    with torch.device("meta"):
        batch = next(iterator)
    assert [tensor[0].item() for tensor in batch] == [0, 1]


@pytest.mark.skipif(not hasattr(reductions, "reduce_nested_tensor"), reason="this torch cannot send them")
def test_of_nested_tensors() -> None:
    def make(number: int) -> torch.Tensor:
        return torch.nested.nested_tensor([torch.full((2,), number), torch.full((3,), number)])

    for index, (batch, *_) in enumerate(batches(make)):
        assert [part.tolist() for part in batch.unbind()] == [[2 * index] * 2, [2 * index] * 3]


def test_a_batch_larger_than_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BUFFER", 4096)
    sizes = [3, 200, 600, 5000, 2, 512]

    def make(number: int) -> torch.Tensor:
        return torch.full((sizes[number],), number)

    same(batches(make), batches(make, ours=False))


def test_no_room_for_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BUFFER", 1 << 50)
    same(batches(numbered), batches(numbered, ours=False))


@pytest.mark.parametrize(
    "options", [{"persistent_workers": True}, {"multiprocessing_context": "spawn"}], ids=str
)
def test_other_ways_to_start_workers(options: dict[str, Any]) -> None:
    loader = loading(numbered, **options)
    expected = batches(numbered, ours=False)
    for _ in range(3 if loader.persistent_workers else 1):
        same(list(loader), expected)
    # Workers that persist end here, with the loader. Found as a cycle later, torch waits 5 s for each.
    del loader._get_iterator, loader


def test_two_iterators_at_once() -> None:
    loader = loading(numbered, 40)
    for index, (a, b) in enumerate(zip(loader, loader, strict=True)):
        same(a, b)
        assert a[0][0] == 2 * index


def test_the_buffers_go_with_the_iterator() -> None:
    loader = loading(numbered)
    before = set(delivery._known)
    kept = [batch[0] for batch in loader]
    gc.collect()
    assert set(delivery._known) <= before
    assert [tensor[0] for tensor in kept] == [0, 2, 4]


def test_a_worker_that_died_with_the_lock_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PATIENCE", 0.05)
    buffers = delivery.Buffers(3)
    assert buffers.take() == 0
    buffers.lock.acquire()
    assert buffers.take() is None
    packed = delivery.pack([torch.arange(5)], buffers)
    assert packed.where is None


def test_what_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(Exception, match="local object"):
        batches(lambda number: {"inputs": torch.ones(3), "data_samples": lambda: number})


MEMORY = """
import resource, sys
import numpy as np
from torch.utils.data import DataLoader
from jobs.engine import delivery

# More together than the C library ever keeps by itself, and none so large that it is apart (mallopt(3)).
COUNT, SIZE = 30, 3 << 20

class Samples:
    def __len__(self):
        return 15
    def __getitem__(self, number):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        arrays = [np.ones(SIZE + number * 4096, np.uint8) for _ in range(COUNT)]
        del arrays
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

loader = DataLoader(Samples(), None, num_workers=1)
if sys.argv[1] == "ours":
    delivery.through_buffers(loader)
print(sum(list(loader)[5:]) / (10 * COUNT * SIZE / resource.getpagesize()))
"""


def test_a_worker_keeps_its_memory() -> None:
    """By the page faults that it has for each page of its arrays. From a process of its own: what others have
    left in this one's heap may keep it from being given back."""
    faults = {}
    for way in ("torch", "ours"):
        command = [sys.executable, "-c", MEMORY, way]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
        faults[way] = float(done.stdout)
    assert faults["torch"] > 1 / 2, "there is nothing to keep: the test shows nothing"
    assert faults["ours"] < 1 / 10
