"""Images of any kind that Pillow or tifffile can read: what an image is, whether it is intact, its pixels."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from jobs.mmseg import images as viewed
from jobs.run import packed
from jobs.run.errors import UserError

MOST_PIXELS = 1 << 28
"""The most pixels of an image or mask, as for inference (jobs/mmseg/images.py): some 10 bytes each."""
MOST_BYTES = 8 * MOST_PIXELS
"""The most bytes of a TIFF's pixels, all bands together."""
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow's own limit, at which it raises at twice the value, is lower
THUMB = 16
"""Side of the thumbnails with which duplicates are confirmed."""

SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png",), "PNG"),
    **dict.fromkeys((".tif", ".tiff", ".geotiff"), "TIFF"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".webp",), "WEBP"),
    **dict.fromkeys((".ppm", ".pgm", ".pnm"), "PPM"),
    **dict.fromkeys((".gif",), "GIF"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
    **dict.fromkeys((".tga",), "TGA"),
}
"""Suffixes that count as images. Others that Pillow knows (EPS, PDF …) would start programs."""

SUFFIX_OF = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "PPM": ".ppm",
}
"""Formats that the training's reader (OpenCV) can read as they are -> the suffix in the dataset."""

FORMATS = sorted(set(SUFFIXES.values()))

ALPHA = {1, 2}
"""TIFF 6.0, ExtraSamples: associated and unassociated alpha; 0 is any further band."""
OTHERWISE = {tifffile.PHOTOMETRIC[name] for name in ("YCBCR", "CIELAB")}
"""TIFF 6.0, PhotometricInterpretation: stored values that are not RGB, which OpenCV would return."""
ORIENTATION = 0x0112


class Picture(msgspec.Struct):
    """What an image file is."""

    format: str
    """Pillow's name of the format."""
    width: int
    height: int
    """Height as stored, before turning."""
    bands: int = 3
    """Number of bands without alpha."""
    dtype: str = "uint8"
    """NumPy's name of the type."""
    alpha: bool = False
    """Whether it is transparent somewhere."""
    orientation: int = 1
    """EXIF orientation: 1 needs no turning; from 5 on, width and height are swapped."""
    plain: bool = True
    """Whether the training's readers can read the file as it is."""
    hash: int = 0
    """64-bit dHash: for 9×8 grey pixels, whether each is darker than the next in its row."""
    thumb: bytes = b""
    """THUMB × THUMB grey pixels."""

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) after turning it upright."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


class BadPicture(ValueError):
    """What is wrong with an image, without its name: the message."""


