"""Class weights with ignored pixels: mmseg's cross entropy looks up the weight of every label, including 255.

mmseg/models/losses/cross_entropy_loss.py of 1.2.2 ends with "index 255 is out of bounds" then, and padding is
always 255.
"""

from __future__ import annotations

from typing import Any

import torch


def weigh_ignored_pixels() -> None:
    """Makes mmseg's CrossEntropyLoss, if built after this, average class-weighted losses over pixels that are
    not ignored, like torch's own; nothing else changes. Idempotent."""
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
            # Never 0: a batch with only ignored pixels has loss 0, not NaN.
            avg_factor = weights.sum().clamp(min=torch.finfo(torch.float32).eps)
        found: torch.Tensor = theirs(
            pred, label, weight, class_weight, reduction, avg_factor, ignore_index, avg_non_ignore
        )
        return found

    cross_entropy.weighs_ignored_pixels = True  # type: ignore[attr-defined]
    module.cross_entropy = cross_entropy
