"""Pretrained weights: how configs refer to them, where they are published, and the file that stands for each.

Compute nodes often have no network, so `open-mmlab://resnet50_v1c` and the like stand for a file below
data/pretrained/, which a preparation fetches or the user places.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jobs.catalog.supported import name_of
from jobs.run import secrets
from jobs.run.errors import UserError

DEFAULT = "open-mmlab://resnet50_v1c"
"""The pretrained weights of the recipe's configs."""

PLACE = Path("data/pretrained")
"""Where weights are looked for, from the job's working directory (RUN/code); `data` is the data root."""

TORCHVISION = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "resnet152": "https://download.pytorch.org/models/resnet152-394f9c45.pth",
}
"""torchvision's names -> URLs, without importing torchvision."""

TABLES = {
    "open-mmlab": ("deprecated.json", "openmmlab.json"),
    "openmmlab": ("deprecated.json", "openmmlab.json"),
    "mmcls": ("mmcls.json",),
    "torchvision": ("torchvision_0.12.json",),
    "modelzoo": ("torchvision_0.12.json",),
}
"""Scheme -> mmengine's tables of names, each applied to the result of the one before."""

TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
CONVERTED = {
    "vit_large_p16.pth": (f"{TIMM}jx_vit_large_p16_384-b3be5167.pth", "vit"),
    "vit_base_patch16_224.pth": (f"{TIMM}jx_vit_base_p16_224-80ecf9dd.pth", "vit"),
    "vit-b16_p16_224-80ecf9dd.pth": (f"{TIMM}jx_vit_base_p16_224-80ecf9dd.pth", "vit"),
    "jx_vit_base_p16_224-80ecf9dd.pth": (f"{TIMM}jx_vit_base_p16_224-80ecf9dd.pth", "vit"),
    "jx_vit_large_p16_384-b3be5167.pth": (f"{TIMM}jx_vit_large_p16_384-b3be5167.pth", "vit"),
    **{
        f"deit_{name}.pth": (f"https://dl.fbaipublicfiles.com/deit/deit_{name}.pth", "vit")
        for name in ("small_patch16_224-cd65a155", "base_patch16_224-b5f2ef4d")
    },
    **{
        f"beit_{size}_patch16_224_pt22k_ft22k.pth": (
            f"https://github.com/addf400/files/releases/download/v1.0/beit_{size}_patch16_224_pt22k_ft22k.pth",
            "beit",
        )
        for size in ("base", "large")
    },
    "mae_pretrain_vit_base_mmcls.pth": (
        "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth",
        "beit",
    ),
}
"""Names below `pretrain/` in mmseg's configs: where the weights are published, by timm and by the models'
authors, and which of mmsegmentation's own converters (KIND2mmseg.py) renames what is in there.

As configs/{vit,dpt,setr,beit,mae}/README.md of https://github.com/open-mmlab/mmsegmentation say; BEiT's have
moved since: https://github.com/microsoft/unilm/tree/master/beit.
"""

CLIP = {
    "base": "https://download.openmmlab.com/mmsegmentation/v0.5/san/clip_vit-base-patch16-224_3rdparty-d08f8887.pth",
    "large": "https://download.openmmlab.com/mmsegmentation/v0.5/san/clip_vit-large-patch14-336_3rdparty-0b5df9cb.pth",
}
"""SAN's pretrained weights, by the size of its image encoder, from the zoo's configs for coco-stuff164k."""

CLASSIFIER = "mmcls://"
"""From such a file, only the backbone's weights are loaded (jobs/mmseg/compat.py)."""


def localise(config: Any) -> list[str]:
    """Replaces every reference to pretrained weights in a model config (nested dicts, changed in place) by
    the path of their file. Returns the paths.

    Raises UserError, naming the file and where to get it, if one is missing.
    """
    found = []
    for holder, key, without in references(config):
        path = str(placed(holder[key], PLACE, without))
        found.append(path)
        holder[key] = CLASSIFIER + path if holder[key].startswith(CLASSIFIER) else path
        if key == "checkpoint" and name_of(holder["type"]) == "PretrainedInit":
            # Backbones that load weights themselves know only the short name.
            holder["type"] = "Pretrained"
    return found


