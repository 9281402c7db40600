"""What deterministic kernels on a GPU need besides torch.use_deterministic_algorithms, which mmengine calls.

https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html lists what torch
refuses then. Of what segmentors train with that is the gradient of adaptive pooling (the pyramid of UPerNet
and PSPNet); cuBLAS must be told before it is first used.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping
from typing import Any

import torch

from jobs.engine import devices


def enable(environ: MutableMapping[str, str]) -> None:
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    functional = torch.nn.functional
    if not hasattr(functional.adaptive_avg_pool2d, "native"):
        functional.adaptive_avg_pool2d = _replacing(functional.adaptive_avg_pool2d)


def _replacing(native: Any) -> Any:
    @functools.wraps(native)
    def adaptive_avg_pool2d(input: torch.Tensor, output_size: Any) -> torch.Tensor:
        height, width = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        size = (height or input.shape[-2], width or input.shape[-1])
        on = torch.are_deterministic_algorithms_enabled() and devices.is_on_accelerator(input)
        if not on or size == (1, 1):  # a mean, which is deterministic
            return native(input, output_size)
        return pooled(input, size)

    adaptive_avg_pool2d.native = native  # type: ignore[attr-defined]
    return adaptive_avg_pool2d


def pooled(input: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """adaptive_avg_pool2d of … × H × W to … × `size`, as two products of matrices, whose gradients are
    products too. Equal to torch's but for rounding."""
    with torch.autocast(input.device.type, enabled=False):
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        rows, columns = (_shares(*ends, wide) for ends in zip(input.shape[-2:], size, strict=True))
        return (rows @ wide @ columns.T).to(input.dtype)


def _shares(length: int, parts: int, like: torch.Tensor) -> torch.Tensor:
    """parts × length: the weight of each element in the mean of each part, with torch's own bounds."""
    number = torch.arange(parts, device=like.device)[:, None]
    begin = number * length // parts
    end = ((number + 1) * length + parts - 1) // parts
    place = torch.arange(length, device=like.device)
    return ((begin <= place) & (place < end)).to(like.dtype) / (end - begin)
