"""The positions of a large image's tiles, and how their scores are combined into one label map.

Weighted scores are summed, row of tiles by row of tiles; a row of pixels that no later tile touches is
divided by the sum of its weights and becomes labels. So at most one row of tiles is in memory, and for a very
wide image only a panel of it. Which tiles cover a pixel, and in which order, depends only on the image's
size: a map that was interrupted is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_SCORES = 1 << 27
"""The most scores (4 bytes each) in memory, unless a single tile has more."""

ALIGNED = 32
"""Tiles start at multiples of this, the stride of most networks: so each groups the same pixels as for the
whole image. A tile smaller than four times this starts at multiples of 8."""

Span = tuple[int, int]
"""From the first pixel to one after the last."""


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of an image."""

    spans: list[Span]
    weights: list[np.ndarray]
    """The weights of each span's pixels (float32)."""
    total: np.ndarray
    """The sum of the weights for each pixel of the side."""


@dataclass(frozen=True)
class Tiling:
    size: Span
    """Height and width of a tile."""
    stride: Span
    even: bool
    """If so, all pixels of a tile have the same weight and the last tile is moved back to the edge, as in
    mmseg's slide mode; otherwise the outer quarter of an overlap has weight 0, from where it grows."""

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        rows, columns = (
            axis(length, size, stride, self.even)
            for length, size, stride in zip((height, width), self.size, self.stride, strict=True)
        )
        return rows, columns


def overlapping(size: int, overlap: int) -> Tiling:
    """Square tiles of `size` that overlap by at least `overlap` pixels."""
    unit = ALIGNED if size >= 4 * ALIGNED else 8
    stride = max(unit, (size - overlap) // unit * unit)
    return Tiling((size, size), (stride, stride), even=False)


def axis(length: int, size: int, stride: int, even: bool) -> Axis:
    spans = sliding(length, size, stride) if even else aligned(length, size, stride)
    weights = [
        np.ones(stop - start, np.float32) if even else ramp(start, stop, length, size - stride)
        for start, stop in spans
    ]
    total = np.zeros(length, np.float32)
    for (start, stop), weight in zip(spans, weights, strict=True):
        total[start:stop] += weight
    return Axis(spans, weights, total)


def sliding(length: int, size: int, stride: int) -> list[Span]:
    """The spans of EncoderDecoder.slide_inference (mmseg/models/segmentors/encoder_decoder.py)."""
    number = max(length - size + stride - 1, 0) // stride + 1
    stops = [min(index * stride + size, length) for index in range(number)]
    return [(max(stop - size, 0), stop) for stop in stops]


def aligned(length: int, size: int, stride: int) -> list[Span]:
    """Aligned spans; the last may be a little larger, so that it also starts at a multiple of ALIGNED."""
    unit = ALIGNED if stride % ALIGNED == 0 else 8
    if length < size + unit:
        return [(0, length)]
    last = (length - size) // unit * unit
    return [*((start, start + size) for start in range(0, last, stride)), (last, length)]


def ramp(start: int, stop: int, length: int, overlap: int) -> np.ndarray:
    """The weights of a span: at an inner edge 0 for a quarter of the overlap, then rising to 1 over half of
    it."""
    margin = overlap // 4
    rising = ((np.arange(stop - start) - margin + 0.5) / max(1, overlap - 2 * margin)).clip(0, 1)
    weight = np.ones(stop - start, np.float32)
    if start > 0:
        weight *= rising.astype(np.float32)
    if stop < length:
        weight *= rising[::-1].astype(np.float32)
    return weight


def panels(columns: Axis, classes: int, height: int) -> list[Span]:
    """The ranges of columns that are segmented from top to bottom one after the other; `height`: of the
    tallest tile. Tiles that two neighbours share are computed twice."""
    most = max(1, MOST_SCORES // (classes * height))
    cuts = [0]
    for number, (start, _) in enumerate(columns.spans):
        following = columns.spans[number + 1][0] if number + 1 < len(columns.spans) else len(columns.total)
        if following - cuts[-1] > most and start > cuts[-1]:
            cuts.append(start)
    return list(zip(cuts, [*cuts[1:], len(columns.total)], strict=True))


Scores = Callable[[Sequence[tuple[Span, Span]]], Iterator[Any]]
"""Yields the model's scores (a classes × h × w tensor, which is modified) for each of these tiles (rows,
columns)."""


def blended(
    rows: Axis, columns: Axis, panel: Span, first: int, classes: int, scores: Scores
) -> Iterator[tuple[int, Any]]:
    """Processes a panel from pixel row `first` on, where a row of tiles starts, and yields (row, scores of
    all rows that are now complete, classes × rows × the panel's columns; valid until the next)."""
    import torch

    left, right = panel
    across = [number for number, span in enumerate(columns.spans) if span[0] < right and span[1] > left]
    sums: Any = None
    highest = max(stop - start for start, stop in rows.spans)
    for number, (top, bottom) in enumerate(rows.spans):
        if bottom <= first:
            continue
        wanted = [(rows.spans[number], columns.spans[one]) for one in across]
        for one, found in zip(across, scores(wanted), strict=True):
            if sums is None:
                sums = torch.zeros((classes, highest, right - left), device=found.device)
            start, stop = columns.spans[one]
            begin, end, high = max(start, left), min(stop, right), max(top, first)
            part = found[:, high - top :, begin - start : end - start]
            base = max(top, first)
            if not (rows.weights[number].min() == columns.weights[one].min() == 1):
                down = torch.from_numpy(rows.weights[number][high - top :]).to(part.device)
                along = torch.from_numpy(columns.weights[one][begin - start : end - start]).to(part.device)
                part = part.mul_(down[:, None] * along)
            sums[:, high - base : bottom - base, begin - left : end - left] += part
        if top < first:  # only the part below was needed
            following = first
        else:
            following = rows.spans[number + 1][0] if number + 1 < len(rows.spans) else bottom
        base = max(top, first)
        if following > base:
            done = sums[:, : following - base]
            down = torch.from_numpy(rows.total[base:following]).to(sums.device)
            along = torch.from_numpy(columns.total[left:right]).to(sums.device)
            yield base, done.div_(down[:, None] * along)
            kept = sums[:, following - base :].clone()
            sums[:, kept.shape[1] :].zero_()
            sums[:, : kept.shape[1]] = kept
