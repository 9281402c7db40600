"""Images from elsewhere: none starts a program, none takes the one beside it along, none takes all memory."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.mmseg import images, pictures
from jobs.prepare import verify
from jobs.prepare.voc import masks
from jobs.prepare.voc.sbd import BadMask, mask_of
from jobs.run import deflate, png
from jobs.run.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(hello) print\n%%EOF\n"


def saved(path: Path, **options: object) -> Path:
    Image.new("RGB", (9, 7), (200, 100, 50)).save(path, **options)  # type: ignore[arg-type]
    return path


def test_an_eps_named_jpg_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    (tmp_path / "x.jpg").write_bytes(EPS)
    with pytest.raises(UserError, match=r"x\.jpg cannot be read as an image"):
        images.read(tmp_path / "x.jpg")
    assert not (tmp_path / "started").exists()
    with pytest.raises(BadMask):
        masks.decode_mask(EPS)
    with pytest.raises(BadMask):
        verify.read_png(EPS)


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "ICO", "PCX", "SGI", "TGA"])
def test_formats_that_nobody_asked_for_are_refused_by_content(kind: str, tmp_path: Path) -> None:
    saved(tmp_path / f"x.{kind.lower()}", format=kind).rename(tmp_path / "x.png")
    with pytest.raises(UserError, match="cannot be read as an image"):
        images.read(tmp_path / "x.png")


@pytest.mark.parametrize("kind", images.FORMATS)
def test_the_formats_of_the_list_are_read(kind: str, tmp_path: Path) -> None:
    read = images.read(saved(tmp_path / "x", format=kind))
    assert read.shape == (7, 9, 3)
    assert abs(int(read[3, 4, 0]) - 200) < 4


def exif(content: bytes) -> bytes:
    return b"Exif\0\0" + content


@pytest.mark.parametrize(
    "content",
    [
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x08\0\0\0\0",
        b"XX",
        b"II*\0\xff\xff\xff\xff",
        b"",
    ],
)
def test_a_broken_exif_turns_nothing_and_ends_nothing(content: bytes, tmp_path: Path) -> None:
    assert images.read(saved(tmp_path / "x.jpg", exif=exif(content))).shape == (7, 9, 3)


def test_an_exif_that_is_whole_turns(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    assert images.read(saved(tmp_path / "x.jpg", exif=turned)).shape == (9, 7, 3)


def test_whatever_a_decoder_raises_is_that_images_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "x.png")
    for error in (struct.error("x"), KeyError(3), MemoryError(), RecursionError("x"), zlib.error("y")):

        def broken(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", broken)
        with pytest.raises(UserError, match=r"cannot be read as an image: .+"):
            images.read(path)


def big_png(width: int, height: int) -> bytes:
    """A PNG of zeros, written without ever holding its pixels."""
    row = 1 + width * 3
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png.SIGNATURE + png.chunk(b"IHDR", head) + png.chunk(b"IDAT", packed) + png.END


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)
    (tmp_path / "x.png").write_bytes(png.SIGNATURE + png.chunk(b"IHDR", head) + png.chunk(b"IDAT", b""))
    with pytest.raises(UserError, match=r"20,000 × 15,000 pixels, at most 268,435,456 are read"):
        images.read(tmp_path / "x.png")


MEASURE = """
import resource, sys
import numpy as np
from pathlib import Path
from jobs.mmseg import pictures
from jobs.mmseg import images
at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = images.read(Path(sys.argv[1]))
labels = np.zeros(image.shape[:2], np.uint8)
palette = [[number, 1, 2] for number in range(21)]
pictures.save(pictures.mask(labels, palette), Path(sys.argv[1] + ".out.png"))
pictures.save(pictures.overlay(image, labels, palette), Path(sys.argv[1] + ".out.jpg"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_first) * 1024 / labels.size)
"""


def test_a_small_file_of_a_large_image_takes_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(big_png(3000, 3000))
    assert (tmp_path / "x.png").stat().st_size < 60_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "x.png")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 15, "bytes a pixel; as floating-point numbers it was 50"


def test_overlays_in_bands_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1200, 700, 3), np.uint8)
    masks = rng.integers(0, 21, image.shape[:2], np.uint8)
    palette = [[0, 0, 0], *rng.integers(0, 256, (20, 3)).tolist()]
    colours = pictures.table(palette)[masks]
    mixed = (image * 0.5 + colours * 0.5).round()
    whole = np.where((colours.sum(axis=2) == 0)[..., None], image, mixed).astype(np.uint8)
    assert np.array_equal(np.asarray(pictures.overlay(image, masks, palette)), whole)


# --- what the preparation reads ---


def test_a_mask_that_would_inflate_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4 << 20
    monkeypatch.setattr(deflate, "MOST_INFLATED", most)
    packed = zlib.compress(bytes(50 * most), 9)
    assert len(deflate.inflate(zlib.compress(bytes(most), 9))) == most
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(deflate.InflateError):
        deflate.inflate(packed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit + (10 * most >> 10)
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = png.SIGNATURE + png.chunk(b"IHDR", head) + png.chunk(b"IDAT", packed) + png.END
    with pytest.raises(BadMask):
        masks.decode_mask(content)
    mat = bytes(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(BadMask):
        mask_of(mat)


def test_any_error_of_a_decoder_is_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise struct.error("unpack requires a buffer")

    monkeypatch.setattr(Image, "open", broken)
    buffer = io.BytesIO()
    for read in (masks.decode_mask, verify.read_png):
        with pytest.raises(BadMask, match="unpack requires"):
            read(buffer.getvalue())
