"""The real lists, two real annotation files, and the small readers and writers."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat

from jobs.catalog import sources
from jobs.prepare.synthetic import read_lists
from jobs.prepare.synthetic_scene import cls_mat, voc_palette
from jobs.prepare.voc import lists as voc
from jobs.prepare.voc import sbd
from jobs.prepare.voc.masks import decode_mask
from jobs.run import png

DATA = Path(__file__).parents[1] / "data/voc"
LISTS = read_lists(DATA)


def test_real_lists_give_the_fields_list() -> None:
    splits = voc.join(LISTS.voc_train, LISTS.voc_val, LISTS.sbd_train, LISTS.sbd_val)
    assert len(splits.trainaug) == 10_582
    assert voc.md5(splits.trainaug) == "215992f6fd958f89800449fdb4bbabe6"
    assert len(splits.aug) == 9_118
    assert len(splits.train) == 1_464
    assert len(splits.trainval) == 2_913
    assert not set(splits.trainaug) & set(splits.val)
    assert sorted(splits.train + splits.aug) == splits.trainaug == sorted(splits.trainaug)
    voc.check_real(splits)


def test_a_wrong_union_of_the_right_length_is_refused() -> None:
    """What a byte-order mark or a swapped id makes of it: 10,582 lines, one of them wrong."""
    altered = [*LISTS.sbd_train[:-1], "2099_000001"]
    with pytest.raises(voc.BadList, match="not the 10,582"):
        voc.join(LISTS.voc_train, LISTS.voc_val, altered, LISTS.sbd_val)


@pytest.mark.parametrize("wrong", ["sbd train only", "naive union", "sbd", "no sbd val"])
def test_known_wrong_answers_are_refused(wrong: str) -> None:
    train, val = set(LISTS.voc_train), set(LISTS.voc_val)
    sbd_train, sbd_val = set(LISTS.sbd_train), set(LISTS.sbd_val)
    ids = {
        "sbd train only": (sbd_train | train) - val,
        "naive union": train | sbd_train | sbd_val,
        "sbd": sbd_train | sbd_val,
        "no sbd val": sbd_train - val,
    }[wrong]
    splits = voc.join(LISTS.voc_train, LISTS.voc_val, LISTS.sbd_train, LISTS.sbd_val)
    with pytest.raises(voc.BadList):
        voc.check_real(voc.Splits(splits.train, splits.val, splits.trainval, sorted(ids), splits.aug))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.mat")), ids=lambda path: path.stem)
def test_real_annotations_as_scipy_reads_them(path: Path) -> None:
    content = path.read_bytes()
    expected = loadmat(io.BytesIO(content))["GTcls"][0]["Segmentation"][0]
    fast = sbd.fast(content)
    assert fast is not None, "the fast way does not know the release's own files"
    np.testing.assert_array_equal(fast, expected)
    np.testing.assert_array_equal(sbd.by_scipy(content), expected)
    np.testing.assert_array_equal(sbd.mask_of(content), expected)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_any_mask_survives_mat_and_png(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 21, (height, width), dtype=np.uint8)
    content = cls_mat(mask)
    fast = sbd.fast(content)
    assert fast is not None
    np.testing.assert_array_equal(fast, mask)
    encoded = png.encode_grey(fast)
    assert png.png_size(encoded) == (width, height)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    content = bytearray(cls_mat(np.arange(60, dtype=np.uint8).reshape(6, 10) % 21))
    at = draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


ALL_BY_SCIPY = """
import sys
from pathlib import Path
import numpy as np
from scipy.io import loadmat
for path in sorted(Path(sys.argv[1]).glob("*.mat")):
    try:
        mask = loadmat(path)["GTcls"][0]["Segmentation"][0]
    except Exception:
        continue
    np.save(path.with_suffix(".npy"), mask)
"""


def test_a_damaged_annotation_is_left_to_scipy_or_read_as_scipy_does(tmp_path: Path) -> None:
    """Every single flipped bit. What scipy refuses, for damage to a field that is not the mask, has the mask
    as it was. Scipy reads in one process of its own: it may crash."""
    undamaged = np.arange(60, dtype=np.uint8).reshape(6, 10) % 21
    whole = cls_mat(undamaged)
    taken = {}
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        mask = sbd.fast(bytes(content))
        if mask is not None:
            taken[bit] = mask
            (tmp_path / f"{bit}.mat").write_bytes(content)
    assert 0 < len(taken) < 4 * len(whole)
    subprocess.run([sys.executable, "-c", ALL_BY_SCIPY, str(tmp_path)], check=True, timeout=60)
    for bit, mask in taken.items():
        read = tmp_path / f"{bit}.npy"
        expected = np.load(read) if read.exists() else undamaged
        np.testing.assert_array_equal(mask, expected, err_msg=f"bit {bit}")
    assert len(list(tmp_path.glob("*.npy"))) > len(taken) / 2


@given(content=damaged())
@settings(max_examples=10)
def test_a_damaged_annotation_is_refused_or_read(content: bytes) -> None:
    with contextlib.suppress(sbd.BadMask):
        assert sbd.mask_of(content).shape == (6, 10)


def test_an_uncompressed_file_is_read_as_scipy_reads_it() -> None:
    mask = np.array([[0, 20], [3, 4], [5, 6]], np.uint8)
    buffer = io.BytesIO()
    struct = {"Boundaries": 0, "Segmentation": mask, "CategoriesPresent": 0}
    savemat(buffer, {"GTcls": struct})
    for read in (sbd.fast, sbd.by_scipy):
        np.testing.assert_array_equal(read(buffer.getvalue()), mask)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 30}, {"comment": b"\xff\xc0" * 40}]
)
def test_jpeg_size(options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (123, 45)).save(buffer, "JPEG", **options)
    assert png.jpeg_size(buffer.getvalue()) == (123, 45)
    with pytest.raises(png.BadImage):
        png.jpeg_size(buffer.getvalue()[:20])


def mask_png(mask: np.ndarray, mode: str, **options: object) -> bytes:
    image = Image.frombytes(mode, (mask.shape[1], mask.shape[0]), mask.tobytes())
    if mode == "P":
        image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_are_decoded_as_pil_does(mode: str) -> None:
    mask = np.random.default_rng(3).integers(0, 21, (30, 17), dtype=np.uint8)
    mask[3:5] = 255
    content = mask_png(mask, mode)
    np.testing.assert_array_equal(decode_mask(content), mask)
    if mode == "P":
        assert png.decode_fast(content) is not None, "the fast way does not know masks like VOC's"
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 16
        fast = png.decode_fast(bytes(damaged))
        assert fast is None or np.array_equal(fast, mask)


def test_palette_is_vocs() -> None:
    palette = voc_palette()
    assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert palette[255 * 3 :] == [224, 224, 192]


def test_real_figures_are_the_published_ones() -> None:
    assert sources.VOC.digests["md5"] == "6cd6e144f989b92b3379bac3b3de84fd"
    assert sources.SBD.digests["md5"] == "82b4d87ceb2ed10f6038a1cba92111cb"
    assert (sources.VOC.size, sources.SBD.size) == (1_999_639_040, 1_419_539_633)
