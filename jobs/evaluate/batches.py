"""Batches test samples for the model: one by one, or several images of the same size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

WAITING = 8
"""The most images, in batches, that may wait for others of their size."""


def of_one_size(samples: Iterable[tuple[Any, Any]], most: int) -> Iterator[list[tuple[Any, Any]]]:
    """Groups of up to `most` numbered samples with the same image size, both original and model input; in
    order within a group. Holds at most WAITING times `most` samples."""
    waiting: dict[Any, list[tuple[Any, Any]]] = {}
    for number, sample in samples:
        size = size_of(sample) if most > 1 else ()
        waiting.setdefault(size, []).append((number, sample))
        if len(waiting[size]) == most:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) == WAITING * most:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


def size_of(sample: Any) -> tuple[Any, ...]:
    meta = first_of(sample).metainfo
    return tuple(sample["inputs"].shape), *(str(meta.get(key)) for key in ("ori_shape", "img_shape"))


def batch_of(samples: list[Any]) -> dict[str, Any]:
    """A batch like those of mmengine's loaders; for augmented samples, with lists of augmentations
    (mmengine's BaseTTAModel)."""
    keys = samples[0].keys()
    if isinstance(samples[0]["data_samples"], list):
        return {key: [list(ones) for ones in zip(*(s[key] for s in samples), strict=True)] for key in keys}
    return {key: [sample[key] for sample in samples] for key in keys}


def first_of(sample: Any) -> Any:
    """The data sample; for an augmented one the first, whose annotation mmseg's SegTTAModel uses, too."""
    found = sample["data_samples"]
    return found[0] if isinstance(found, list) else found
