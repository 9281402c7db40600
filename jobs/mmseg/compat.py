"""What it takes to run the two sets of OpenMMLab packages on current torch, all in one place.

Set A: mmsegmentation 1.2.2, mmengine 0.10.7, mmcv-lite 2.1.0. Set B: the maintained forks (onedl-*), with the
same import names. Call `prepare()` before the first import of mmengine, mmcv or mmseg; both sets then behave
alike. Each function names the breakage it mends; when an upstream release mends it, the function goes.
"""

from __future__ import annotations

import collections
import importlib
import importlib.machinery
import importlib.util
import os
import pickle
import re
import shutil
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from typing import Any

from jobs.run.errors import UserError


def prepare() -> None:
    """Applies every fix. Calling it again does nothing more."""
    stub_compiled_mmcv()
    find_packages_without_pkg_resources()
    load_weights_only()
    download_nothing()
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

    Whatever mmengine, mmseg or a module of the user's loads goes through `load` instead: data only, never
    code, and from a file that is there (see download_nothing).
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
    """torch.load as everybody in a job gets it: weights only, whatever its caller says. Raises as `load`."""
    # `load` itself, which may bring an unpickler of its own.
    restricted = getattr(pickle_module, "__name__", "") == "restricted_pickle"
    if restricted or (options.get("weights_only") is True and pickle_module is None):
        return _torch_load(file, map_location, pickle_module, **options)
    if isinstance(file, (str, os.PathLike)):
        return load(file, map_location)
    with tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        return load(copy.name, map_location)


def download_nothing() -> None:
    """A job loads what a preparation has fetched and checked; nothing from an address, at its own run time.

    torch.hub's one way to the network, which torchvision and mmengine use too, says so.
    """
    import torch.hub

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise UserError(
            f"a job downloads nothing, and {url} is not here: python launch/prepare.py --weights {url} "
            "fetches it; the config may then name that address, or the file"
        )

    torch.hub.download_url_to_file = refuse


def load_named(filename: str, map_location: Any = "cpu", **_: Any) -> Any:
    """What mmengine is told to load: a file's path, or a name or an address that stands for one below
    data/pretrained.

    Raises UserError if it is not there, or if it holds anything but data.
    """
    from jobs.mmseg import pretrained

    path = pretrained.placed(filename, pretrained.PLACE) if "://" in filename else Path(filename)
    try:
        return load(path, map_location)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not loaded, for it holds more than weights: {reason}") from None


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
    # The format before torch 1.6 (many published weights have it) cannot be mapped.
    mapped = _is_zip(path) or None
    if release(torch.__version__) < (2, 6):
        return _load_before_2_6(path, map_location, mapped)
    names: list[Any] = [(value, name) for name, value in _allowed().items()]
    with torch.serialization.safe_globals(names):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)


def prove() -> None:
    """Saves and loads a small state, as checkpoints are. Raises UserError if this environment cannot: that
    has to be known before a training, not after its first preemption."""
    import numpy as np
    import torch

    file = os.memfd_create("state")
    try:
        state: dict[str, Any] = {"x": torch.from_numpy(np.arange(3.0)), "step": 1}
        path = f"/proc/self/fd/{file}"
        torch.save(state, path)
        found = load(path)
        if found["step"] != 1 or not torch.equal(found["x"], state["x"]):
            raise ValueError(f"loaded {found}")
    except Exception as error:
        # Whatever an unknown release of torch or NumPy makes of it.
        raise UserError(
            f"torch {torch.__version__} with NumPy {np.__version__} could not resume a run: a small state "
            f"could not be saved and loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    finally:
        os.close(file)


def release(version: str) -> tuple[int, int]:
    """(2, 4) of "2.4.1+cu121"."""
    major, minor = version.split(".")[:2]
    return int(major), int(re.sub(r"\D.*", "", minor))


def _load_before_2_6(path: str, map_location: Any, mapped: bool | None) -> Any:
    """`load` for torch 2.1 to 2.5, whose own weights_only cannot be told of further names (safe_globals came
    with 2.5, names for them with 2.6) and lets crafted files run code (CVE-2025-32434, mended in 2.6).

    torch.load with an unpickler of ours: whatever a file names is looked up in a list, and nowhere else. The
    two formats that torch.load hands to other readers are refused, as from 2.6 on.
    """
    import torch

    reader: Any = torch._C.PyTorchFileReader
    if mapped:
        if reader(path).has_record("constants.pkl"):
            raise pickle.UnpicklingError(f"{path} is a TorchScript archive, not a checkpoint")
    elif tarfile.is_tarfile(path):
        raise pickle.UnpicklingError(f"{path} is a tar archive, not a checkpoint")
    return torch.load(
        path, map_location=map_location, pickle_module=_restricted(), weights_only=False, mmap=mapped
    )


def _restricted() -> Any:
    """A stand-in for the module `pickle`, with what torch.load takes of it."""
    import torch

    known = _allowed() | {
        "collections.OrderedDict": collections.OrderedDict,
        "_codecs.encode": _latin1,
        "torch.Size": torch.Size,
        "torch.Tensor": torch.Tensor,
        "torch.device": torch.device,
        "torch.nn.parameter.Parameter": torch.nn.Parameter,
        "torch.serialization._get_layout": torch.serialization._get_layout,
        "torch.storage.UntypedStorage": torch.UntypedStorage,
        "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    }
    known |= {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    # As protocol 2, in which torch writes, calls them.
    known["__builtin__.getattr"] = known["builtins.getattr"]
    known["__builtin__.set"] = known["builtins.set"] = set

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            """Called for everything in a pickle that is not plain data. (torch's subclass of this answers
            for the names of storages itself, with a mere description of one.)"""
            found = known.get(f"{module}.{name}")
            if found is None:
                raise pickle.UnpicklingError(
                    f"the file asks for {module}.{name}: it is not a plain checkpoint"
                )
            return found

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    module: Any = types.ModuleType("restricted_pickle")
    module.Unpickler, module.load = Unpickler, load
    return module


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the file asks for bytes in {encoding!r}: it is not a plain checkpoint")
    return text.encode("latin1")


def load_backbone(filename: str, map_location: Any = "cpu", **_: Any) -> Any:
    """`mmcls://PATH`: what a classifier's local file has of its backbone, as mmengine does after it has
    downloaded the file."""
    path = filename.removeprefix("mmcls://")
    content = load_named(path if os.path.isfile(path) else filename, map_location)
    weights = content.get("state_dict", content)
    mine = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    return {"state_dict": {name.removeprefix("backbone."): value for name, value in mine.items()}}


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _allowed() -> dict[str, Any]:
    """What checkpoints of mmengine's CheckpointHook hold that weights_only does not know by itself, by the
    names that stand in the files."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    arrays = importlib.import_module("numpy._core" if release(np.__version__) >= (2, 0) else "numpy.core")
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "uint8", "bool")]
    found = {
        "mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer,
        # How pickle finds a method again; ours finds none but a HistoryBuffer's.
        "builtins.getattr": _statistic,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }
    found |= {f"{dtype.__module__}.{dtype.__name__}": dtype for dtype in dtypes}
    for package in ("numpy.core", "numpy._core"):  # NumPy 2 moved its internals; a file may be of either
        found[f"{package}.multiarray._reconstruct"] = arrays.multiarray._reconstruct
        found[f"{package}.multiarray.scalar"] = arrays.multiarray.scalar
    return found


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
