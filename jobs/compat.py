"""What it takes to run the two sets of OpenMMLab packages on current torch, all in one place.

Set A: mmsegmentation 1.2.2, mmengine 0.10.7, mmcv-lite 2.1.0. Set B: the maintained forks (onedl-*), with the
same import names. Call `prepare()` before the first import of mmengine, mmcv or mmseg; both sets then behave
alike. Each function names the breakage it mends; when an upstream release mends it, the function goes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Applies every fix. Calling it again does nothing more."""
    stub_compiled_mmcv()
    find_packages_without_pkg_resources()
    load_weights_only()
    keep_config_text_plain()


def stub_compiled_mmcv() -> None:
    """mmseg imports mmcv.ops in four files, and mmcv-lite has no compiled `mmcv._ext` to import it with.

    A stand-in with a `__spec__` (torch._dynamo asks for it) satisfies the import; an operation that is really
    called says so. Nothing is done where the compiled extension is installed.
    """
    if "mmcv._ext" in sys.modules or not is_installed("mmcv") or has_compiled_mmcv():
        return
    stub = _MissingOps("mmcv._ext")
    stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = stub


class _MissingOps(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise RuntimeError(
                f"the model needs mmcv's compiled operation {name!r}: install mmcv, not mmcv-lite"
            )

        return missing


def find_packages_without_pkg_resources() -> None:
    """`mmseg::…` in a config asks pkg_resources (dropped by setuptools 81) for a distribution called
    mmsegmentation (set B's has another name). Python's own import system knows where `mmseg` lies."""
    import mmengine.config.config as config
    from mmengine.config.utils import MODULE2PACKAGE

    module_of = {package: module for module, package in MODULE2PACKAGE.items()}

    def installed_path(package: str) -> str | None:
        spec = importlib.util.find_spec(module_of.get(package, package))
        return os.path.dirname(spec.origin) if spec and spec.origin else None

    def get_installed_path(package: str) -> str:
        path = installed_path(package)
        if path is None:
            raise ModuleNotFoundError(f"{package} is not installed")
        return path

    config.is_installed = lambda package: installed_path(package) is not None
    config.get_installed_path = get_installed_path


def load_weights_only() -> None:
    """mmengine 0.10.7 fails on its own checkpoints with torch >= 2.6; set B answers by unpickling anything.

    Every local file that mmengine loads goes through `load` instead: data only, never code.
    """
    from mmengine.runner import CheckpointLoader

    CheckpointLoader.register_scheme(prefixes="", loader=load, force=True)
    CheckpointLoader.register_scheme(prefixes="mmcls://", loader=load_backbone, force=True)


def load(filename: str | os.PathLike[str], map_location: Any = "cpu", **_: Any) -> Any:
    """A checkpoint's content. Tensors are mapped from the file, not read, until they are used.

    Our own checkpoints hold nothing but tensors and plain Python values. Those that mmengine wrote also hold
    the few harmless classes of `_allowed`. Raises pickle.UnpicklingError for a file with anything else in it
    (such a file could run any code), FileNotFoundError where there is none.
    """
    import torch

    path = os.path.expanduser(os.fspath(filename))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} can not be found.")
    with torch.serialization.safe_globals(_allowed()):
        # The format before torch 1.6 (many published weights have it) cannot be mapped.
        mapped = _is_zip(path)
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped or None)


def load_backbone(filename: str, map_location: Any = "cpu", **_: Any) -> Any:
    """`mmcls://PATH`: what a classifier's local file has of its backbone, as mmengine does after it has
    downloaded the file."""
    content = load(filename.removeprefix("mmcls://"), map_location)
    weights = content.get("state_dict", content)
    mine = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    return {"state_dict": {name.removeprefix("backbone."): value for name, value in mine.items()}}


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _allowed() -> list[Any]:
    """Classes in checkpoints of mmengine's CheckpointHook that weights_only does not know by itself."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    # NumPy 2 moved its internals.
    multiarray = getattr(np, "_core", None) or np.core
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "uint8", "bool")]
    return [
        HistoryBuffer,
        # How pickle finds a method again; ours finds none but a HistoryBuffer's.
        (_statistic, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        multiarray.multiarray._reconstruct,
        multiarray.multiarray.scalar,
        *dtypes,
    ]


def _statistic(owner: Any, name: str) -> Any:
    """The methods that a HistoryBuffer's checkpoint names: `mean`, `max`, `min` and `current`."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ("mean", "max", "min", "current"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"the file asks for {name!r} of {owner!r}: it is not a plain checkpoint")


def keep_config_text_plain() -> None:
    """mmengine formats the whole config with yapf (0.9 s) at each use of its text, several times a start.

    Only `formatted` (for the `config.py` that people read) still pays for that.
    """
    _format_with(lambda text, **_: (text, True))


def formatted(cfg: Any) -> str:
    """The text of a config, laid out for people."""
    _format_with(_yapf)
    try:
        return str(cfg.pretty_text)
    finally:
        keep_config_text_plain()


def _yapf(text: str, **options: Any) -> Any:
    return _original_format(text, **options)


def _format_with(function: Any) -> None:
    global _original_format
    import mmengine.config.config as config
    import yapf.yapflib.yapf_api as yapf

    if _original_format is None:
        _original_format = yapf.FormatCode
    # Set A has imported the function into its module, set B imports it each time.
    yapf.FormatCode = function
    if hasattr(config, "FormatCode"):
        config.FormatCode = function


_original_format: Any = None


def has_compiled_mmcv() -> bool:
    """Whether the installed mmcv has its compiled operations; mmcv-lite has none."""
    spec = importlib.util.find_spec("mmcv")
    places = list(spec.submodule_search_locations or []) if spec else []
    return any(next(Path(place).glob("_ext*"), None) for place in places)


def is_installed(package: str) -> bool:
    """Whether a top-level package or module can be imported; nothing is."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # loaded without a spec, as `__main__` is
        return True
