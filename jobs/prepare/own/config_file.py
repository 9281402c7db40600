"""The config that trains on the dataset: it inherits from an existing one, and sets what is the data's."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from jobs.catalog.classes import IGNORED, Colour
from jobs.prepare.own.judge import Bands
from jobs.prepare.progress import say
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError, in_a_line

MOST_CROP = 512
MOST_SIDE = 1024
"""The most for the shorter side to which whole images are resized; crops are not affected."""
SMALLEST = 32
"""The backbone's stride, of which sides are multiples."""
LEAST_CROP = {"LRASPPHead": 416}
"""It pools 49 × 49 features, one per 8 × 8 pixels: 392, rounded up to a multiple of SMALLEST."""
ONE_SIZE = ("BEiT", "MAE")
"""Backbones whose position embeddings are for one image size, `img_size`."""
ENOUGH = 64
"""Number of training images from which an epoch's last, smaller batch is dropped: a single image in it would
have no statistics for batch normalisation."""

GREY_AS_COLOUR = "grey as colour"
"""A reader, as in Bands: grey images as three equal bands, for a base with pretrained weights."""

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
"""What the recipe's pretrained weights were trained with (mean, standard deviation)."""


class Description(msgspec.Struct):
    """dataset.json: what the dataset is."""

    name: str
    request: str
    """A digest of what it was made from and how."""
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    bands: Bands
    ignore_exif: bool
    suffix: str
    """The images' suffix; "" if the names in the lists include it."""
    images: dict[str, int]
    """Number of images by split."""
    short_side: int
    """Median of the images' shorter sides, in pixels."""
    mean: list[float]
    std: list[float]
    frequencies: list[float]
    """Fraction of each class in the training images' pixels that are not ignored."""
    weights: list[float]
    """Median-frequency weights."""
    masks: str
    """The kind of the original masks: labels, colours, coco, labelme, …"""
    links: int
    """Number of files that are hard links to the user's."""


def crop_of(made: Description, asked: str, model: dict[str, Any]) -> int:
    """The side of the crops, in pixels: 512, or less for smaller images, but at least what the base's model
    needs. Raises UserError if less was asked for."""
    least = max(LEAST_CROP.get(str(head.get("type")), 0) for head in heads_of(model))
    if asked and int(asked) < least:
        raise UserError(f"--crop {asked}: the model of --base needs {least} at least")
    if asked and int(asked) % divisor_of(model):
        raise UserError(f"--crop {asked}: the model of --base takes only multiples of {divisor_of(model)}")
    return int(asked) if asked else max(least, min(MOST_CROP, side_of(made)))