def parts(values: Any) -> dict[str, Any]:
    """The parts of a config that can refer to pretrained weights."""
    return {"model": values.get("model"), "load_from": values.get("load_from")}


def forget(config: Any) -> list[str]:
    """Removes every reference to pretrained weights from a model config (nested, changed in place): a model
    that gets all weights from a checkpoint does not need the file, which may be gone. Returns []."""
    if isinstance(config, dict):
        if "pretrained" in config:
            config["pretrained"] = None
        if _is_timm(config):
            config |= {"pretrained": False, "checkpoint_path": ""}
        if _is_reference(config.get("init_cfg")):
            config["init_cfg"] = None
        elif isinstance(config.get("init_cfg"), (list, tuple)):
            config["init_cfg"] = [one for one in config["init_cfg"] if not _is_reference(one)]
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list, tuple)):
            forget(value)
    return []


def references(node: Any, above: str = "") -> Iterator[tuple[Any, str, str]]:
    """Where a model config (nested dicts and lists, at the dotted key `above`), or a `load_from` beside it,
    refers to pretrained weights: (dict, key, the override that does without them)."""
    if isinstance(node, dict):
        for key in ("pretrained", "load_from"):
            if isinstance(node.get(key), str):
                yield node, key, f"{above}{key}=None"
        if _is_reference(node):
            yield node, "checkpoint", f"{above.rstrip('.0123456789')}=None"  # one of a list: all of it
        if _is_timm(node) and isinstance(path := node.get("checkpoint_path"), str) and path:
            yield node, "checkpoint_path", f"{above}checkpoint_path="
        for key, value in node.items():
            yield from references(value, f"{above}{key}.")
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from references(value, f"{above}{number}.")


def _is_reference(init_cfg: Any) -> bool:
    return (
        isinstance(init_cfg, dict)
        and name_of(init_cfg.get("type")) in ("Pretrained", "PretrainedInit", "Pretrained_Part")
        and isinstance(init_cfg.get("checkpoint"), str)
    )


def _is_timm(node: dict[str, Any]) -> bool:
    return name_of(node.get("type")) == "TIMMBackbone"


def placed(reference: str, place: Path, without: str = "") -> Path:
    """The file for a reference: a path, an http(s) address, open-mmlab://NAME, torchvision://NAME or
    mmcls://NAME. `data/…` lies in the data root, as everywhere in configs; any other relative path, such as
    `pretrain/vit.pth`, would mean the directory that one happens to be in, so its file is one of `place`, and
    may be one that mmsegmentation's converters make (CONVERTED).

    Raises UserError if it is not there, with where to get it and where to place it, or how to do `without`.
    """
    made = converted(reference)
    source = None if made else address(reference)
    if source is None:
        path = Path(reference).expanduser()
        if path.parts[:1] == ("data",):
            path = place.parent.joinpath(*path.parts[1:])
        elif path.parts[:1] == ("configs",):
            # The checkout's; in a job, the run snapshot's.
            path = Path(__file__).resolve().parents[2] / path
        elif not path.is_absolute():
            path = place / path.name
        if path.is_file():
            return path
        fetch = f"python launch/prepare.py --weights {reference} makes them of {made[0]}; or " if made else ""
        where = f"place {reference} as {path.absolute()}"
        if str(path.absolute()) == reference:
            where = f"there is no file {reference}, which the config names"
        raise UserError(f"pretrained weights are missing: {fetch}{where}")
    name = file_name(source)
    short = reference.rsplit("/", 1)[-1]
    for candidate in (place / name, place / f"{short}.pth"):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"pretrained weights are missing: python launch/prepare.py --weights {reference} fetches them; "
        f"or get {source} and place it as {place.resolve() / name}"
        + (f" (from scratch: --set {without})" if without else "")
    )


