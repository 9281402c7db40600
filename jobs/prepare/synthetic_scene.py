"""One picture of the stand-in for VOC and SBD, with its masks in both formats."""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.uint8]

# (width, height) of the real masks at 500 px, and how many of 12,031 have it.
SHAPES = [((500, 375), 5025), ((500, 333), 1559), ((375, 500), 1042), ((333, 500), 378), ((500, 334), 289)]


@dataclass(frozen=True)
class Scene:
    """One image with its labels; shared by many ids if pooled."""

    jpeg: bytes
    mask: Mask
    cls_mat: bytes
    inst_mat: bytes
    class_png: bytes
    object_png: bytes


def make_scene(seed: int, number: int, size: int, classes: int, jpeg_bytes: int) -> Scene:
    """Draws scene `number`: one to three objects of `classes` classes on a grey ground.

    `jpeg_bytes` > 0 adds noise until the JPEG is about as large as that.
    """
    rng = np.random.default_rng([seed, number])
    weights = np.array([count for _, count in SHAPES], float)
    width, height = SHAPES[rng.choice(len(SHAPES), p=weights / weights.sum())][0]
    width, height = max(16, round(width * size / 500)), max(16, round(height * size / 500))

    instances = Image.new("L", (width, height))
    labels = []
    wanted = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    for index in range(wanted):
        # The first object's class goes round, so that every class occurs in any handful of images.
        label = 1 + (number % classes if index == 0 else int(rng.integers(classes)))
        ImageDraw.Draw(instances).polygon(outline(rng, width, height), fill=index + 1)
        labels.append(label)
    instance = np.asarray(instances, np.uint8)
    if instance.max() == 0:
        instance = instance.copy()
        instance[: height // 2, : width // 2] = 1
    seen = [i for i in range(1, wanted + 1) if (instance == i).any()]
    instance = np.searchsorted([0, *seen], instance).astype(np.uint8)
    labels = [labels[i - 1] for i in seen]
    mask = np.array([0, *labels], np.uint8)[instance]

    return Scene(
        jpeg=jpeg_of(rng, mask, instance, jpeg_bytes),
        mask=mask,
        cls_mat=cls_mat(mask),
        inst_mat=inst_mat(instance, labels),
        class_png=palette_png(mask),
        object_png=palette_png(instance),
    )


def outline(rng: np.random.Generator, width: int, height: int) -> list[tuple[float, float]]:
    """A closed shape with limbs and wiggles, like a hand-drawn outline."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = np.ones_like(angle)
    for k in range(2, 9):
        radius += rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius = radius.clip(0.4, 2) * min(width, height) * rng.uniform(0.18, 0.38)
    stretch = rng.uniform(0.75, 1.3)
    x = rng.uniform(0.2, 0.8) * width + radius * np.cos(angle) * stretch
    y = rng.uniform(0.2, 0.8) * height + radius * np.sin(angle) / stretch
    return list(zip(x.tolist(), y.tolist(), strict=True))


def jpeg_of(rng: np.random.Generator, mask: Mask, instance: Mask, jpeg_bytes: int) -> bytes:
    height, width = mask.shape
    y, x = np.mgrid[:height, :width]
    ground = rng.uniform(90, 160) + 25 * np.sin(x / rng.uniform(9, 25) + y / rng.uniform(9, 25))
    image = np.repeat(ground[..., None], 3, axis=2)
    for index in range(1, int(instance.max()) + 1):
        here = instance == index
        label = int(mask[here][0])
        # Hues by the golden angle: far from each other for neighbouring labels; two stripe directions.
        colour = 255 * np.array(colorsys.hsv_to_rgb((label - 1) * 0.381966 % 1, 0.9, 0.9))
        phase = (x + y) if label % 2 else (x - y)
        stripes = 0.82 + 0.18 * np.sin(2 * np.pi * phase / (4 + label % 5 * 2))
        image[here] = colour * rng.uniform(0.85, 1.1) * stripes[here][:, None]
    quality, noise = 90, 8.0
    while True:
        noisy = image + rng.normal(0, noise, image.shape)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
        if buffer.tell() >= jpeg_bytes or noise > 200:
            return buffer.getvalue()
        noise *= 1.3


def cls_mat(mask: Mask) -> bytes:
    """A GTcls file: Boundaries (20×1 cell of sparse logical), Segmentation (uint8), CategoriesPresent."""
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    boundaries = np.empty((20, 1), object)
    for label in range(1, 21):
        boundaries[label - 1, 0] = csc_matrix(edge(mask == label))
    present = np.unique(mask)
    present = present[(present > 0) & (present < 21)].astype(np.uint8).reshape(-1, 1)
    buffer = io.BytesIO()
    struct = {"Boundaries": boundaries, "Segmentation": np.asfortranarray(mask), "CategoriesPresent": present}
    savemat(buffer, {"GTcls": struct}, do_compression=True)
    return buffer.getvalue()


def inst_mat(instance: Mask, labels: list[int]) -> bytes:
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    count = int(instance.max())
    boundaries = np.empty((count, 1), object)
    for index in range(count):
        boundaries[index, 0] = csc_matrix(edge(instance == index + 1))
    buffer = io.BytesIO()
    struct = {
        "Segmentation": instance.astype(float),
        "Boundaries": boundaries,
        "Categories": np.array(labels, float).reshape(-1, 1),
    }
    savemat(buffer, {"GTinst": struct}, do_compression=True)
    return buffer.getvalue()


def edge(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The 4-connected inner boundary; the image's border does not count."""
    padded = np.pad(area, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area & ~inner


def palette_png(mask: Mask) -> bytes:
    """A palette PNG like VOC's own masks, with a border of 255 around every object (5 px at 500 px)."""
    border = np.zeros(mask.shape, bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    for _ in range(2 if max(mask.shape) > 250 else 0):
        grown = border.copy()
        grown[1:] |= border[:-1]
        grown[:-1] |= border[1:]
        grown[:, 1:] |= border[:, :-1]
        grown[:, :-1] |= border[:, 1:]
        border = grown
    labels = np.where(border, np.uint8(255), mask)
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), labels.tobytes())
    image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def voc_palette() -> list[int]:
    """VOC's 256 colours: the bits of the index spread over the high bits of red, green and blue."""
    colours = []
    for index in range(256):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colours += colour
    return colours