def side_of(made: Description) -> int:
    return max(SMALLEST, min(MOST_SIDE, made.short_side // SMALLEST * SMALLEST))


def text_of(made: Description, base: str, model: dict[str, Any], crop: int, weighted: bool) -> str:
    """The config's text. `model`: the base's. Raises UserError for a model that cannot be fitted."""
    if model.get("text_encoder"):
        raise UserError(
            "--base: its model knows the classes by name (text_encoder, as in SAN), which cannot be "
            "adapted: choose another base"
        )
    backbone = model.get("backbone") or {}
    begins_with_weights = bool(model.get("pretrained") or backbone.get("init_cfg"))
    if begins_with_weights and made.bands.reader == "grey":
        made = msgspec.structs.replace(made, bands=Bands(GREY_AS_COLOUR, 3, "uint8"))
    side = max(side_of(made), crop if made.short_side >= crop else SMALLEST)
    one_size = backbone.get("type") in ONE_SIZE
    lines = [
        f"_base_ = {json.dumps(base)}",
        "",
        f"# Measured, with the share of each class in the pixels: data/{made.name}/dataset.json; to look at:",
        f"# data/{made.name}/contact.html.",
        f"classes = {made.classes!r}",
        f"palette = {[list(colour) for colour in made.palette]!r}",
        f"crop_size = ({crop}, {crop})",
        f"scale = ({4 * side}, {side})",
        "",
        "train_pipeline = [",
        *(f"    {step}," for step in train_steps(made, model)),
        "]",
        "test_pipeline = [",
        *(f"    {step}," for step in test_steps(made)),
        "]",
        "",
        "model = dict(",
        f"    data_preprocessor={preprocessor(made, padding(model))},",
    ]
    if one_size:
        stride = crop * 2 // 3
        lines.append(f'    test_cfg=dict(mode="slide", crop_size=crop_size, stride=({stride}, {stride})),')
    of_backbone = ["img_size=crop_size"] if one_size else []
    if made.bands.bands != 3:
        of_backbone.append(f"in_channels={made.bands.bands}")
        if begins_with_weights:
            lines.append(
                "    # The weights that the base begins with are for three bands: it begins without."
            )
            lines.append("    pretrained=None,")
            of_backbone += ["init_cfg=None"] if backbone.get("init_cfg") else []
    if of_backbone:
        lines.append(f"    backbone=dict({', '.join(of_backbone)}),")
    for name in ("decode_head", "auxiliary_head"):
        if model.get(name):
            lines.append(f"    {name}={head_text(name, model, made, weighted)},")
    lines += [")", ""]
    for split in ("train", "val"):
        extra = ", drop_last=True" if split == "train" and made.images["train"] >= ENOUGH else ""
        lines += dataset_lines(made, split, extra)
    lines += ["test_dataloader = val_dataloader", ""]
    # Names may contain what mmengine would take for templates.
    return "\n".join(lines).replace("{{", "{\\x7b")


def loader(made: Description) -> str:
    kind = made.bands.reader
    if kind == "tiff":
        return 'dict(type="LoadImageFromFile", imdecode_backend="tifffile", to_float32=True)'
    if kind == "png16":
        return 'dict(type="LoadImageFromFile", color_type="unchanged", to_float32=True)'
    colour = "grayscale" if kind == "grey" else "color"
    if made.ignore_exif:
        colour += "_ignore_orientation"
    return (
        'dict(type="LoadImageFromFile")'
        if colour == "color"
        else (f'dict(type="LoadImageFromFile", color_type="{colour}")')
    )


def train_steps(made: Description, model: dict[str, Any]) -> list[str]:
    steps = [
        loader(made),
        'dict(type="LoadAnnotations")',
        'dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True)',
        'dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75)',
        'dict(type="RandomFlip", prob=0.5)',
    ]
    if made.bands.reader == "colour":  # hue and saturation need 8 bits and three bands
        steps.append('dict(type="PhotoMetricDistortion")')
    if any(head.get("type") == "PIDHead" for head in heads_of(model)):  # which learns the classes' edges, too
        steps.append('dict(type="GenerateEdge", edge_width=4)')
    return [*steps, 'dict(type="PackSegInputs")']


def test_steps(made: Description) -> list[str]:
    return [
        loader(made),
        'dict(type="Resize", scale=scale, keep_ratio=True)',
        'dict(type="LoadAnnotations")',
        'dict(type="PackSegInputs")',
    ]


def preprocessor(made: Description, padded: str = "") -> str:
    # The pretrained weights of colour images were trained with ImageNet's figures.
    reader = made.bands.reader
    mean, std = IMAGENET if reader in ("colour", GREY_AS_COLOUR) else (made.mean, made.std)
    swapped = made.bands.bands == 3 and reader != "tiff"
    return (
        f"dict(mean={mean}, std={std}, bgr_to_rgb={swapped}, size=crop_size, seg_pad_val={IGNORED}{padded})"
    )


def padding(model: dict[str, Any]) -> str:
    """How images that are not cropped are padded, for a model that does not accept every size; its output is
    cropped accordingly."""
    kind = (model.get("backbone") or {}).get("type")
    if (model.get("data_preprocessor") or {}).get("test_cfg"):
        return ""
    if kind in ONE_SIZE or any(head.get("type") in LEAST_CROP for head in heads_of(model)):
        return ", test_cfg=dict(size=crop_size)"
    divisor = divisor_of(model)
    return f", test_cfg=dict(size_divisor={divisor})" if divisor > 1 else ""


def divisor_of(model: dict[str, Any]) -> int:
    """The number of which image sides have to be multiples for the base's model."""
    backbone = model.get("backbone") or {}
    # DDRNet and PIDNet add features of an eighth of the size to others that were made smaller and larger
    # again. UNet halves the size at each stage but the first, unless told otherwise (`downsamples`).
    halved = sum(backbone.get("downsamples") or (True,) * 4)
    return {"DDRNet": 8, "PIDNet": 8, "UNet": 2**halved}.get(str(backbone.get("type")), 1)


def heads_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The heads that predict; the last one's prediction counts."""
    heads = model["decode_head"]
    return heads if isinstance(heads, list) else [heads]


def head_text(name: str, model: dict[str, Any], made: Description, weighted: bool) -> str:
    """The changes to a head; several are written out, because a config can only replace a list as a whole."""
    heads = model[name]
    if not isinstance(heads, list):
        return written(changes(name, heads, made, weighted))
    last = heads_of(model)[-1]
    fitted = []
    for head in heads:
        # Others predict something else, such as STDC's edges.
        if head.get("num_classes") == last.get("num_classes"):
            for key, value in changes(name, head, made, weighted).items():
                head = {**head, key: {**head[key], **value} if isinstance(value, dict) else value}
        fitted.append(head)
    return written(fitted)


def written(value: Any) -> str:
    """Plain values as written in a config, with each of several heads on its own line."""
    if isinstance(value, dict) and all(str(key).isidentifier() for key in value):
        return f"dict({', '.join(f'{key}={written(one)}' for key, one in value.items())})"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "[\n" + "".join(f"        {written(one)},\n" for one in value) + "    ]"
    return repr(value)


def changes(name: str, head: dict[str, Any], made: Description, weighted: bool) -> dict[str, Any]:
    """The changes to a head. Raises UserError if it cannot be adapted to other classes."""
    if "kernel_generate_head" in head:  # K-Net: one head that predicts, and several that refine it
        refining = [{**one, "num_classes": len(made.classes)} for one in head["kernel_update_head"]]
        drawing = changes(name, head["kernel_generate_head"], made, weighted)
        return {"kernel_update_head": refining, "kernel_generate_head": drawing}
    if "num_classes" not in head:
        raise UserError(
            f"--base: its {name} ({head.get('type')}) has no num_classes, so it cannot be adapted to your "
            "classes: choose another base"
        )
    changed: dict[str, Any] = {"num_classes": len(made.classes), "ignore_index": IGNORED}
    for key, loss in head.items():
        losses = loss if isinstance(loss, list) else [loss]
        fitted = [without_weights(one, head["num_classes"], len(made.classes)) for one in losses]
        if any(fitted):
            several = [{**one, **change} for one, change in zip(losses, fitted, strict=True)]
            changed[key] = several if isinstance(loss, list) else fitted[0]
    if weighted:
        loss = head.get("loss_decode")
        if not isinstance(loss, dict):
            what = "no loss_decode" if loss is None else "several losses"
            raise UserError(f"--class-weights: the {name} of --base has {what}: give them by hand")
        changed["loss_decode"] = {"class_weight": made.weights}
    return changed


def without_weights(loss: Any, before: int, count: int) -> dict[str, Any]:
    """The changes to a loss that has weights for the base's classes, of which there are `before`."""
    weights = loss.get("class_weight") if isinstance(loss, dict) else None
    if not isinstance(weights, list):
        return {}
    rest = weights[before:]  # Mask2Former has one more, for "no class"
    return {"class_weight": [1.0] * count + rest if rest else None}


def dataset_lines(made: Description, split: str, extra: str) -> list[str]:
    pipeline = "train_pipeline" if split == "train" else "test_pipeline"
    return [
        f"{split}_dataloader = dict(",
        "    dataset=dict(",
        "        _delete_=True,",
        '        type="BaseSegDataset",',
        f'        data_root="data/{made.name}",',
        f'        data_prefix=dict(img_path="img_dir/{split}", seg_map_path="ann_dir/{split}"),',
        f'        ann_file="splits/{split}.txt",',
        f'        img_suffix="{made.suffix}",',
        '        seg_map_suffix=".png",',
        "        metainfo=dict(classes=classes, palette=palette),",
        f"        ignore_index={IGNORED},",
        f"        pipeline={pipeline},",
        f"    ){extra},",
        ")",
    ]


# --- the file ---

MARK = re.compile(r'"""Trains on data/\S+; made by launch/prepare.py, digest ([0-9a-f]{16})."""\n')


def place(target: Path, name: str, text: str) -> bool:
    """Writes the config unless there is one that the user made or changed; returns whether it did."""
    content = f"\n{text}"
    head = f'"""Trains on data/{name}; made by launch/prepare.py, digest {digest(content)}."""\n'
    if target.exists():
        there = target.read_text(encoding="utf-8", errors="replace")
        mark = MARK.match(there)
        if there == head + content:
            return True
        if mark is None or digest(there[mark.end() :]) != mark[1]:
            say(f"{target} was written or changed by hand, so it is left as it is")
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, (head + content).encode())
    say(f"the config is {target}")
    return True


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def base_name(base: str, target: Path) -> str:
    """The name of the base in the config: as given if in a package or far away, else a relative path."""
    if "::" in base:
        return base
    near = Path(os.path.relpath(base, target.parent)).as_posix()
    return base if near.startswith("../../") else near if near.startswith(".") else f"./{near}"


def model_of(base: Path) -> dict[str, Any]:
    """A config's model, as plain values. Raises UserError for a config that cannot be read."""
    # Not with jobs.mmseg.config, which would load all of mmseg and take ten seconds.
    from jobs.mmseg import compat

    compat.find_packages_without_pkg_resources()
    from mmengine.config import Config

    try:
        model = Config.fromfile(str(base), import_custom_modules=False).to_dict().get("model") or {}
    except (Exception, SystemExit) as error:  # a config is the user's program
        raise UserError(f"--base {base} cannot be read: {in_a_line(error)}") from None
    if not model.get("decode_head"):
        raise UserError(f"--base {base}: its model has no decode_head")
    return dict(model)
