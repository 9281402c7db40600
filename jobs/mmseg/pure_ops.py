"""mmcv's compiled operations that MMSegmentation's models call, in plain PyTorch, for the CPU and for CUDA.

mmcv-lite, and the forks' mmcv from PyPI, come without the compiled `mmcv._ext`. Each function here has the
name and the arguments of one of its functions, so that mmcv's own autograd functions (mmcv/ops/*.py) call it
if nothing was compiled (compat.py); if the extension is installed, this file is not used. All are
deterministic, except the gradient of `grid_sample` on CUDA, which `ms_deform_attn_backward` uses.

Sources: mmcv/ops/csrc/pytorch/cpu/psamask.cpp, common/cuda/sigmoid_focal_loss_cuda_kernel.cuh and
mmcv/ops/multi_scale_deform_attn.py of https://github.com/open-mmlab/mmcv, 2.1.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COLLECT = 0
"""PSAMask's `psa_type`: each position collects from the others; otherwise (1) it distributes to them."""


def psamask_forward(input: Tensor, output: Tensor, *, psa_type: int, **sizes: int) -> None:
    """Point-wise spatial attention: from a mask around each position (N × (mask's height × width) × H × W) to
    what each has for every other one, `output` (N × (H × W) × H × W); zero where the mask does not reach.

    `sizes`: num_, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask.
    """
    there, inside = _mask_of(input.device, **sizes)
    flat = input.flatten(2)
    whole = flat.gather(1, there.expand(len(flat), -1, -1)).masked_fill_(~inside, 0)
    output.copy_((whole if psa_type == COLLECT else whole.transpose(1, 2)).view_as(output))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, *, psa_type: int, **sizes: int) -> None:
    """The gradient of psamask_forward, into `grad_input`. Shapes as there. Every element of the mask has gone
    to one place at most, so this is a look-up, too."""
    there, inside = _position_of(grad_output.device, **sizes)
    flat = grad_output.flatten(2)
    flat = flat if psa_type == COLLECT else flat.transpose(1, 2)
    found = flat.gather(1, there.expand(len(flat), -1, -1)).masked_fill_(~inside, 0)
    grad_input.copy_(found.view_as(grad_input))


def _mask_of(
    device: torch.device, *, h_feature: int, w_feature: int, h_mask: int, w_mask: int, half_h_mask: int,
    half_w_mask: int, **_: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """For each pair of positions (other, own; both H × W): which element of the own position's mask lies on
    the other, and whether one does."""
    rows, columns = _grid(h_feature, w_feature, device)
    row = rows[:, None] - rows[None] + half_h_mask
    column = columns[:, None] - columns[None] + half_w_mask
    inside = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    return (row * w_mask + column).masked_fill_(~inside, 0), inside


def _position_of(
    device: torch.device, *, h_feature: int, w_feature: int, h_mask: int, w_mask: int, half_h_mask: int,
    half_w_mask: int, **_: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """For each element of a mask and each position that has one (H × W): on which position it lies, and
    whether on one."""
    mask_rows, mask_columns = _grid(h_mask, w_mask, device)
    rows, columns = _grid(h_feature, w_feature, device)
    row = mask_rows[:, None] + rows[None] - half_h_mask
    column = mask_columns[:, None] + columns[None] - half_w_mask
    inside = (row >= 0) & (row < h_feature) & (column >= 0) & (column < w_feature)
    return (row * w_feature + column).masked_fill_(~inside, 0), inside


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row and the column of each position, row by row."""
    positions = torch.arange(height * width, device=device)
    return positions.div(width, rounding_mode="floor"), positions % width


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """The focal loss of each score (N × C) for the class numbers `target` (N; C means none of them), into
    `output` (N × C). `weight`: one a class, or empty."""
    p, smallest = _probability(input), torch.finfo(torch.float32).tiny
    of_class = (1 - p).pow(gamma) * p.clamp(min=smallest).log()
    of_others = p.pow(gamma) * (1 - p).clamp(min=smallest).log()
    output.copy_(_focal(of_class, of_others, target, weight, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """The derivative of each loss of sigmoid_focal_loss_forward by its score, into `grad_input` (N × C)."""
    p, smallest = _probability(input), torch.finfo(torch.float32).tiny
    of_class = (1 - p).pow(gamma) * (1 - p - gamma * p * p.clamp(min=smallest).log())
    of_others = p.pow(gamma) * (gamma * (1 - p) * (1 - p).clamp(min=smallest).log() - p)
    grad_input.copy_(_focal(of_class, of_others, target, weight, alpha))


def _probability(score: Tensor) -> Tensor:
    """In single precision at least: what is left of 1 - p in half of it has no logarithm."""
    return score.to(torch.promote_types(score.dtype, torch.float32)).sigmoid()


def _focal(of_class: Tensor, of_others: Tensor, target: Tensor, weight: Tensor, alpha: float) -> Tensor:
    classes = of_class.shape[1]
    is_class = target[:, None] == torch.arange(classes, device=target.device)
    found = torch.where(is_class, -alpha * of_class, -(1 - alpha) * of_others)
    # The row's own class weighs it; none has no weight, and the compiled one reads past the end there.
    return found * weight[target.clamp(max=classes - 1)][:, None] if weight.numel() else found


def ms_deform_attn_forward(
    value: Tensor, value_spatial_shapes: Tensor, _level_start: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, **_: Any,
) -> Tensor:  # fmt: skip
    """Multi-scale deformable attention (N × queries × channels) as mmcv itself does it on the CPU. Shapes of
    the arguments: mmcv.ops.MultiScaleDeformableAttnFunction."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    floats = [value, sampling_locations, attention_weights]
    if value.device.type == "cpu":  # torch before 2.2 samples no half precision there
        floats = [one.float() if one.dtype in (torch.float16, torch.bfloat16) else one for one in floats]
    # In one precision, as the compiled one: autocast would widen some of the steps.
    with torch.autocast(value.device.type, enabled=False):
        found: Tensor = multi_scale_deformable_attn_pytorch(floats[0], value_spatial_shapes, *floats[1:])
    return found.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor, value_spatial_shapes: Tensor, level_start: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor, **_: Any,
) -> None:  # fmt: skip
    """The gradients of ms_deform_attn_forward, into `grad_value`, `grad_sampling_loc` and
    `grad_attn_weight`."""
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn_forward(leaves[0], value_spatial_shapes, level_start, leaves[1], leaves[2])
        found = torch.autograd.grad(output, leaves, grad_output)
    for place, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        place.copy_(gradient)
