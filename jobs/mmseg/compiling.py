"""torch.compile for what it is suited to: the network's parts, from tensors to tensors.

mmengine compiles the whole `train_step`. In that are the loader's images, each of its own size, annotations
with strides of their own, and the optimizer's step with the learning rate as a constant: with a schedule by
iteration something is compiled anew in every step, until torch gives up and runs it as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import nn


def compile_parts(model: nn.Module, options: dict[str, Any]) -> None:
    """Compiles the forward of every part of `model` with `torch.compile(**options)`, for use in training mode
    only: a validation's images have many sizes."""
    for part in parts(model):
        part.forward = _while_training(part, part.forward, torch.compile(part.forward, **options))


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """Backbone, neck, heads: the children of a segmentor, including those in lists."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif not isinstance(child, BaseDataPreprocessor):
            yield child


def _while_training(part: nn.Module, plain: Any, compiled: Any) -> Any:
    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if part.training else plain)(*args, **kwargs)

    return forward
