"""Where the tiles of an image lie: all of it is covered, by tiles that see the same pixels together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.infer import tiles


@given(st.integers(1, 5000), st.integers(64, 700), st.integers(0, 300))
def test_every_pixel_is_covered_by_a_tile_of_its_size(length: int, size: int, overlap: int) -> None:
    tiling = tiles.overlapping(size, min(overlap, size // 2))
    side, _ = tiling.axes(length, length)
    assert side.spans[0][0] == 0
    assert side.spans[-1][1] == length
    assert (side.total > 0).all()
    for (start, stop), (following, _) in pairwise(side.spans):
        assert start < following <= stop
        assert following % 8 == 0
        assert stop - start == size
    assert side.spans[-1][1] - side.spans[-1][0] < size + 32


@given(st.integers(1, 3000), st.integers(32, 600), st.integers(16, 600))
def test_sliding_is_as_mmseg_slides(length: int, size: int, stride: int) -> None:
    stride = min(stride, size)
    count = np.zeros(length)
    # EncoderDecoder.slide_inference
    for index in range(max(length - size + stride - 1, 0) // stride + 1):
        stop = min(index * stride + size, length)
        count[max(stop - size, 0) : stop] += 1
    axis = tiles.axis(length, size, stride, even=True)
    assert np.array_equal(axis.total, count)


@given(st.integers(200, 4000), st.integers(1, 200))
def test_panels_are_all_of_the_image(width: int, classes: int) -> None:
    _, columns = tiles.overlapping(128, 32).axes(100, width)
    tiles_most = tiles.MOST_SCORES
    try:
        tiles.MOST_SCORES = 128 * 400 * 20
        found = tiles.panels(columns, classes, 128)
    finally:
        tiles.MOST_SCORES = tiles_most
    assert found[0][0] == 0
    assert found[-1][1] == width
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert all(start in {span[0] for span in columns.spans} for start, _ in found)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("panel", [(0, 500), (96, 288)])
def test_what_the_tiles_agree_on_comes_out(even: bool, panel: tuple[int, int]) -> None:
    tiling = tiles.Tiling((128, 128), (96, 96), even)
    rows, columns = tiling.axes(430, 500)
    truth = torch.randn(3, 430, 500, generator=torch.Generator().manual_seed(0))

    def scores(wanted):  # type: ignore[no-untyped-def]
        return (truth[:, top:bottom, left:right].clone() for (top, bottom), (left, right) in wanted)

    for first in (0, rows.spans[2][0]):
        found = [(top, part.clone()) for top, part in tiles.blended(rows, columns, panel, first, 3, scores)]
        assert [top for top, _ in found] == [start for start, _ in rows.spans if start >= first]
        whole = torch.cat([part for _, part in found], dim=1)
        assert torch.allclose(whole, truth[:, first:, panel[0] : panel[1]], atol=1e-5)
