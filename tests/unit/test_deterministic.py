"""What takes the place of kernels that have no deterministic form computes the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from jobs.engine import devices
from jobs.mmseg import deterministic


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 16, 16), (6, 6)), ((1, 2, 7, 5), (3, 2)), ((2, 4, 5), (3, 7))]
)
def test_pooling_by_products_is_torchs(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    a, b = deterministic.pooled(ours, size), functional.adaptive_avg_pool2d(theirs, size)
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-14, atol=1e-14)


def test_pooling_keeps_half_precision() -> None:
    torch.manual_seed(0)
    given = torch.randn(1, 2, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = deterministic.pooled(given, (3, 3))
    theirs = functional.adaptive_avg_pool2d(given.float(), (3, 3)).bfloat16()
    torch.testing.assert_close(found, theirs, rtol=2**-7, atol=2**-10)  # and of the same type


@pytest.fixture
def enabled() -> Iterator[dict[str, str]]:
    native = functional.adaptive_avg_pool2d
    environ: dict[str, str] = {}
    deterministic.enable(environ)
    deterministic.enable(environ)  # a second time changes nothing
    torch.use_deterministic_algorithms(True)
    yield environ
    torch.use_deterministic_algorithms(False)
    functional.adaptive_avg_pool2d = native


def test_it_is_used_on_an_accelerator_alone(enabled: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert enabled == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(deterministic, "pooled", lambda _, size: asked.append(size))
    image = torch.ones(1, 1, 8, 6)
    torch.nn.AdaptiveAvgPool2d(3)(image)
    assert asked == []
    monkeypatch.setattr(devices, "is_on_accelerator", lambda _: True)
    torch.nn.AdaptiveAvgPool2d(1)(image)
    assert asked == []
    torch.nn.AdaptiveAvgPool2d((3, None))(image)
    assert asked == [(3, 6)]
    torch.use_deterministic_algorithms(False)
    torch.nn.AdaptiveAvgPool2d(3)(image)
    assert asked == [(3, 6)]
