"""Images of one size that an evaluation has the model see at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from jobs.evaluate import batches


def sample(height: int, original: int) -> dict[str, Any]:
    meta = {"ori_shape": (original, 4), "img_shape": (height, 8)}
    return {"inputs": np.zeros((3, height, 8)), "data_samples": SimpleNamespace(metainfo=meta)}


def numbers(samples: list[dict[str, Any]], most: int) -> list[list[int]]:
    return [[number for number, _ in group] for group in batches.of_one_size(enumerate(samples), most)]


def test_only_images_of_one_size_are_seen_at_once() -> None:
    # The third is another file's size, resized to the same.
    samples = [sample(8, 4), sample(6, 3), sample(8, 2), sample(8, 4), sample(6, 3), sample(8, 4)]
    assert numbers(samples, 2) == [[0, 3], [1, 4], [2], [5]]
    assert numbers(samples, 1) == [[0], [1], [2], [3], [4], [5]]


def test_images_that_wait_for_others_of_their_size_are_bounded() -> None:
    every = [sample(8 + number, 4) for number in range(40)]
    most = 2
    held = shown = 0
    for group in batches.of_one_size(counted(every), most):
        shown += len(group)
        held = max(held, counted.taken - shown)
    assert shown == 40
    assert held <= batches.WAITING * most


class counted:
    """Samples with numbers, and how many have been taken."""

    taken = 0

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        for number, one in enumerate(self.samples):
            counted.taken = number + 1
            yield number, one
