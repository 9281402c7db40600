"""What can be said of GPUs without torch: the CUDA versions of driver and torch, and which may be used."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Environment variables that list the GPUs a process may use. The last two are AMD's, whose torch respects
the first as well (https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html)."""


def visible_count(environ: Mapping[str, str]) -> int | None:
    """The number of GPUs that those variables allow; None if none of them is set. -1 ends a list."""
    counts = []
    for name in VISIBLE:
        if (value := environ.get(name)) is not None:
            parts = [part.strip() for part in value.split(",")]
            counts.append(parts.index("-1") if "-1" in parts else len([part for part in parts if part]))
    return min(counts, default=None)


def driver() -> str | None:
    """The newest CUDA that the driver supports, such as "12.4"; None without an NVIDIA driver.

    Asks the driver's own library, without initializing a GPU or importing torch: cuDriverGetVersion returns
    1000 * major + 10 * minor (CUDA Driver API, "Version Management").
    """
    number = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else None


def build() -> str | None:
    """The CUDA version that the installed torch was built for, without importing it; None for a CPU build, or
    without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def fix(built: str | None, taken: str | None) -> str:
    """How to fix a torch built for CUDA `built` under a driver that supports `taken`; "" if they fit.

    A driver runs what was built for its own major version of CUDA or an older one
    (https://docs.nvidia.com/deploy/cuda-compatibility/).
    """
    if not built or not taken or _major(built) <= _major(taken):
        return ""
    if _major(taken) >= 12:
        other = (
            "env/setup.sh --torch 2.8.0 (on PyPI for CUDA 12), or --torch VERSION+cu126 --torch-index PLACE"
        )
    elif _major(taken) == 11:
        other = (
            "env/setup.sh --torch 2.6.0+cu118 --torch-index PLACE (an index that has builds for CUDA 11.8)"
        )
    else:
        other = "no torch that Baton takes was built for it"
    return f"{other}; or a driver for CUDA {_major(built)}"


def _major(version: str) -> int:
    return int(version.split(".")[0])
