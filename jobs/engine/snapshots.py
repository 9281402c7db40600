"""Copies of a training's state (tensors and plain values) in main memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from jobs.engine import devices, storable

Tree = Any


def plain(value: Any) -> Any:
    """`value` as tensors and plain Python values; anything else becomes its `repr`: only for what people may
    want to read, not for resuming."""
    if isinstance(value, np.generic):  # first, because np.float64 is a float, but not a plain one
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.Tensor)):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return (tuple if isinstance(value, tuple) else list)(plain(v) for v in value)
    return repr(value)


class Snapshots:
    """Copies states in main memory, into the same memory each time: the next step may change the originals
    while the copy is written to disk."""

    def __init__(self) -> None:
        self.memory: dict[tuple[Any, ...], torch.Tensor] = {}

    def take(self, tree: Tree) -> Tree:
        """A copy of `tree` with all tensors on the CPU; overwrites the previous copy.

        Raises UserError for what could not be loaded again."""
        taken = self._copy(tree, ())
        devices.synchronise()
        return taken

    def _copy(self, tree: Tree, path: tuple[Any, ...]) -> Tree:
        if type(tree) in storable.PLAIN:
            storable.check(tree, "checkpoint", path)  # a number may be too large
            return tree
        if isinstance(tree, torch.Tensor):
            old = self.memory.get(path)
            if old is None or old.shape != tree.shape or old.dtype != tree.dtype:
                # With the same memory format (channels_last): fused optimizers rely on that.
                old = torch.empty_like(tree, device="cpu", pin_memory=devices.is_on_accelerator(tree))
                storable.check(old, "checkpoint", path)  # it may be a subclass
                self.memory[path] = old
            old.copy_(tree.detach(), non_blocking=True)
            return old
        if isinstance(tree, dict):
            for key in tree:
                storable.check(key, "checkpoint", path)
            parts = {key: self._copy(value, (*path, key)) for key, value in tree.items()}
            return type(tree)(parts) if type(tree) in storable.MAPPINGS else parts
        if isinstance(tree, (list, tuple)):
            items = [self._copy(value, (*path, i)) for i, value in enumerate(tree)]
            return tuple(items) if isinstance(tree, tuple) else items
        storable.check(tree, "checkpoint", path)
        return copy.deepcopy(tree)
