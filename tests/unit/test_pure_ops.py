"""mmcv's operations in plain PyTorch, called as models call them: through mmcv's own autograd functions."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from jobs.mmseg import compat, pure_ops

compat.prepare()
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def mask_by_its_definition(masks: torch.Tensor, collect: bool, size: tuple[int, int]) -> torch.Tensor:
    """mmcv/ops/csrc/pytorch/cpu/psamask.cpp, loop by loop."""
    count, _, height, width = masks.shape
    found = masks.new_zeros(count, height * width, height * width)
    for row in range(height):
        for column in range(width):
            for i in range(size[0]):
                for j in range(size[1]):
                    r, c = row + i - (size[0] - 1) // 2, column + j - (size[1] - 1) // 2
                    if 0 <= r < height and 0 <= c < width:
                        own, other = row * width + column, r * width + c
                        place = (other, own) if collect else (own, other)
                        found[:, place[0], place[1]] = masks[:, i * size[1] + j, row, column]
    return found.view(count, height * width, height, width)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize(
    ("shape", "size"), [((5, 4), (5, 5)), ((3, 4), (9, 11)), ((4, 3), (2, 3)), ((1, 1), (3, 3))]
)
def test_psamask(device: str, kind: str, shape: tuple[int, int], size: tuple[int, int]) -> None:
    from mmcv.ops import PSAMask

    torch.manual_seed(0)
    masks = torch.randn(2, size[0] * size[1], *shape, dtype=torch.float64, device=device, requires_grad=True)
    operation = PSAMask(kind, size)
    expected = mask_by_its_definition(masks, kind == "collect", size)
    found = operation(masks)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * weights).sum(), masks)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), masks)
    assert torch.equal(ours, theirs)
    if masks.numel() < 200:  # by finite differences; it takes seconds for the larger ones
        assert gradcheck(operation, masks)
    assert torch.equal(operation(masks.half()), expected.half())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(device: str, weighted: bool) -> None:
    from mmcv.ops import sigmoid_focal_loss

    torch.manual_seed(0)
    scores = (torch.randn(7, 3, dtype=torch.float64, device=device) * 5).requires_grad_()
    target = torch.tensor([0, 1, 2, 2, 3, 0, 1], device=device)  # 3 is none of the classes
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, device=device) if weighted else None
    # mmseg's reference, which it takes itself on the CPU, has no weight of a row by its class.
    expected = focal_by_mmseg(scores, target)
    if weight is not None:
        expected = expected * weight[target.clamp(max=2)][:, None]
    found = sigmoid_focal_loss(scores, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    (ours,) = torch.autograd.grad(found.sum(), scores, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "mean"), scores)


def focal_by_mmseg(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss

    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3]
    found: torch.Tensor = py_sigmoid_focal_loss(scores, one_hot, alpha=0.25, reduction="none")
    return found


def test_a_sure_score_has_a_finite_loss_in_any_precision() -> None:
    from mmcv.ops import sigmoid_focal_loss

    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        scores = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=dtype, requires_grad=True)
        loss = sigmoid_focal_loss(scores, torch.tensor([0, 0]), 2.0, 0.25, None, "sum")
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def attention(device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of deformable attention: 2 images, 2 levels of 4 × 3 and 2 × 2, 2 heads, 5 queries."""
    torch.manual_seed(0)
    shapes = torch.tensor([[4, 3], [2, 2]], device=device)
    start = torch.tensor([0, 12], device=device)
    value = torch.randn(2, 16, 2, 3, dtype=dtype, device=device, requires_grad=True)
    # Some points lie outside, where there is nothing.
    places = (torch.rand(2, 5, 2, 2, 3, 2, dtype=dtype, device=device) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 5, 2, 2, 3, dtype=dtype, device=device, requires_grad=True)
    return value, shapes, start, places, weights, 64


@pytest.mark.parametrize("device", DEVICES)
def test_deformable_attention(device: str) -> None:
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    value, shapes, start, places, weights, step = attention(device, torch.float64)
    leaves = (value, places, weights)
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, start, places, weights, step)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    assert torch.equal(found, expected)
    direction = torch.randn_like(found)
    ours = torch.autograd.grad(found, leaves, direction)
    theirs = torch.autograd.grad(expected, leaves, direction)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert gradcheck(
        lambda v, p, w: MultiScaleDeformableAttnFunction.apply(v, shapes, start, p, w, step), leaves
    )


def test_deformable_attention_keeps_its_precision_under_autocast() -> None:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, start, places, weights, step = attention("cpu", torch.float32)
    narrow = value.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = MultiScaleDeformableAttnFunction.apply(narrow, shapes, start, places, weights, step)
    assert found.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(found.float().sum(), narrow)
    assert gradient.dtype == torch.bfloat16
    assert gradient.abs().sum() > 0


def test_an_operation_that_there_is_not_says_so() -> None:
    from mmcv.ops import nms

    with pytest.raises(RuntimeError, match="the model needs mmcv's compiled operation 'nms'"):
        nms(torch.rand(2, 4), torch.rand(2), 0.5)


def test_where_the_extension_is_compiled_it_is_used(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sys.modules["mmcv._ext"].psamask_forward is pure_ops.psamask_forward
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    (tmp_path / "mmcv" / "_ext.cpython.so").touch()
    for name in ("mmcv", "mmcv._ext"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    compat.stub_compiled_mmcv()
    assert "mmcv._ext" not in sys.modules
