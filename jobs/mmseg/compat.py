"""Everything needed to run the two sets of OpenMMLab packages with current torch, in one place.

Set A: mmsegmentation 1.2.2, mmengine 0.10.7, mmcv-lite 2.1.0. Set B: the maintained forks (onedl-*), with the
same import names. Call `prepare()` before the first import of mmengine, mmcv or mmseg; both sets then behave
alike. Each function names the breakage it fixes; when an upstream release fixes it, the function goes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import pickle
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from jobs.catalog import pretrained
from jobs.catalog.installed import has_compiled_mmcv, is_installed
from jobs.engine import safe_load
from jobs.mmseg import late
from jobs.run import checkpoint_files
from jobs.run.errors import UserError, one_line


def prepare() -> None:
    """Applies every fix; idempotent."""
    stub_compiled_mmcv()
    find_packages_without_pkg_resources()
    know_the_standard_library()
    late.import_less()
    load_weights_only()
    download_nothing()
    keep_config_text_plain()
    refuse_labels_that_do_not_fit()
    normalise_any_number_of_channels()


def stub_compiled_mmcv() -> None:
    """mmseg imports mmcv.ops in four files, which needs the compiled `mmcv._ext` that mmcv-lite lacks.

    A stand-in with a `__spec__` (torch._dynamo requires it) satisfies the import. It has the operations of
    pure_ops.py; calling any other raises an error. Does nothing if the compiled extension is installed.
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
        from jobs.mmseg import pure_ops

        if hasattr(pure_ops, name):
            return getattr(pure_ops, name)

        def missing(*_: Any, **__: Any) -> Any:
            raise RuntimeError(
                f"the model needs mmcv's compiled operation {name!r}: install mmcv, not mmcv-lite"
            )

        return missing


def find_packages_without_pkg_resources() -> None:
    """For `mmseg::…` in a config, mmengine asks pkg_resources (dropped by setuptools 81) for a distribution
    called mmsegmentation (set B's has another name). Python's own import system knows where `mmseg` is."""
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


def know_the_standard_library() -> None:
    """A pure Python config may call what it imports from the standard library (`deepcopy(model)`), and
    nothing else. mmengine looks for the library beside the interpreter, where a virtual environment has none.
    """
    import mmengine.config.config as config
    import mmengine.config.utils as utils

    original = utils._is_builtin_module
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def is_builtin(module: str) -> bool:
        return module.split(".")[0] in sys.stdlib_module_names or bool(original(module))

    utils._is_builtin_module = config._is_builtin_module = is_builtin


MOST_LABEL, VOID = 255, 65535
"""The largest label that LoadAnnotations keeps; and the 16-bit value that becomes 255, as intended."""


def refuse_labels_that_do_not_fit() -> None:
    """mmseg's LoadAnnotations silently truncates masks to 8 bits: in a 16-bit mask, label 300 becomes 44.
    This makes it raise ValueError instead (to which data.py adds the file)."""
    from mmseg.datasets.transforms import loading

    if isinstance(loading.mmcv, _Decoder):
        return
    loading.mmcv = decoder = _Decoder(loading.mmcv)
    stock = loading.LoadAnnotations._load_seg_map

    def load_seg_map(self: Any, results: dict[str, Any]) -> None:
        decoder.wide = None
        stock(self, results)
        if decoder.wide is None:
            return
        wide, decoder.wide = decoder.wide, None
        wrong = [
            value for value in np.unique(wide).tolist() if not 0 <= value <= MOST_LABEL and value != VOID
        ]
        if wrong:
            listed = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
            raise ValueError(
                f"label {listed} of a mask of {wide.dtype}: masks are read as 8 bits, in which labels are 0 "
                "to 254, and 255 is ignored; use other labels, or read them with a transform of your own"
            )

    loading.LoadAnnotations._load_seg_map = load_seg_map


class _Decoder(types.ModuleType):
    """mmcv, as seen by one of mmseg's modules; `wide`: the last decoded image, if it has more than 8 bits."""

    wide: Any = None

    def __init__(self, mmcv: types.ModuleType) -> None:
        super().__init__(mmcv.__name__)
        self.mmcv = mmcv

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mmcv, name)

    def imfrombytes(self, *args: Any, **options: Any) -> Any:
        pixels = self.mmcv.imfrombytes(*args, **options)
        self.wide = pixels if pixels is not None and pixels.dtype.itemsize > 1 else None
        return pixels


def normalise_any_number_of_channels() -> None:
    """mmseg normalises images with any number of channels. The forks do so with mmengine's
    ImgDataPreprocessor, which refuses all but 1 and 3."""
    import torch
    from mmengine.model import ImgDataPreprocessor

    stock = ImgDataPreprocessor.__init__
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def init(self: Any, mean: Any = None, std: Any = None, *more: Any, **options: Any) -> None:
        if mean is None or std is None or len(mean) != len(std) or len(mean) in (1, 3):
            stock(self, mean, std, *more, **options)
            return
        stock(self, None, None, *more, **options)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), False)
        self._enable_normalize = True

    ImgDataPreprocessor.__init__ = init


