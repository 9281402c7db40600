"""Renames weights published by timm and the models' authors to the names in MMSegmentation's backbones.

With mmsegmentation's own converters (tools/model_converters); these unpickle what they convert, so only their
renaming is called, on weights that were read safely.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from jobs.catalog.recipes import converters
from jobs.run.errors import UserError


def convert(kind: str, source: Path, target: Path) -> None:
    """Converts `source` to `target`, atomically, with KIND2mmseg.py; the two may be the same.

    Raises UserError if the installed mmsegmentation has no such converter, or if it is not for this file.
    """
    script = converters("model_converters").get(f"{kind}2mmseg")
    if script is None:
        raise UserError(f"the installed mmsegmentation lacks {kind}2mmseg.py, which makes {target.name}")
    from jobs.mmseg import compat

    compat.prepare()
    import torch

    content = compat.load(source)
    weights: Any = content if isinstance(content, dict) else {}
    weights = weights.get("state_dict", weights.get("model", weights))
    if PART not in weights:
        raise UserError(f"{source} is not what {script.name} converts: it has no {PART}")
    part = target.with_name(f"{target.name}.part")
    torch.save(_function(script, f"convert_{kind}")(weights), part)
    os.replace(part, target)


PART = "patch_embed.proj.weight"
"""A weight that all unconverted files have, and no converted one."""


def _function(script: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