def address(reference: str) -> str | None:
    """The URL of published weights; None for a path, except those in CONVERTED. Reads mmengine's tables
    without importing it.

    Raises UserError for a name that they do not have.
    """
    if reference.startswith(("http://", "https://")):
        return reference
    scheme, _, name = reference.partition("://")
    if scheme in ("torchvision", "modelzoo") and name in TORCHVISION:
        return TORCHVISION[name]
    spec = importlib.util.find_spec("mmengine") if scheme in TABLES else None
    if spec and spec.origin:
        for table in TABLES[scheme]:
            known = json.loads((Path(spec.origin).parent / "hub" / table).read_text(encoding="utf-8"))
            name = known.get(name, name)
            if str(name).startswith(("http://", "https://")):
                return str(name)
    if "://" in reference:
        raise UserError(f"unknown pretrained weights {reference}: place a file and give its path")
    made = converted(reference)
    return made[0] if made else None


def converted(reference: str) -> tuple[str, str] | None:
    """For a path in CONVERTED: the URL of its weights, and the kind of converter; else None."""
    path = Path(reference)
    own = path.is_absolute() or path.parts[:1] in (("data",), ("configs",), ("~",)) or "://" in reference
    return None if own else CONVERTED.get(path.name)


def check_timm(node: Any, where: str = "model") -> None:
    """Raises UserError if a model config (nested dicts and lists, named `where`) has a TIMMBackbone that
    would download its weights itself, at every start."""
    # mmseg's does so by default, mmpretrain's does not.
    default = isinstance(node, dict) and not str(node.get("type")).startswith("mmpretrain.")
    if isinstance(node, dict) and _is_timm(node) and node.get("pretrained", default):
        name = node.get("model_name")
        more = f", out_indices={node['out_indices']}" if "out_indices" in node else ""
        raise UserError(
            f"{where}: jobs download nothing, but TIMMBackbone would: once, on a machine with a network, run "
            f"python -c \"import timm, torch; torch.save(timm.create_model('{name}', pretrained=True, "
            f"features_only=True{more}).state_dict(), 'data/pretrained/{name}.pth')\"; then --set "
            f"{where}.pretrained=False {where}.checkpoint_path=data/pretrained/{name}.pth"
        )
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        check_timm(value, f"{where}.{key}")


def meant_clip(model: Any) -> str:
    """For a SAN, which begins with CLIP's weights, that names what is a ViT of ImageNet's in mmseg's other
    configs (four of the zoo's do): the address of those that it means. "" for all others."""
    given = model.get("pretrained") if isinstance(model, dict) else None
    if not isinstance(given, str) or name_of(model.get("type")) != "MultimodalEncoderDecoder":
        return ""
    encoder = model.get("image_encoder")
    large = isinstance(encoder, dict) and encoder.get("embed_dims") == 1024
    return CLIP["large" if large else "base"] if converted(given) else ""


def published(reference: str) -> tuple[str, str]:
    """The URL and file name of published weights. Raises UserError for anything other than a known name or a
    URL."""
    url = address(reference)
    if url is None:
        raise UserError(f"--weights {reference}: give a name such as {DEFAULT}, or a URL")
    return url, file_name(url)


def file_name(source: str) -> str:
    """The file name in a URL, without query (`?`) and fragment (`#`).

    Raises UserError for an address that names none, or none that could be a file's of ours (`..`), and for
    one with a secret in it: addresses are kept, and shown.
    """
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise UserError(f"{source!r} is no address: {error}") from None
    if "@" in parts.netloc or secrets.in_text(parts.query.replace("&", " ")):
        place = parts.netloc.rpartition("@")[2] + parts.path
        raise UserError(
            f"the address of {place} contains a password or a key that others could read: fetch the file "
            "yourself and give its path"
        )
    name = unquote(parts.path.rsplit("/", 1)[-1])
    plain = source.isprintable() and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}", name)
    if not plain:
        raise UserError(f"the address {source!r} does not end in a file's name: {name!r}")
    return name
