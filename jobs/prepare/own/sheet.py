"""contact.html: shows what the dataset looks like, on one self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.catalog.classes import IGNORED
from jobs.prepare.own import images, scan
from jobs.prepare.own.build import pixels_of
from jobs.prepare.own.config_file import Description
from jobs.prepare.own.findings import Finding, by_kind
from jobs.prepare.own.judge import Pair, by_class
from jobs.prepare.own.scan import How

SIDE = 240
"""Longer side of a thumbnail, in pixels."""
EACH, MOST = 3, 90
"""Images per class, and in total."""

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}
table.f td{overflow-wrap:anywhere}td.n,th.n{text-align:right}span{display:inline-flex;align-items:baseline}
i{flex:none;width:1em;height:1em;border:1px solid #888;margin-right:.4em;align-self:center}
figure{margin:.3em 0 .8em}figcaption{font-size:12px;color:#555;overflow-wrap:anywhere}
figure div{display:flex;gap:3px}img{max-width:calc(33.3% - 2px);height:auto;object-fit:contain}
"""


def page(
    made: Description, pairs: Sequence[Pair], how: How, table: dict[int, int], found: Sequence[Finding]
) -> bytes:
    """UTF-8 HTML: figures, findings, and for each class example images with their masks."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{escape(made.name)}</title><style>{STYLE}</style>",
        f"<h1>{escape(made.name)}</h1>",
        f"<p>{made.images['train']:,} images to train on, {made.images['val']:,} to validate on; "
        f"bands: {made.bands.bands}, of {made.bands.dtype}; mean {numbers(made.mean)}; "
        f"deviation {numbers(made.std)}.</p>",
        figures(made),
        findings(found),
        "<h2>Each class: image, mask, and where the class is</h2>",
    ]
    each = max(1, min(EACH, MOST // len(made.classes)))
    for label, name in enumerate(made.classes):
        parts.append(f"<h3>{named(made.palette[label], name)}</h3>")
        chosen = examples(pairs, table, label, each)
        parts += [example(item, row, how, table, made, label) for item, row in chosen]
        if not chosen:
            parts.append("<p>No mask has it.</p>")
    return "\n".join(parts).encode("utf-8", "replace")


def figures(made: Description) -> str:
    rows = "".join(
        f"<tr><td>{label}<td>{named(made.palette[label], name)}<td class=n>{share:.3%}<td class=n>{weight:g}"
        for label, (name, share, weight) in enumerate(
            zip(made.classes, made.frequencies, made.weights, strict=True)
        )
    )
    return (
        "<table><tr><th>label<th>class<th class=n>share of the training pixels"
        "<th class=n>median-frequency weight"
        f"{rows}</table>"
    )


def findings(found: Sequence[Finding]) -> str:
    rows = "".join(
        f"<tr><td>{escape(group[0].kind)}<td class=n>{len(group):,}"
        f"<td>{escape(group[0].file)} {escape(group[0].text)}<td>{escape(group[0].fix)}"
        for group in by_kind(found)
    )
    if not rows:
        return "<p>The checks found nothing.</p>"
    heads = "<tr><th>what<th class=n>files<th>the first<th>what to do"
    return f"<h2>Findings</h2><table class=f>{heads}{rows}</table>"


def named(colour: Sequence[int], name: str) -> str:
    return f"<span><i style='background:rgb({','.join(map(str, colour))})'></i>{escape(name)}</span>"


def numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def examples(pairs: Sequence[Pair], table: dict[int, int], label: int, number: int) -> list[Pair]:
    """Images with a class: the one with most of it, one in the middle, and one with little."""
    having = [(by_class(row, table).get(label, 0), item.name, item, row) for item, row in pairs]
    there = sorted((one for one in having if one[0]), key=lambda one: (-one[0], one[1]))
    picks = (
        sorted({round(at * (len(there) - 1) / max(1, number - 1)) for at in range(number)}) if there else []
    )
    return [(there[at][2], there[at][3]) for at in picks]


def example(item: Any, row: Any, how: How, table: dict[int, int], made: Description, label: int) -> str:
    labels = scan.labels_of(item, row, how, table)
    pixels = pixels_of(item, row, how)
    scale = SIDE / max(labels.shape)
    size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
    image = cv2.resize(images.for_eyes(small(pixels, size)), size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(made.palette)] = made.palette
    palette[IGNORED] = 224
    overlay = highlighted(image, mask == label, palette[label])
    pictures = "".join(
        data_url(one, kind) for one, kind in ((image, "JPEG"), (palette[mask], "PNG"), (overlay, "JPEG"))
    )
    caption = f"{escape(item.name)} ({item.split}), {(labels == label).mean():.2%} of its pixels"
    return f"<figure><div>{pictures}</div><figcaption>{caption}</figcaption></figure>"


def highlighted(image: NDArray[Any], there: NDArray[Any], colour: NDArray[Any]) -> NDArray[Any]:
    """The image, tinted in a class's colour where the class is, and darkened elsewhere, or brightened if the
    colour is dark."""
    away = 0 if colour.mean() >= 96 else 128
    return np.where(there[..., None], image * 0.4 + colour * 0.6, image // 2 + away).astype(np.uint8)


def small(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Subsamples a large image, before further computation."""
    step = max(1, min(pixels.shape[1] // size[0], pixels.shape[0] // size[1]) // 2)
    return pixels[::step, ::step]


def data_url(pixels: NDArray[Any], kind: str) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    coded = base64.b64encode(content.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f"<img width={width} height={height} alt='' src='data:image/{kind.lower()};base64,{coded}'>"
