"""A hook that writes when a start compiled, how often it made kernels, and how often it found them made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class CountKernels(Hook):
    """Writes `path`: {"graphs": how many there were after each iteration, "made": those that inductor
    compiled in this process, "found": those it had kept}."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.graphs: list[int] = []

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        from torch._dynamo.utils import counters

        self.graphs.append(counters["stats"]["unique_graphs"])

    def after_train(self, runner: Any) -> None:  # noqa: ARG002
        from torch._dynamo.utils import counters

        inductor, autograd = counters["inductor"], counters["aot_autograd"]
        found = inductor["fxgraph_cache_hit"] + autograd["autograd_cache_hit"]
        counts = {"graphs": self.graphs, "made": inductor["fxgraph_cache_miss"], "found": found}
        self.path.write_text(json.dumps(counts))
