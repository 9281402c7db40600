"""A hook that writes how often a start had to make kernels, and how often it found them made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class CountKernels(Hook):
    """Writes `path`: {"made": graphs that inductor compiled in this process, "found": those it had kept}."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def after_train(self, runner: Any) -> None:  # noqa: ARG002
        from torch._dynamo.utils import counters

        inductor, autograd = counters["inductor"], counters["aot_autograd"]
        found = inductor["fxgraph_cache_hit"] + autograd["autograd_cache_hit"]
        self.path.write_text(json.dumps({"made": inductor["fxgraph_cache_miss"], "found": found}))