def look(content: bytes) -> Picture:
    """Decodes all of an image, and returns what it is. Raises BadPicture."""
    if not content:
        raise BadPicture("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; what matters raises
            if is_tiff(content):
                return look_at_tiff(content)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return look_at(image, content)
    except BadPicture:
        raise
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything, down to struct.error
        raise BadPicture(f"cannot be decoded ({short(error)})") from None


def short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 120 and "BytesIO" not in text else "no image that Pillow or tifffile knows"


def is_tiff(content: bytes) -> bool:
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def look_at(image: Image.Image, content: bytes) -> Picture:
    form = image.format or ""
    found = Picture(form, *image.size, orientation=orientation_of(image))
    found.plain = form in SUFFIX_OF and is_turned_alike(found)
    check_size(found)
    if form in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        found.bands = len(image.getbands())
        # Every byte is decoded, but only at an eighth of the size.
        image.draft("L", (THUMB, THUMB))
        grey = np.asarray(image.convert("L"))
    else:
        pixels = pixels_of(image)
        found.bands = 1 if pixels.ndim == 2 else pixels.shape[2]
        found.dtype = pixels.dtype.name
        found.alpha = is_transparent(image)
        if is_deep_png(content):
            found.dtype, found.bands = "uint16", png_bands(content)
            # Of 16-bit images, they read all bands, including alpha.
            found.plain &= not has_png_alpha(content)
        grey = grey_of(pixels)
    describe(found, grey)
    return found


def is_deep_png(content: bytes) -> bool:
    """Whether it is a 16-bit PNG (PNG specification, 11.2.2)."""
    return content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10"


def png_bands(content: bytes) -> int:
    """Number of bands of a PNG without alpha, from its header (PNG specification, 11.2.2, colour type)."""
    return 3 if content[25] in (2, 3, 6) else 1


def has_png_alpha(content: bytes) -> bool:
    """Whether a PNG has an alpha band (PNG specification, 11.2.2, colour type)."""
    return content[25] in (4, 6)


def check_size(found: Picture) -> None:
    if found.width * found.height > MOST_PIXELS:
        raise BadPicture(f"has {found.width}×{found.height} pixels: cut it into tiles")


def is_turned_alike(found: Picture) -> bool:
    """Whether all versions of the training's readers turn it alike: all respect EXIF only for JPEG."""
    return found.orientation == 1 or found.format in ("JPEG", "MPO")


def orientation_of(image: Image.Image) -> int:
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def pixels_of(image: Image.Image) -> NDArray[Any]:
    """H×W or H×W×bands without alpha. Pillow reduces 16-bit colours to 8 bits; `read` does not."""
    if image.mode in ("L", "RGB"):  # converting would copy
        return np.asarray(image)
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return np.asarray(image).astype(np.float32)
    return np.asarray(image.convert("RGB"))


def is_transparent(image: Image.Image) -> bool:
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        return image.getchannel("A").getextrema() != (255, 255)
    return "transparency" in image.info


# --- TIFF ---


def look_at_tiff(content: bytes) -> Picture:
    pixels, plain, alpha, orientation = read_tiff(content)
    height, width = pixels.shape[:2]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    found = Picture("TIFF", width, height, bands, pixels.dtype.name, alpha, orientation)
    found.plain = plain and is_turned_alike(found) and (found.dtype != "uint8" or is_opencvs(content, pixels))
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise BadPicture("has pixels that are no number (NaN or infinite)")
    describe(found, grey_of(pixels))
    return found


def read_tiff(content: bytes) -> tuple[NDArray[Any], bool, bool, int]:
    """(H×W or H×W×bands without alpha, whether tifffile.imread returns just that, whether alpha was removed,
    EXIF orientation). Raises BadPicture."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page, series = file.pages.first, file.series[0]
        others = [one for one in file.series[1:] if not one.keyframe.subfiletype & 4]  # 4: a mask of no data
        if others and others[0].shape == series.shape:
            raise BadPicture("holds several images: save each as a file of its own")
        if math.prod(series.shape) * series.dtype.itemsize > MOST_BYTES:
            raise BadPicture(f"has the shape {series.shape}: cut it into tiles")
        tag = page.tags.get(ORIENTATION)
        orientation = tag.value if tag is not None and tag.value in range(1, 9) else 1
        axes = series.axes
        try:
            pixels, plain = series.asarray(), True
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype in (np.uint8, np.bool_):
                pixels = ~pixels
            elif page.photometric in OTHERWISE and pixels.dtype == np.uint8 and axes == "YXS":
                pixels = by_opencv(content, orientation)
        except (ValueError, NotImplementedError, RuntimeError, ImportError):
            # A compression for which tifffile needs another package; OpenCV's libtiff has the usual ones.
            pixels, plain, axes = by_opencv(content, orientation), False, "YXS"
        extra = tuple(int(one) for one in page.extrasamples or ())
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    if palette:
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            return np.asarray(image.convert("RGB")), False, False, orientation
    if pixels.ndim == 3 and axes[0] not in "YX":
        pixels, plain = np.moveaxis(pixels, 0, -1), False
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise BadPicture(f"has the shape {pixels.shape}: an image has height, width and bands")
    if pixels.dtype == np.bool_:
        pixels, plain = pixels.astype(np.uint8) * 255, False
    if pixels.dtype.kind not in "uif":
        raise BadPicture(f"has pixels of type {pixels.dtype}")
    if pixels.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
        pixels, plain = pixels.astype(np.float32), False
    alpha = pixels.ndim == 3 and len(extra) == 1 and extra[0] in ALPHA
    if alpha:
        pixels, plain = pixels[..., :-1], False
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels, plain = pixels[..., 0], False
    return pixels, plain, alpha, orientation


def by_opencv(content: bytes, orientation: int = 1) -> NDArray[Any]:
    """RGB or grey, in the file's own depth, as stored. `orientation`: a TIFF's, which OpenCV always applies.
    Raises BadPicture."""
    pixels: Any = None
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise BadPicture("is compressed in a way that is not read here: save it with deflate or without")
    pixels = turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return pixels if pixels.ndim == 2 else to_rgb(pixels)


def is_opencvs(content: bytes, pixels: NDArray[Any]) -> bool:
    """Whether OpenCV, the training's reader for 8 bits in 1 or 3 bands, returns just these pixels."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        # The usual ones, grey (1) and RGB (2), need not be decoded twice.
        usual = not page.is_tiled and page.compression in (1, 5, 8, 32946)  # none, LZW, deflate; no LZMA
        if usual and page.samplesperpixel == {1: 1, 2: 3}.get(page.photometric):
            return True
    with contextlib.suppress(BadPicture):
        return pixels.shape[2:] not in ((), (3,)) or np.array_equal(by_opencv(content), pixels)
    return False


def to_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """Converts OpenCV's order of bands to the file's."""
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]