def load_weights_only() -> None:
    """mmengine 0.10.7 fails on its own checkpoints with torch >= 2.6; set B just unpickles anything.

    Whatever mmengine, mmseg or a module of the user's loads goes through `load` instead: only data, never
    code, and from an existing file (see download_nothing).
    """
    import torch
    from mmengine.runner import CheckpointLoader

    global _torch_load
    if _torch_load is None:
        _torch_load = torch.load
        torch.load = load_anything  # type: ignore[assignment]
    CheckpointLoader.register_scheme(prefixes=list(CheckpointLoader._schemes), loader=load_named, force=True)
    CheckpointLoader.register_scheme(prefixes="mmcls://", loader=load_backbone, force=True)


_torch_load: Any = None


def load_anything(file: Any, map_location: Any = None, pickle_module: Any = None, **options: Any) -> Any:
    """torch.load as everything in a job gets it: weights only, whatever the caller says. Raises as `load`."""
    import torch

    # Called by `load` itself, which may bring its own unpickler.
    restricted = getattr(pickle_module, "__name__", "") == "restricted_pickle"
    # A caller's own weights_only is safe since torch 2.6; before, it executes TorchScript in a file.
    safe = options.get("weights_only") is True and safe_load.release(torch.__version__) >= (2, 6)
    if restricted or (safe and pickle_module is None):
        return _torch_load(file, map_location, pickle_module, **options)
    if isinstance(file, (str, os.PathLike)):
        return load(file, map_location)
    with tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        return load(copy.name, map_location)


def download_nothing() -> None:
    """Jobs load what a preparation has fetched and verified, and never download anything themselves.

    torch.hub's only access to the network, which torchvision and mmengine also use, raises UserError.
    """
    import torch.hub

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise UserError(
            f"jobs download nothing, and {url} is not here: python launch/prepare.py --weights {url} "
            "fetches it; the config may then name that URL, or the file"
        )

    torch.hub.download_url_to_file = refuse
    # On import, albumentations checks for a newer version, and hangs without a network; newer releases also
    # report each pipeline that is made, and its machine.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("ALBUMENTATIONS_OFFLINE", "1")


def load_named(filename: str, map_location: Any = "cpu", **_: Any) -> Any:
    """Loads what mmengine is told to: a file's path, or a name or URL that stands for a file below
    data/pretrained.

    Raises UserError if it is missing or damaged, or contains anything but data.
    """
    path = pretrained.placed(filename, pretrained.PLACE) if "://" in filename else Path(filename)
    try:
        content = load(path, map_location)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a file that is none makes the reader stumble over
        if why := checkpoint_files.why_unsaved(path):
            raise UserError(f"{path} {why}") from None
        if isinstance(error, pickle.UnpicklingError):
            more = f"{path} is not loaded, because it holds more than weights"
            if name := safe_load.unknown(error):
                raise UserError(f"{more} ({name}): save its state_dict() alone") from None
            raise UserError(f"{more}, or is damaged: {one_line(error, 200)}") from None
        if "PytorchStreamReader failed" in str(error):
            raise UserError(f"{path} is damaged, or was not copied whole: {one_line(error, 80)}") from None
        raise
    if why := checkpoint_files.damage(path):
        raise UserError(f"{path} {why}: copy or download it again")
    return content


def load_backbone(filename: str, map_location: Any = "cpu", **_: Any) -> Any:
    """`mmcls://PATH`: the backbone's weights in a classifier's local file, as mmengine loads them after a
    download."""
    path = filename.removeprefix("mmcls://")
    content = load_named(path if os.path.isfile(path) else filename, map_location)
    weights = content.get("state_dict", content)
    mine = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    return {"state_dict": {name.removeprefix("backbone."): value for name, value in mine.items()}}


def _of_mmengine() -> dict[str, Any]:
    """What checkpoints of mmengine's CheckpointHook contain besides tensors, plain values and NumPy's."""
    from mmengine.logging import HistoryBuffer

    return {
        "mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer,
        # Used by pickle to find a method; ours finds only those of a HistoryBuffer.
        "builtins.getattr": _statistic,
    }


def _statistic(owner: Any, name: str) -> Any:
    """The methods named in a HistoryBuffer's checkpoint: `mean`, `max`, `min` and `current`."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ("mean", "max", "min", "current"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"the file asks for {name!r} of {owner!r}: this is not a plain checkpoint")


safe_load.allow(_of_mmengine)
load = safe_load.load


def keep_config_text_plain() -> None:
    """mmengine formats the whole config with yapf (0.9 s) whenever its text is used, several times per start.

    Only `formatted`, for the `config.py` that people read, still does.
    """
    _format_with(lambda text, **_: (text, True))


def formatted(cfg: Any) -> str:
    """The text of a config, formatted for people, and escaped so that mmengine finds no templates in it."""
    _format_with(lambda text, **options: _original_format(text, **options))
    try:
        return str(cfg.pretty_text).replace("{{", "{\\x7b")
    finally:
        keep_config_text_plain()


def _format_with(function: Any) -> None:
    global _original_format
    import mmengine.config.config as config
    import yapf.yapflib.yapf_api as yapf

    if _original_format is None:
        _original_format = yapf.FormatCode
    # Set A imports the function into its module, set B at each use.
    yapf.FormatCode = function
    if hasattr(config, "FormatCode"):
        config.FormatCode = function


_original_format: Any = None
