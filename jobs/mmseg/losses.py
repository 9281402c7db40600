"""Class weights where pixels are ignored: mmseg's cross entropy looks up the weight of every label, 255 too.

mmseg/models/losses/cross_entropy_loss.py of 1.2.2 ends with "index 255 is out of bounds" then, and padding is
always 255.
"""

from __future__ import annotations

from typing import Any

import torch


def weigh_ignored_pixels() -> None:
    """Has mmseg's CrossEntropyLoss, built after this, average class-weighted losses over pixels that count,
    as torch's own does; nothing else changes. Calling it again does nothing more."""
    from mmseg.models.losses import cross_entropy_loss as module

    theirs = module.cross_entropy
    if getattr(theirs, "weighs_ignored_pixels", False):
        return

    def cross_entropy(
        pred: torch.Tensor,
        label: torch.Tensor,
        weight: torch.Tensor | None = None,
        class_weight: torch.Tensor | None = None,
        reduction: str = "mean",
        avg_factor: Any = None,
        ignore_index: int = -100,
        avg_non_ignore: bool = False,
    ) -> torch.Tensor:
        if class_weight is not None and avg_factor is None and reduction == "mean":
            counts = label != ignore_index
            weights = class_weight[torch.where(counts, label, 0)] * counts
            # Never 0: a batch of ignored pixels alone has no loss, and not one that is no number.
            avg_factor = weights.sum().clamp(min=torch.finfo(torch.float32).eps)
        found: torch.Tensor = theirs(
            pred, label, weight, class_weight, reduction, avg_factor, ignore_index, avg_non_ignore
        )
        return found

    cross_entropy.weighs_ignored_pixels = True  # type: ignore[attr-defined]
    module.cross_entropy = cross_entropy
