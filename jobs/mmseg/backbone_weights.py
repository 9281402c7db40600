"""Ensures that every backbone weight comes from the file of pretrained weights, before a training starts.

mmengine loads what matches and leaves the rest random, with a warning: torchvision's resnet50 in a ResNetV1c,
for one, trains with a random stem. Here that is an error.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

from jobs.run.errors import UserError

ADDED = {"MAE": ("gamma_1", "gamma_2", "relative_position_bias_table")}
"""Backbone -> parameters that mmseg adds to the published one, which initially have no effect."""
UNUSED = ("fc.", "head.", "classifier.")
"""Prefixes of a classifier's last layer, which a segmentation backbone lacks."""


def backbones(model: Any) -> list[Any]:
    """The parts of a model that pretrained weights are for: its backbone; for SAN, the image encoder."""
    parts = [getattr(model, name, None) for name in ("backbone", "image_encoder")]
    return [part for part in parts if part is not None]


@contextlib.contextmanager
def every_weight_loaded(backbone: Any) -> Iterator[None]:
    """Wraps a model's `init_weights`: every weight of `backbone` must then come from the file that its config
    names; a part with a file of its own is checked against that. Without either, does nothing.

    All its parameters and running statistics are made NaN, at first (some backbones load for themselves) and
    again when mmengine loads the file (its ConvModule, for one, has given values by then); what still is NaN
    was not in the file. That of a layer norm that the segmentation model has added (one dimension, no running
    statistics), and of ADDED, gets its initial value back. Anything else raises UserError with the names on
    both sides.
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
    """The file from which a module is loaded, according to its own config; None if there is none."""
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
        """Restores the initial values of what was added. Raises UserError if anything else is missing."""
        import torch

        missing = []
        for name, tensor in self.tensors.items():
            if torch.isnan(tensor).any():
                if self.is_added(name):
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
            f"({_some(missing)}); the file has {_some(unused) or 'nothing else'} instead{hint} (if this is "
            "intended: --set baton.partly_pretrained=True)"
        )

    def is_added(self, name: str) -> bool:
        import torch

        if name.rpartition(".")[2] in ADDED.get(type(self.module).__name__, ()):
            return True
        return self.before[name].ndim == 1 and isinstance(
            self.module.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm
        )


def _names(source: str) -> list[str]:
    from mmengine.runner import CheckpointLoader

    content = CheckpointLoader.load_checkpoint(source, map_location="cpu")
    content = content.get("state_dict", content.get("model", content))
    prefixes = re.compile(r"(module\.)?(backbone\.|image_encoder\.)?")
    return [prefixes.sub("", str(name), 1) for name in content]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
