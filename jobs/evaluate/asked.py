"""What a config's test requests: which figures, which other metrics, which label is ignored."""

from __future__ import annotations

from typing import Any

from jobs.catalog import supported
from jobs.catalog.supported import name_of
from jobs.run.metrics import EVALUATED, FIGURES

OURS = supported.IOU_OPTIONS - {"nan_to_num", "output_dir", "format_only"}
"""Options of an IoUMetric that is computed from the confusion matrix; with others, it is run itself."""


def evaluators(cfg: Any) -> list[Any]:
    given = cfg.test_evaluator
    return [one or {} for one in given] if isinstance(given, (list, tuple)) else [given or {}]


def ignored(cfg: Any) -> int:
    """The label that is ignored; 255 unless the config's first IoUMetric says otherwise."""
    first = [one for one in evaluators(cfg) if _is_iou(one)][:1]
    return int(first[0].get("ignore_index", 255)) if first else 255


def wanted(cfg: Any) -> tuple[list[str], list[Any], float]:
    """What the config's evaluators request: the names of figures counted here; the configs of other metrics;
    and the beta of an F-score."""
    asked, others, beta = list(EVALUATED), [], 1.0
    for one in evaluators(cfg):
        if not _is_iou(one) or set(one) - OURS or one.get("ignore_index", 255) != ignored(cfg):
            others.append(one)
            continue
        beta = float(one.get("beta", beta))
        asked += supported.figures_of(one)
    hook = (getattr(cfg, "default_hooks", None) or {}).get("checkpoint") or {}
    best = hook.get("save_best")
    names = best if isinstance(best, (list, tuple)) else [best]
    asked += [name for one in names if (name := str(one).rpartition("/")[2]) in FIGURES]
    return list(dict.fromkeys(asked)), others, beta


def _is_iou(evaluator: Any) -> bool:
    return name_of(evaluator.get("type", "IoUMetric")) in supported.IOU_METRICS
