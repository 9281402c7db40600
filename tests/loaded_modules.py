"""A hook that writes down what a training has imported by the end of its first step: RUN/modules.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class LoadedModules(Hook):
    priority = "LOWEST"

    def __init__(self, result: str) -> None:
        self.result = Path(result)

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        if not self.result.exists():
            self.result.write_text(json.dumps(sorted(sys.modules)))
