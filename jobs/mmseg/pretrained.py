"""Pretrained weights come from a file that the user places, and every backbone weight comes from it.

Compute nodes often have no network, so `open-mmlab://resnet50_v1c` and the like stand for a file below
data/pretrained/. mmengine loads what matches and leaves the rest random, with a warning: torchvision's
resnet50 in a ResNetV1c, for one, trains with a random stem. Here that is an error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jobs.mmseg.supported import name_of
from jobs.run.errors import UserError

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

UNUSED = ("fc.", "head.", "classifier.")
"""A classifier's last layer, which a segmentation backbone does not have."""

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


def file_name(source: str) -> str:
    """The name of the file behind an address, without what follows a `?` or `#`.

    Raises UserError for an address that names none, or none that could be a file's of ours (`..`).
    """
    name = unquote(urlsplit(source).path.rsplit("/", 1)[-1])
    plain = source.isprintable() and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}", name)
    if not plain:
        raise UserError(f"the address {source!r} does not end in a file's name: {name!r}")
    return name


def backbones(model: Any) -> list[Any]:
    """The parts of a model that pretrained weights are for: its backbone; with SAN, the encoder of images."""
    parts = [getattr(model, name, None) for name in ("backbone", "image_encoder")]
    return [part for part in parts if part is not None]


@contextlib.contextmanager
def every_weight_loaded(backbone: Any) -> Iterator[None]:
    """Around a model's `init_weights`: every weight of `backbone` must then come from the file that its own
    config names; a part of it that has a file of its own is judged by that. Without either nothing is done.

    All its parameters and running statistics are made NaN, at first (some backbones load for themselves) and
    again when mmengine loads the file (its ConvModule, for one, has given values by then); what still is NaN
    was not in the file. That of a layer norm that the segmentation model has added (one dimension, no running
    statistics) gets its initial value back. Anything else raises UserError with the names on both sides.
    """
    from mmengine.model.weight_init import PretrainedInit

    watched = {module: _Watched(module, source) for module in backbone.modules() if (source := _file(module))}

    def load(init: Any, module: Any) -> None:
        if module in watched:
            watched[module].blank()
        original(init, module)

    original = PretrainedInit.__call__
    PretrainedInit.__call__ = load
    try:
        for one in watched.values():
            one.blank()
        yield
    finally:
        PretrainedInit.__call__ = original
    for one in watched.values():
        one.check()


def _file(module: Any) -> str | None:
    """The file that a module's own config says it is loaded from."""
    init_cfg = getattr(module, "init_cfg", None)
    for one in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if isinstance(one, dict) and one.get("type") in ("Pretrained", "Pretrained_Part"):
            return str(one["checkpoint"])
    return None


class _Watched:
    """A module whose weights must all come from one file."""

    def __init__(self, module: Any, source: str) -> None:
        self.module, self.source = module, source
        self.tensors: dict[str, Any] = dict(module.named_parameters())
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                self.tensors[name] = buffer
        self.before = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def blank(self) -> None:
        import torch

        with torch.no_grad():
            for tensor in self.tensors.values():
                tensor.fill_(math.nan)

    def check(self) -> None:
        """Gives added layer norms their initial values back. Raises UserError for anything else missing."""
        import torch

        missing = []
        for name, tensor in self.tensors.items():
            if torch.isnan(tensor).any():
                if self.before[name].ndim == 1 and self.is_layer_norm(name):
                    with torch.no_grad():
                        tensor.copy_(self.before[name])
                else:
                    missing.append(name)
        if not missing:
            return
        unused = [n for n in _names(self.source) if n not in self.tensors and not n.startswith(UNUSED)]
        unused = [name for name in unused if not name.endswith("num_batches_tracked")]
        kind = type(self.module).__name__
        hint = ""
        if kind.startswith("ResNet"):
            hint = "; ResNetV1c needs open-mmlab://resnet50_v1c; torchvision://resnet50 needs type='ResNet'"
        raise UserError(
            f"{self.source} does not fit the backbone {kind}: {len(missing)} weights would stay random "
            f"({_some(missing)}); the file has {_some(unused) or 'nothing else'} instead{hint} "
            "(meant to be so: --set baton.partly_pretrained=True)"
        )

    def is_layer_norm(self, name: str) -> bool:
        import torch

        return isinstance(self.module.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm)


def _names(source: str) -> list[str]:
    from mmengine.runner import CheckpointLoader

    content = CheckpointLoader.load_checkpoint(source, map_location="cpu")
    content = content.get("state_dict", content.get("model", content))
    prefixes = re.compile(r"(module\.)?(backbone\.|image_encoder\.)?")
    return [prefixes.sub("", str(name), 1) for name in content]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
