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
"""What the recipe's configs begin with."""

PLACE = Path("data/pretrained")
"""Where weights are looked for, from the job's working directory (RUN/code); `data` is the data root."""

TORCHVISION = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "resnet152": "https://download.pytorch.org/models/resnet152-394f9c45.pth",
}
"""torchvision names, without importing torchvision."""

TABLES = {
    "open-mmlab": ("deprecated.json", "openmmlab.json"),
    "openmmlab": ("deprecated.json", "openmmlab.json"),
    "mmcls": ("mmcls.json",),
    "torchvision": ("torchvision_0.12.json",),
    "modelzoo": ("torchvision_0.12.json",),
}
"""Scheme -> mmengine's tables of names, each applied to what the one before it gave."""

CLASSIFIER = "mmcls://"
"""Of a file from there, only the backbone's weights are loaded (jobs/mmseg/compat.py)."""


def localise(config: Any) -> list[str]:
    """Replaces every reference to pretrained weights in a model config (nested dicts, changed in place) by
    the path of the file that holds them. Returns the paths.

    Raises UserError, naming the file and where to get it, if one is missing.
    """
    found = []
    for holder, key in references(config):
        path = str(placed(holder[key], PLACE))
        found.append(path)
        holder[key] = CLASSIFIER + path if holder[key].startswith(CLASSIFIER) else path
        if key == "checkpoint" and name_of(holder["type"]) == "PretrainedInit":
            # Backbones that load for themselves know it by its short name only.
            holder["type"] = "Pretrained"
    return found


def parts(values: Any) -> dict[str, Any]:
    """What of a config can refer to pretrained weights."""
    return {"model": values.get("model"), "load_from": values.get("load_from")}


def forget(config: Any) -> list[str]:
    """Removes every reference to pretrained weights from a model config (nested, changed in place): a model
    that gets all its weights from a checkpoint needs no such file, and it may be gone by now. Returns []."""
    if isinstance(config, dict):
        if "pretrained" in config:
            config["pretrained"] = None
        if _is_reference(config.get("init_cfg")):
            config["init_cfg"] = None
        elif isinstance(config.get("init_cfg"), (list, tuple)):
            config["init_cfg"] = [one for one in config["init_cfg"] if not _is_reference(one)]
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list, tuple)):
            forget(value)
    return []


def references(node: Any) -> Iterator[tuple[Any, str]]:
    """Where a model config (nested dicts and lists), or a `load_from` beside it, refers to pretrained
    weights: (dict, key)."""
    if isinstance(node, dict):
        for key in ("pretrained", "load_from"):
            if isinstance(node.get(key), str):
                yield node, key
        if _is_reference(node):
            yield node, "checkpoint"
        for value in node.values():
            yield from references(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from references(value)


def _is_reference(init_cfg: Any) -> bool:
    return (
        isinstance(init_cfg, dict)
        and name_of(init_cfg.get("type")) in ("Pretrained", "PretrainedInit", "Pretrained_Part")
        and isinstance(init_cfg.get("checkpoint"), str)
    )


def placed(reference: str, place: Path) -> Path:
    """The file for a reference: a path, an http(s) address, open-mmlab://NAME, torchvision://NAME or
    mmcls://NAME. `data/…` lies in the data root, as everywhere in configs; any other relative path, such as
    `pretrain/vit.pth`, would mean the directory that one happens to be in, so its file is one of `place`.

    Raises UserError if it is not there, with where to get it and where to place it.
    """
    source = address(reference)
    if source is None:
        path = Path(reference).expanduser()
        if path.parts[:1] == ("data",):
            path = place.parent.joinpath(*path.parts[1:])
        elif path.parts[:1] == ("configs",):
            # The checkout's; in a job, those of the run's snapshot.
            path = Path(__file__).resolve().parents[2] / path
        elif not path.is_absolute():
            path = place / path.name
        if not path.is_file():
            raise UserError(f"pretrained weights are missing: place {reference} as {path.absolute()}")
        return path
    name = file_name(source)
    short = reference.rsplit("/", 1)[-1]
    for candidate in (place / name, place / f"{short}.pth"):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"pretrained weights are missing: python launch/prepare.py --weights {reference} fetches them; "
        f"or get {source} and place it as {place.resolve() / name} "
        f"(from scratch: --set model.pretrained=None)"
    )


def address(reference: str) -> str | None:
    """The address of published weights; None for a path. mmengine's tables are read without importing it.

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
    return None


def published(reference: str) -> tuple[str, str]:
    """The address and the file name of published weights. Raises UserError for what is neither a known name
    nor an address."""
    url = address(reference)
    if url is None:
        raise UserError(f"--weights {reference}: give a name such as {DEFAULT}, or an address")
    return url, file_name(url)


def file_name(source: str) -> str:
    """The name of the file behind an address, without what follows a `?` or `#`.

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
            f"the address of {place} has a password or a key in it, which others could read: get the file "
            "yourself, and give its path"
        )
    name = unquote(parts.path.rsplit("/", 1)[-1])
    plain = source.isprintable() and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}", name)
    if not plain:
        raise UserError(f"the address {source!r} does not end in a file's name: {name!r}")
    return name
