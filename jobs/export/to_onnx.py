"""Exports a run's model as ONNX, and compares onnxruntime's results with PyTorch's.

The graph takes what the config's data_preprocessor gives (N × channels × H × W, float32, normalised) and
gives the scores of each class in the same size (N × classes × H × W; of a model with one output
N × 1 × H × W, before the sigmoid). Written by torch's TorchScript exporter, which all of torch 2.1 to 2.13
have; the newer one (`dynamo=True`) begins with 2.5 and needs onnxscript.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.run.errors import UserError, one_line

OPSET = 17
"""The newest opset that torch 2.1 writes."""
AXES = {0: "batch", 2: "height", 3: "width"}
FREE: tuple[set[int], ...] = ({0, 2, 3}, {2, 3}, {0}, set())
"""Sets of dynamic axes to try: the first that the model allows is used."""
FURTHER = (64, 128)
"""By how much an image is enlarged to test a dynamic axis if all images have the same length: multiples of
networks' strides, so that models that only accept these accept it, too."""
ROUNDING = 1e-3
"""Relative to the largest score: the most by which float32 sums in another order may differ."""


class Scores(torch.nn.Module):
    """The exported module: a segmentor's scores for each class at the size of its input, in whole mode."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        size = inputs.shape[2:]
        meta = {"img_shape": size, "pad_shape": size, "ori_shape": size}
        scores: torch.Tensor = self.model.encode_decode(inputs, [meta])
        return scores


def export(model: Any, path: Path, images: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Writes `path` with as many dynamic axes as the model allows and `images` (each 1 × channels × H × W,
    preprocessed) confirm. Returns the result of `compare`, and `free`, the names of these axes.

    Raises UserError for a model that cannot be written, or whose graph gives something else than PyTorch.
    """
    scores, why = Scores(model).eval(), "no reason given"
    for free in FREE:
        try:
            write(scores, path, images[0], free)
            found = compare(scores, path, shaped(images, free), threshold(model))
        except Exception as error:  # an exporter raises anything for what it cannot write
            why = one_line(error, 300)
            path.unlink(missing_ok=True)
            continue
        if found["max_difference"] <= ROUNDING * max(1.0, found["largest_score"]):
            free_names = [AXES[axis] for axis in sorted(free)]
            return found | {"images": len(images), "free": free_names}
        why = (
            f"what onnxruntime gives differs by up to {found['max_difference']:.3g} from PyTorch (and the "
            f"class of {found['changed']:.2%} of the pixels)"
        )
        path.unlink()
    raise UserError(f"this model cannot be exported as ONNX: {why}")


def shaped(images: Sequence[torch.Tensor], free: set[int]) -> list[torch.Tensor]:
    """The images as inputs for a graph with these dynamic axes: in a batch of two if possible, and all at the
    first one's size if necessary. With at least two heights and widths if these are dynamic."""
    size = images[0].shape[2:]
    if not free & {2, 3}:
        images = [_resized(image, size) for image in images]
    elif any(len({image.shape[axis] for image in images}) == 1 for axis in (2, 3)):
        larger = [side + more for side, more in zip(size, FURTHER, strict=True)]
        images = [*images, _resized(images[0], larger)]
    return [torch.cat([images[0], images[0].flip(3)]), *images[1:]] if 0 in free else list(images)


def _resized(image: torch.Tensor, size: Any) -> torch.Tensor:
    return torch.nn.functional.interpolate(image, tuple(size), mode="bilinear", align_corners=False)


def write(scores: torch.nn.Module, path: Path, example: torch.Tensor, free: set[int]) -> None:
    names = {axis: AXES[axis] for axis in free}
    axes = {"image": names, "scores": names} if names else None
    options: dict[str, Any] = (
        {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    )
    with torch.no_grad(), warnings.catch_warnings(), poolable():
        warnings.simplefilter("ignore")  # the tracer's, about shapes; `compare` decides
        torch.onnx.export(
            scores, (example,), str(path), opset_version=OPSET, input_names=["image"],
            output_names=["scores"], dynamic_axes=axes, **options,
        )  # fmt: skip


@contextlib.contextmanager
def poolable() -> Iterator[None]:
    """Replaces adaptive pooling, which PSPNet and UPerNet use and ONNX lacks, by a product with an averaging
    matrix, for any size."""
    functional: Any = torch.nn.functional
    original = functional.adaptive_avg_pool2d
    functional.adaptive_avg_pool2d = average
    try:
        yield
    finally:
        functional.adaptive_avg_pool2d = original


def average(inputs: torch.Tensor, output_size: Any) -> torch.Tensor:
    """torch.nn.functional.adaptive_avg_pool2d."""
    sizes = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size, output_size]
    given = inputs.shape[2:]
    rows, columns = (
        _averages(length, length if size is None else size, inputs)
        for length, size in zip(given, sizes, strict=True)
    )
    return rows @ inputs @ columns.transpose(0, 1)


def _averages(length: Any, parts: Any, like: torch.Tensor) -> torch.Tensor:
    """parts × length: row i averages positions floor(i·length/parts) to ceil((i+1)·length/parts)."""
    at = torch.arange(length, device=like.device)[None]
    part = torch.arange(parts, device=like.device)[:, None]
    begin = torch.div(part * length, parts, rounding_mode="floor")
    end = torch.div((part + 1) * length + parts - 1, parts, rounding_mode="floor")
    inside = ((at >= begin) & (at < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def threshold(model: Any) -> float | None:
    """The probability above which a pixel has the class of a model with one output; None for others."""
    return float(model.decode_head.threshold) if getattr(model, "out_channels", None) == 1 else None


def compare(
    scores: torch.nn.Module, path: Path, batches: Sequence[torch.Tensor], above: float | None
) -> dict[str, Any]:
    """Compares onnxruntime's scores with PyTorch's: the largest difference, the largest score, the fraction
    of pixels with another class. `above`: as from `threshold`. Raises ValueError for different shapes, and
    for scores that are not finite in both."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    changed = pixels = 0
    for batch in batches:
        with torch.no_grad():
            theirs = scores(batch).cpu().numpy()
        (ours,) = session.run(None, {"image": batch.cpu().numpy()})
        if ours.shape != theirs.shape:
            raise ValueError(f"onnxruntime gives {ours.shape}, PyTorch {theirs.shape}")
        finite = np.isfinite(theirs)
        # An infinite score, as of a class that is masked out, has to be the same; a NaN fits nothing.
        if not np.array_equal(ours[~finite], theirs[~finite]) or not np.isfinite(ours[finite]).all():
            raise ValueError("some scores are NaN, or infinite in onnxruntime or PyTorch alone")
        difference = max(difference, float(np.abs(ours[finite] - theirs[finite]).max(initial=0)))
        largest = max(largest, float(np.abs(theirs[finite]).max(initial=0)))
        others = classes(ours, above) != classes(theirs, above)
        changed += int(others.sum())
        pixels += others.size
    return {
        "max_difference": difference,
        "largest_score": largest,
        "changed": changed / pixels,
    }


def classes(scores: np.ndarray, above: float | None) -> np.ndarray:
    """The classes, N × H × W; for a model with one output, whether it is that class."""
    return np.asarray(scores.argmax(1) if above is None else 1 / (1 + np.exp(-scores[:, 0])) > above)
