"""Reads images by windows and writes masks by blocks, with their georeference (rasterio, GDAL)."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.infer.tiles import Span
from jobs.mmseg import images
from jobs.run import windows
from jobs.run.errors import UserError, one_line

DRIVERS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG",
}  # fmt: skip
"""Formats read by windows, by the start of the file. GDAL has many more, some of which read whatever other
files they name."""

GEOGRAPHIC = {".tif", ".tiff"}
STAMP = "BATON"
BLOCK = 512
ROWS = 512
"""Rows of a finished mask in memory at a time."""


@contextlib.contextmanager
def opened(path: Path, cache: int = 1 << 28) -> Iterator[Any]:
    """An image from which any window can be read; `cache`: bytes of it that GDAL may cache.

    Raises UserError without rasterio, and for a file that it cannot read.
    """
    if why := windows.lacking():
        raise UserError(f"{path}: {why}")
    check_name(path)
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=cache):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            source = rasterio.open(path, driver=driver_of(path))
        except RasterioError as error:
            reason = one_line(error, 200)
            raise UserError(f"{path} cannot be read in tiles as a TIFF, PNG or JPEG: {reason}") from None
        with source:
            yield source


def check_name(path: Path) -> None:
    """Raises UserError for a path that cannot be passed to GDAL."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path} has bytes in its name that are not UTF-8: rename it") from None


def driver_of(path: Path) -> str:
    """The driver for a file. Raises UserError if it is none of DRIVERS."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise images.unreadable(path, error) from None
    for magic, driver in DRIVERS.items():
        if begin.startswith(magic):
            return driver
    raise UserError(f"{path} cannot be read in tiles: it is not a TIFF, PNG or JPEG")


def size(path: Path) -> tuple[int, int] | None:
    """Width and height of what GDAL can read, such as a TIFF with many bands; else None."""
    try:
        with opened(path) as source:
            return source.width, source.height
    except UserError:
        return None


def cache_for(source: Any, rows: int) -> int:
    """Cache bytes for a row of tiles: PNGs, and TIFFs in strips, are decoded by whole rows of pixels."""
    row = source.width * source.count * np.dtype(source.dtypes[0]).itemsize
    return int(min(1 << 30, (1 << 26) + row * (rows * 5 // 4 + BLOCK)))


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a georeferenced TIFF, as far as can be determined here. Raises UserError for one that
    may be but whose name GDAL cannot take."""
    if path.suffix.lower() not in GEOGRAPHIC or windows.lacking():
        return False
    check_name(path)
    try:
        with opened(path) as source:
            return bool(place(source))
    except UserError:
        return False


def place(source: Any) -> dict[str, Any]:
    """An image's georeference, as far as it has one: `crs`, `transform`, `gcps` (in `crs`), `rpcs`."""
    points, crs = source.gcps
    found = {"crs": source.crs or crs, "gcps": points, "rpcs": source.rpcs}
    if not source.transform.is_identity and not points:
        found["transform"] = source.transform
    return {key: value for key, value in found.items() if value}


def write_window(source: Any, rows: Span, columns: Span, path: Path) -> None:
    """Writes a window as an image of its own, with the same bands, bits and values, uncompressed.

    For fewer than 8 bits, GDAL returns the raw values, such as 0 and 1 for black and white. Whether these
    become 0 to 255 is up to the loader: so they have to be stored in the tile as in the image.

    Raises UserError for what cannot be read.
    """
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    try:
        values = source.read(window=Window.from_slices(rows, columns))
    except RasterioError as error:  # its own message says nothing
        raise images.unreadable(Path(source.name), error.__cause__ or error) from None
    kinds: dict[str, Any]
    if source.driver == "GTiff":
        # GDAL converts CMYK and the like to RGBA, which fewer loaders can read in planes.
        as_is = source.count > 1 and "SOURCE_COLOR_SPACE" not in source.tags(ns="IMAGE_STRUCTURE")
        planes = source.interleaving.value.lower() if as_is else "pixel"
        kinds = {"driver": "GTiff", "interleave": planes, "photometric": photometric(source)}
        kinds |= {"alpha": "PREMULTIPLIED"} if is_premultiplied(source) else {}
    else:
        kinds = {"driver": "PNG", "zlevel": 1}
    if bits := source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
        kinds["nbits"] = bits
    with rasterio.open(
        path, "w", width=columns[1] - columns[0], height=rows[1] - rows[0], count=source.count,
        dtype=source.dtypes[0], **kinds,
    ) as tile:  # fmt: skip
        if not colourless(source):
            with contextlib.suppress(ValueError):  # it has none
                tile.write_colormap(1, source.colormap(1))
            tile.colorinterp = source.colorinterp
        if transparent := source.tags().get("NODATA_VALUES"):  # a PNG's one colour
            tile.update_tags(NODATA_VALUES=transparent)
        tile.write(values)


