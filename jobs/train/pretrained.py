"""Pretrained weights come from a file that the user places, and every backbone weight comes from it.

Compute nodes often have no network, so `open-mmlab://resnet50_v1c` and the like stand for a file below
data/pretrained/. mmengine loads what matches and leaves the rest random, with a warning: torchvision's
resnet50 in a ResNetV1c, for one, trains with a random stem. Here that is an error.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import UserError

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

UNUSED = ("fc.", "head.", "classifier.")
"""A classifier's last layer, which a segmentation backbone does not have."""


def localise(config: Any) -> list[str]:
    """Replaces every reference to pretrained weights in a model config (nested dicts, changed in place) by
    the path of the file that holds them. Returns the paths.

    Raises UserError, naming the file and where to get it, if one is missing.
    """
    found = []
    for holder, key in _references(config):
        holder[key] = str(_local(holder[key]))
        found.append(holder[key])
    return found


def forget(config: Any) -> list[str]:
    """Removes every reference to pretrained weights from a model config (nested, changed in place): a model
    that gets all its weights from a checkpoint needs no such file, and it may be gone by now. Returns []."""
    if isinstance(config, dict):
        if "pretrained" in config:
            config["pretrained"] = None
        if isinstance(config.get("init_cfg"), dict) and config["init_cfg"].get("type") == "Pretrained":
            config["init_cfg"] = None
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list, tuple)):
            forget(value)
    return []


def _references(node: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(node, dict):
        if isinstance(node.get("pretrained"), str):
            yield node, "pretrained"
        if node.get("type") == "Pretrained" and isinstance(node.get("checkpoint"), str):
            yield node, "checkpoint"
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _references(value)


def _local(reference: str) -> Path:
    """The file for a reference: a path, an http(s) address, open-mmlab://NAME or torchvision://NAME."""
    source = _address(reference)
    if source is None:
        path = Path(reference).expanduser()
        if not path.is_file():
            raise UserError(f"pretrained weights are missing: {reference} (from {Path.cwd()})")
        return path
    name = source.rsplit("/", 1)[-1]
    short = reference.rsplit("/", 1)[-1]
    for candidate in (PLACE / name, PLACE / f"{short}.pth"):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"pretrained weights are missing: get {source} and place it as {PLACE.resolve() / name} "
        "(or train from scratch: --set model.pretrained=None)"
    )


def _address(reference: str) -> str | None:
    if reference.startswith(("http://", "https://")):
        return reference
    scheme, _, name = reference.partition("://")
    if scheme == "torchvision" and name in TORCHVISION:
        return TORCHVISION[name]
    if scheme in ("open-mmlab", "openmmlab"):
        import mmengine

        table = Path(mmengine.__file__).parent / "hub" / "openmmlab.json"
        for source in (table, table.with_name("mmcls.json")):
            address = json.loads(source.read_text()).get(name) if source.is_file() else None
            if address:
                return str(address)
    if "://" in reference:
        raise UserError(f"unknown pretrained weights {reference}: place a file and give its path")
    return None


@contextlib.contextmanager
def every_weight_loaded(backbone: Any, source: str) -> Iterator[None]:
    """Around a model's `init_weights`: afterwards, every weight of `backbone` must come from `source`.

    All its parameters and running statistics are made NaN before; what still is NaN was not in the file.
    That of a layer norm that the segmentation model has added (one dimension, no running statistics) gets
    its initial value back. Anything else raises UserError with the names on both sides.
    """
    import torch

    watched = dict(backbone.named_parameters())
    watched |= {k: v for k, v in backbone.named_buffers() if k.endswith(("running_mean", "running_var"))}
    before = {name: tensor.detach().clone() for name, tensor in watched.items()}
    with torch.no_grad():
        for tensor in watched.values():
            tensor.fill_(math.nan)
    yield
    missing = [name for name, tensor in watched.items() if torch.isnan(tensor).any()]
    added = [name for name in missing if before[name].ndim == 1 and _is_layer_norm(backbone, name)]
    with torch.no_grad():
        for name in added:
            watched[name].copy_(before[name])
    missing = [name for name in missing if name not in added]
    if missing:
        unused = [name for name in _names(source) if name not in watched and not name.startswith(UNUSED)]
        unused = [name for name in unused if not name.endswith("num_batches_tracked")]
        raise UserError(
            f"{source} does not fit the backbone {type(backbone).__name__}: {len(missing)} weights "
            f"would stay random ({_some(missing)}); the file has {_some(unused) or 'nothing else'} instead. "
            "ResNetV1c needs open-mmlab://resnet50_v1c; torchvision://resnet50 needs type='ResNet'"
        )


def _is_layer_norm(backbone: Any, name: str) -> bool:
    import torch

    return isinstance(backbone.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm)


def _names(source: str) -> list[str]:
    from jobs import compat

    content = compat.load(source)
    content = content.get("state_dict", content.get("model", content))
    return [str(name).removeprefix("module.").removeprefix("backbone.") for name in content]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
