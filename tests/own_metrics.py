"""Metrics of a user's own, as a config names them beside IoUMetric."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class InOrder(BaseMetric):
    """Depends on every image, on their order, on the scores and on the random numbers of the moment."""

    default_prefix = "own"

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        (sample,) = data_samples
        assert len(data_batch["inputs"]) == len(data_batch["data_samples"])
        scores = sample["seg_logits"]["data"].double().mean()
        # Two of each image, of which one is a tensor: what a result is, is the metric's affair.
        self.results += [(sample["img_path"].rsplit("/", 1)[1], scores), {"drawn": random.random()}]

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        assert self.dataset_meta is not None
        digest = hashlib.sha256(repr(results).encode()).hexdigest()
        return {"images": len(results), "digest": digest, "classes": len(self.dataset_meta["classes"])}


@METRICS.register_module()
class Broken(BaseMetric):
    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:  # noqa: ARG002
        raise ZeroDivisionError("nothing to divide by")

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        raise NotImplementedError


@METRICS.register_module()
class Unsendable(BaseMetric):
    """Results that only a pickle could carry."""

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:  # noqa: ARG002
        self.results.append(object())

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"images": len(results)}
