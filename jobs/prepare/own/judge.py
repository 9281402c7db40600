"""From the rows of a scan to findings, and to the dataset's properties: bands, classes, sizes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from jobs.catalog.classes import IGNORED, Classes
from jobs.prepare.own import masks
from jobs.prepare.own.findings import Finding, error, visible, warning
from jobs.prepare.own.images import THUMB
from jobs.prepare.own.scan import How, Row, shown
from jobs.prepare.own.sources import SPLITS, Item

NEARLY_EMPTY = 0.0005
"""Fraction of the pixels below which an annotation is probably accidental."""
NEARLY_IGNORED = 0.999
HASH_BITS = 5
"""Bits of a dHash in which two pictures of the same scene may differ, and the thumbnails' mean difference
relative to their contrast: found with re-encoded, resized and slightly cropped copies."""
SAME = 0.2
LEAST_CONTRAST = 3.0
"""Minimum contrast of a thumbnail, in grey levels: flatter ones all look the same."""

Pair = tuple[Item, Row]


def judge(pairs: Sequence[Pair], how: How, table: dict[int, int]) -> list[Finding]:
    """All findings, per file and overall. `table`: label mask value -> class."""
    found: list[Finding] = []
    for item, row in pairs:
        found += of_one(item, row, how, table)
    found += grey_among_colours(pairs, how)
    found += of_classes(pairs, how.classes, table)
    found += duplicates(pairs)
    for split in SPLITS:
        if pairs and not any(item.split == split for item, _ in pairs):
            found.append(error("empty split", "", f"no image to {split} on", "--split, or other lists"))
    return found


def of_one(item: Item, row: Row, how: How, table: dict[int, int]) -> list[Finding]:
    found = of_files(item, row, how, table)
    if item.kind != "coco":
        return found
    # One file has the annotations of many images.
    return [
        msgspec.structs.replace(one, text=f"{visible(item.name)}: {one.text}")
        if one.file == visible(item.mask)
        else one
        for one in found
    ]


def of_files(item: Item, row: Row, how: How, table: dict[int, int]) -> list[Finding]:
    files = {"image": item.image, "mask": item.mask}
    found = [error(one.kind, files[one.file], one.text, one.fix) for one in row.problems]
    picture = row.picture
    if picture and row.mask_size and row.mask_size != shown(picture, how.ignore_exif):
        found.append(wrong_size(item, row, how))
    elif picture and picture.orientation != 1 and not how.ignore_exif and picture.width == picture.height:
        text = "is square and EXIF turns it: whether its mask is turned too cannot be seen"
        found.append(
            warning("EXIF turned", item.image, text, "look at it in the contact sheet, or use --ignore-exif")
        )
    if picture and picture.alpha:
        found.append(
            warning("transparent", item.image, "is transparent in parts", "the colours below are trained on")
        )
    if not row.values:
        return found
    outside = {} if row.classes else {value: n for value, n in row.values.items() if value not in table}
    if outside:
        found.append(error("label outside", item.mask, *outside_text(outside, how.classes, table)))
        return found
    counts = by_class(row, table)
    total, ignored = sum(counts.values()), counts.get(IGNORED, 0)
    background = how.classes.background
    drawn = total - ignored - (counts.get(background, 0) if background is not None else 0)
    if ignored >= NEARLY_IGNORED * total:
        text = f"{ignored / total:.1%} of it does not count"
        found.append(warning("nothing labelled", item.mask, text, "label it, or move it away with its image"))
    elif background is not None and 0 < drawn < NEARLY_EMPTY * total:
        text = f"only {drawn:,} of {total:,} pixels are more than background"
        found.append(warning("nearly empty", item.mask, text, "check whether it is a labelling slip"))
    elif background is not None and not drawn:
        found.append(
            warning("empty", item.mask, "all of it is background", "fine if nothing is on the image")
        )
    return found


def grey_among_colours(pairs: Sequence[Pair], how: How) -> list[Finding]:
    """Errors for grey masks among colour masks that, as colours, would mean other classes, or none:
    optimizers save an all-black colour picture as grey. (For a palette, the colours are known.)"""
    if how.kind != "auto" or not any(row.mask_kind == "colours" for _, row in pairs):
        return []
    found = []
    values, colours = how.classes.values, how.classes.colours
    for item, row in pairs:
        if row.mask_kind != "labels" or row.palette:
            continue
        greys = {value: (value * 255 if row.one_bit else value,) * 3 for value in row.values}
        said = (masks.contradiction(value, colour, how.classes) for value, colour in greys.items())
        if text := next(filter(None, said), ""):
            text = f"is grey, and others are of colours: {text}"
            found.append(error("colours contradict", item.mask, text, masks.BY_WHAT))
        elif any(
            values.get(value, IGNORED) not in (IGNORED, colours.get(grey)) for value, grey in greys.items()
        ):
            text = "is grey, and others are of colours: its values are taken for labels"
            fix = "if it is of colours too, save it in those of the classes file"
            found.append(warning("labels among colours", item.mask, text, fix))
    return found


def wrong_size(item: Item, row: Row, how: How) -> Finding:
    assert row.picture
    assert row.mask_size
    (width, height), (w, h) = shown(row.picture, how.ignore_exif), row.mask_size
    text = f"is {w}×{h}, its image {width}×{height}"
    if row.picture.orientation > 4 and (w, h) == (height, width):
        text += " as its EXIF orientation turns it"
        fix = "turn the masks, or say --ignore-exif: images are then trained on as they are stored"
        return error("EXIF turned", item.mask, text, fix)
    return error("sizes differ", item.mask, text, "export mask and image at one size")


def outside_text(outside: dict[int, int], classes: Classes, table: dict[int, int]) -> tuple[str, str]:
    named = ", ".join(f"{value} ({n:,} pixels)" for value, n in list(outside.items())[:8])
    more = f" and {len(outside) - 8:,} more values" if len(outside) > 8 else ""
    known = sorted(value for value, label in table.items() if label != IGNORED)
    meant = f"{known[0]} to {known[-1]}" if known == list(range(known[0], known[-1] + 1)) else f"{known}"
    text = f"has the value {named}{more}; the {len(classes.names)} classes are {meant}, ignored is {IGNORED}"
    if len(outside) > 16:
        return text, "if it is smoothed, save it without; if its colours are meant, --mask-kind colours"
    return text, "add the class to the classes file, or `ignore value=N`"


def by_class(row: Row, table: dict[int, int]) -> Counter[int]:
    """Pixels by class, including IGNORED; values that are not labels are left out."""
    if row.classes:
        return Counter(row.values)
    counts: Counter[int] = Counter()
    for value, n in row.values.items():
        if value in table:
            counts[table[value]] += n
    return counts


def values_table(pairs: Sequence[Pair], how: How) -> tuple[dict[int, int], list[Finding]]:
    """Label mask value -> class: from the classes file, or 0 and 255 for two classes; and findings."""
    classes = how.classes
    of_labels = [(item, row) for item, row in pairs if not row.classes and row.mask_kind]
    if len(classes.names) != 2 or classes.numbered or how.kind not in ("auto", "binary"):
        return classes.values, one_bit(of_labels, how)
    ones = [item.mask for item, row in of_labels if 1 in row.values]
    whites = [item.mask for item, row in of_labels if IGNORED in row.values]
    both, name = set(ones) & set(whites), classes.names[1]
    if how.kind == "binary":
        text, fix = (
            f"has 1 and 255: which of them is {name!r}?",
            "let it have one of them, or --mask-kind labels",
        )
        return {0: 0, 1: 1, 255: 1}, [error("label outside", mask, text, fix) for mask in sorted(both)]
    if ones and whites and not both:
        # Optimizers turn 0/255 masks into 1-bit ones, whose values are 0 and 1.
        text = f"has 255 and no 1, {ones[0]} 1 and no 255: whether both are {name!r} cannot be seen"
        fix = "--mask-kind binary if they are; --mask-kind labels if 255 does not count"
        return classes.values, [error("0/255 masks", whites[0], text, fix)]
    if whites and {value for _, row in of_labels for value in row.values} == {0, 255}:
        text = f"masks are 0 and 255: 255 is taken for {name!r}"
        fix = "nothing to do if so; `ignore value=255` and values of the classes in the classes file if not"
        return {0: 0, 255: 1}, [warning("0/255 masks", "", text, fix)]
    return classes.values, one_bit(of_labels, how)


def one_bit(of_labels: Sequence[Pair], how: How) -> list[Finding]:
    """Errors for 1-bit masks among others that have 255: their white may mean label 1 or 255, because
    optimizers turn 0/255 masks into 1-bit ones."""
    if how.kind != "auto" or not any(IGNORED in row.values for _, row in of_labels):
        return []
    text = "has 1 bit, and other masks 255: whether its white is 1 or 255 cannot be seen"
    fix = "save it with 8 bits; --mask-kind labels if it is 1"
    bits = [item.mask for item, row in of_labels if row.one_bit and 1 in row.values]
    return [error("label unclear", mask, text, fix) for mask in bits]


def of_classes(pairs: Sequence[Pair], classes: Classes, table: dict[int, int]) -> list[Finding]:
    pixels = {split: pixels_by_class(pairs, table, split) for split in SPLITS}
    found = []
    learnt = [name for label, name in enumerate(classes.names) if pixels["train"][label]]
    if len(learnt) == 1:
        # Such as 0/255 masks in which 255 is ignored: all metrics would be 100, and nothing is learnt.
        text = f"the training's masks have {learnt[0]!r} only, and what is ignored ({IGNORED})"
        fix = "two classes at least; of 0/255 masks in the classes file `value=255`, or two lines and no more"
        found.append(error("one class only", "", text, fix))
    if pixels["train"] and not learnt:
        text = f"no pixel of the training's masks counts: all are ignored ({IGNORED})"
        found.append(error("nothing to train on", "", text, "compare the masks with the classes file"))
    for label, name in enumerate(classes.names):
        there = [split for split in SPLITS if pixels[split].get(label)]
        if not there:
            found.append(warning("class nowhere", "", f"no mask has {name!r}", "its IoU will be no number"))
        elif len(there) == 1 and all(pixels.values()):
            other = SPLITS[1 - SPLITS.index(there[0])]
            what = "cannot be learnt" if other == "train" else "is not measured"
            text = f"{name!r} is in {there[0]} only: it {what}"
            found.append(warning("class in one split", "", text, "another --seed, or lists"))
    return found


def pixels_by_class(pairs: Sequence[Pair], table: dict[int, int], split: str) -> Counter[int]:
    total: Counter[int] = Counter()
    for item, row in pairs:
        if item.split == split:
            total.update(by_class(row, table))
    return total


def frequencies(
    pairs: Sequence[Pair], classes: Classes, table: dict[int, int]
) -> tuple[list[float], list[float]]:
    """(fraction of each class in the training images' pixels that are not ignored, median-frequency weights).

    Weights as in Eigen & Fergus 2015: median(f) / f, where f is a class's fraction in the images that contain
    it; 1 for a class that does not occur.
    """
    total: Counter[int] = Counter()
    where: Counter[int] = Counter()
    for item, row in pairs:
        if item.split == "train":
            counts = by_class(row, table)
            counts.pop(IGNORED, None)
            size = sum(counts.values())
            total.update(counts)
            where.update(dict.fromkeys(counts, size))
    everything = sum(total.values()) or 1
    share = [
        total[label] / total_of if (total_of := where[label]) else 0.0 for label in range(len(classes.names))
    ]
    median = float(np.median([one for one in share if one] or [1.0]))
    weights = [round(median / one, 4) if one else 1.0 for one in share]
    return [round(total[label] / everything, 6) for label in range(len(classes.names))], weights


# --- what the images are ---


class Bands(msgspec.Struct):
    """How all images are read."""

    reader: str
    """colour (8 bits, three bands), grey (8 bits, one), png16 (OpenCV, 16 bits) or tiff (tifffile)."""
    bands: int
    dtype: str


USUAL = {(1, "uint8"), (3, "uint8")}
"""(bands, type) of grey and colour images."""


def bands_of(pairs: Sequence[Pair]) -> tuple[Bands, list[Finding]]:
    """One kind for all images, and findings for those that do not fit."""
    pictures = [(item, row.picture) for item, row in pairs if row.picture]
    kinds = Counter((one.bands, one.dtype) for _, one in pictures)
    # 8-bit grey and colour count as one kind: each can be read as the other.
    usual = USUAL & kinds.keys()
    others = Counter({kind: count for kind, count in kinds.items() if kind not in usual}).most_common(1)
    together = not others or sum(kinds[kind] for kind in usual) >= others[0][1]
    fitting = usual if together else {others[0][0]}
    bands, dtype = max(fitting, key=lambda kind: (kinds[kind], kind), default=(3, "uint8"))
    found = []
    for item, one in pictures:
        if (one.bands, one.dtype) not in fitting:
            text = f"has {describe(one.bands, one.dtype)}; most have {describe(bands, dtype)}"
            found.append(
                error("bands differ", item.image, text, "convert it, or train on each kind separately")
            )
    if together:
        grey = fitting == {(1, "uint8")}
        return Bands("grey" if grey else "colour", 1 if grey else 3, "uint8"), found
    png = dtype == "uint16" and bands in (1, 3) and {one.format for _, one in pictures} == {"PNG"}
    return Bands("png16" if png else "tiff", bands, dtype), found


def describe(bands: int, dtype: str) -> str:
    return f"{bands} band{'s' if bands > 1 else ''} of {dtype}"


# --- duplicates ---


def duplicates(pairs: Sequence[Pair]) -> list[Finding]:
    """Findings for validation images that are also, or nearly, among the training images."""
    sides: dict[str, list[Pair]] = defaultdict(list)
    for item, row in pairs:
        if row.picture and item.split:
            sides[item.split].append((item, row))
    train, val = sides["train"], sides["val"]
    found = []
    for at, other in near(train, val):
        (item, row), (twin, twin_row) = val[at], train[other]
        same = (row.image_digest, row.image_bytes) == (twin_row.image_digest, twin_row.image_bytes)
        text = f"is {'the same file as' if same else 'nearly the same as'} {twin.image}, which is trained on"
        found.append(
            warning(
                "in both splits",
                item.image,
                text,
                "keep images that belong together in one split: --group-by",
            )
        )
    return found


def near(train: list[Pair], val: list[Pair]) -> list[tuple[int, int]]:
    """(index in val, index in train) of near duplicates, at most one for each in val."""
    if not train or not val:
        return []
    hashes, thumbs = arrays(train)
    contrast = thumbs.std(1)
    exact = {(row.image_digest, row.image_bytes): number for number, (_, row) in enumerate(train)}
    found = []
    theirs, their_thumbs = arrays(val)
    for at, (_, row) in enumerate(val):
        twin = exact.get((row.image_digest, row.image_bytes))
        if twin is None and their_thumbs[at].std() >= LEAST_CONTRAST:
            close = np.flatnonzero(bits(hashes ^ theirs[at]) <= HASH_BITS)
            difference = np.abs(thumbs[close] - their_thumbs[at]).mean(1)
            fits = (difference <= SAME * contrast[close]) & (contrast[close] >= LEAST_CONTRAST)
            if fits.any():
                twin = int(close[fits][difference[fits].argmin()])
        if twin is not None:
            found.append((at, twin))
    return found


def arrays(pairs: list[Pair]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    hashes = np.array([row.picture.hash if row.picture else 0 for _, row in pairs], np.uint64)
    content = b"".join(row.picture.thumb if row.picture else b"" for _, row in pairs)
    return hashes, np.frombuffer(content, np.uint8).reshape(-1, THUMB * THUMB).astype(np.float32)


def bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The number of bits set in each (NumPy 1 has no bitwise_count)."""
    return BITS[values.view(np.uint16).reshape(-1, 4)].sum(1)


BITS = np.array([bin(value).count("1") for value in range(1 << 16)], np.int64)