# --- pixels ---


def read(content: bytes) -> NDArray[Any]:
    """H×W×bands as stored (not turned), RGB before other bands, without alpha. Raises BadPicture."""
    try:
        if is_tiff(content):
            pixels = read_tiff(content)[0]
        elif is_deep_png(content):
            pixels = by_opencv(content)
            pixels = pixels[..., : png_bands(content)] if pixels.ndim == 3 else pixels
        else:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels = pixels_of(image)
    except BadPicture:
        raise
    except Exception as error:
        raise BadPicture(f"cannot be decoded ({short(error)})") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The pixels turned according to the EXIF orientation (TIFF 6.0, Orientation)."""
    if orientation in (2, 3):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4):
        pixels = pixels[::-1]
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (7, 8):
        pixels = pixels[::-1]
    return pixels


def shown(path: Path, turn: bool) -> NDArray[np.uint8]:
    """An image as people see it (H×W×3), upright with `turn`; also TIFFs that Pillow cannot read, with 16
    bits or many bands. Raises UserError."""
    try:
        return viewed.read(path, turn)
    except UserError as error:
        try:
            content = read_file(path)
            if not is_tiff(content):
                raise error
            return for_eyes(read(content))
        except BadPicture as bad:
            raise UserError(f"{path} {bad}") from None


def for_eyes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """H×W×3 uint8 for display: three bands, other depths stretched from the 1st to the 99th percentile."""
    pixels = (np.repeat(pixels, 3, 2) if pixels.shape[2] < 3 else pixels)[..., :3]
    if pixels.dtype != np.uint8:
        step = max(1, min(pixels.shape[:2]) // 1024)
        low, high = np.percentile(pixels[::step, ::step], (1, 99))
        stretched = np.empty(pixels.shape, np.uint8)
        for row, values in enumerate(pixels):  # by rows: a large image at once would take 48 bytes per pixel
            stretched[row] = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
        return stretched
    return np.ascontiguousarray(pixels)


def grey_of(pixels: NDArray[Any]) -> NDArray[Any]:
    """One band for the hash: the mean of the first three, small."""
    step = max(1, min(pixels.shape[:2]) // 128)
    some = pixels[::step, ::step]
    some = some[..., :3].astype(np.float32).mean(2) if some.ndim == 3 else some.astype(np.float32)
    low, high = float(some.min()), float(some.max())
    if pixels.dtype == np.uint8:
        return some.astype(np.uint8)
    return ((some - low) / max(high - low, 1e-9) * 255).astype(np.uint8)


def describe(found: Picture, grey: NDArray[Any]) -> None:
    """Adds hash and thumbnail."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    found.hash = int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
    found.thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()


def read_file(path: Path) -> bytes:
    """A file's content. Raises BadPicture if it is not a regular file: a pipe or device may never end.

    A path below a packed dataset's container means a file in it.
    """
    try:
        # Otherwise opening a pipe would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadPicture("is no file but a pipe, a folder or a device")
            return file.read()
    except FileNotFoundError:
        raise BadPicture("is not there") from None
    except NotADirectoryError:
        return read_packed(path)
    except (IsADirectoryError, PermissionError) as error:
        raise BadPicture(f"cannot be read: {error.strerror}") from None


def read_packed(path: Path) -> bytes:
    for above in path.parents:
        if above.name == packed.NAME:
            try:
                return packed.opened(above).read(path.relative_to(above).as_posix())
            except KeyError:
                break
            except UserError as error:
                raise BadPicture(str(error)) from None
    raise BadPicture("is not there")