def photometric(source: Any) -> str:
    """The photometric interpretation for an uncompressed TIFF with the same colours."""
    names = {"red": "rgb", "palette": "palette"}
    return colourless(source) or names.get(source.colorinterp[0].name, "minisblack")


def is_premultiplied(source: Any) -> bool:
    """Whether a TIFF's colours are premultiplied with alpha, which GDAL does not tell: a reader would
    multiply a tile's again."""
    if all(one.name != "alpha" for one in source.colorinterp):
        return False
    import tifffile

    with tifffile.TiffFile(source.name) as file:
        extra = file.pages.first.extrasamples
    return bool(extra) and extra[-1] == tifffile.EXTRASAMPLE.ASSOCALPHA


def colourless(source: Any) -> str:
    """The photometric interpretation of a grey TIFF for which GDAL makes up a palette; "" for others."""
    if source.driver != "GTiff":
        return ""
    if source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
        return "miniswhite"
    with contextlib.suppress(ValueError):  # there is no palette
        if source.colormap(1) == {0: (0, 0, 0, 255), 1: (255, 255, 255, 255)}:
            return "minisblack"
    return ""


RowsOf = Callable[[int, int], np.ndarray]
"""Returns the labels of a range of rows (h × W)."""


def write_mask(path: Path, labels: RowsOf, like: Any, dtype: Any, colours: np.ndarray, stamp: str) -> None:
    """Writes a mask of the size of the image `like`, as GeoTIFF or (by the path's suffix) PNG, and verifies
    it by reading it back: it exists complete and correct, or not at all.

    `colours`: from pictures.table, for up to 256 classes. Raises OSError if it reads back differently.
    """
    import rasterio
    from rasterio import shutil
    from rasterio.windows import Window

    # One of two processes that write the same mask must not take the other's.
    own = f".{path.stem}.{secrets.token_hex(4)}.tmp"
    tif = path.with_name(f"{own}.tif")
    file = tif
    try:
        given = place(like)
        profile = {key: given[key] for key in ("crs", "transform", "gcps", "rpcs") if key in given}
        with rasterio.open(
            tif, "w", driver="GTiff", width=like.width, height=like.height, count=1, dtype=dtype,
            compress="deflate", tiled=True, blockxsize=BLOCK, blockysize=BLOCK, BIGTIFF="IF_SAFER", **profile,
        ) as mask:  # fmt: skip
            mask.update_tags(**{STAMP: stamp})
            if len(colours) <= 256:
                mask.write_colormap(1, {number: (*map(int, one), 255) for number, one in enumerate(colours)})
            for top in range(0, like.height, ROWS):
                part = labels(top, min(top + ROWS, like.height))
                mask.write(part, 1, window=Window(0, top, like.width, len(part)))
        if path.suffix == ".png":
            file = path.with_name(f"{own}.png")
            shutil.copy(tif, file, driver="PNG", DESCRIPTION=stamp, ZLEVEL=6)
        with opened(file) as mask:
            for top in range(0, like.height, ROWS):
                part = labels(top, min(top + ROWS, like.height))
                if not np.array_equal(part, mask.read(1, window=Window(0, top, like.width, len(part)))):
                    raise OSError(f"{path} does not read back as it was written, at row {top}")
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        os.replace(file, path)
    finally:
        for left in (tif, file, Path(f"{file}.aux.xml")):
            left.unlink(missing_ok=True)


def is_stamped(path: Path, stamp: str) -> bool:
    """Whether a TIFF has this stamp."""
    try:
        with opened(path) as mask:
            return bool(mask.tags().get(STAMP) == stamp)
    except UserError:
        return False


def reduced(source: Any, most: int) -> np.ndarray:
    """An image (h × w × 3), or a single-band one or mask (h × w), subsampled to at most `most` pixels per
    side. Palettes are resolved, and fewer than 8 bits scaled to 0 to 255."""
    step = max(1, -(-max(source.width, source.height) // most))
    shape = (-(-source.height // step), -(-source.width // step))
    bands = [1, 2, 3] if source.count >= 3 else [1]
    found = source.read(bands, out_shape=(len(bands), *shape))
    if source.colorinterp[0].name == "palette":
        colours = np.zeros((1 << 16, 3), np.uint8)
        for number, colour in source.colormap(1).items():
            colours[number] = colour[:3]
        return colours[found[0]]
    if (few := int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))) < 8:
        found = found * (255 // ((1 << few) - 1))
    return np.asarray(found.transpose(1, 2, 0) if len(bands) == 3 else found[0])
