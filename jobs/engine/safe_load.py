"""Reads a checkpoint's content: only data, never code, with every torch since 2.1.

torch's own `weights_only` accepts tensors and plain Python values. Whatever else the checkpoints of a
training library contain is registered here by its adapter (`allow`), by name: nothing else is ever looked up.
"""

from __future__ import annotations

import collections
import os
import pickle
import re
import tarfile
import types
from collections.abc import Callable
from typing import Any

from jobs.engine import numpy_data
from jobs.run.errors import UserError, one_line

_registered: list[Callable[[], dict[str, Any]]] = []


def allow(classes: Callable[[], dict[str, Any]]) -> None:
    """Registers what a training library's checkpoints contain.

    `classes` is called when a file is read, and returns name in the file -> object. Such an object must be
    harmless whatever arguments a crafted file calls it with.
    """
    _registered.append(classes)


def load(filename: str | os.PathLike[str], map_location: Any = "cpu", **_: Any) -> Any:
    """A checkpoint's content. Tensors are memory-mapped from the file.

    Our own checkpoints contain only tensors and plain Python values, those written by mmengine also the few
    harmless classes of `allowed`. Raises pickle.UnpicklingError for a file with anything else in it (it could
    run any code), FileNotFoundError if there is none.
    """
    import torch

    path = os.path.expanduser(os.fspath(filename))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} can not be found.")
    # The format before torch 1.6, which many published weights have, cannot be mapped.
    mapped = _is_zip(path) or None
    if release(torch.__version__) < (2, 6):
        return _load_before_2_6(path, map_location, mapped)
    known = allowed()
    with torch.serialization.safe_globals([(value, name) for name, value in known.items()]):
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    return numpy_data.made(content, _classes(known))


def load_own(path: str | os.PathLike[str]) -> Any:
    """`load` for one of the run's own valid checkpoints. Raises UserError if it contains more than data,
    which is possible if it was saved before `storable.check` existed."""
    try:
        return load(path)
    except pickle.UnpicklingError as error:
        what = unknown(error) or one_line(error, 200)
        raise UserError(
            f"{path} cannot be loaded, because it holds more than data ({what}): train a new run whose "
            "state does not hold this"
        ) from None


def unknown(error: Exception) -> str:
    """The name of what `load` refused in a file; "" for another error."""
    name = re.search(r"GLOBAL ([\w.]+)|asks for ([\w.]+)", str(error))
    return (name[1] or name[2]) if name else ""


def round_trip(state: Any) -> Any:
    """What a later start would load of `state`. Raises whatever saving or loading an object raises."""
    import torch

    file = os.memfd_create("state")
    try:
        path = f"/proc/self/fd/{file}"
        torch.save(state, path)
        return load(path)
    finally:
        os.close(file)


def prove() -> None:
    """Saves and loads a small state like a checkpoint. Raises UserError if this environment cannot: that must
    be known before a training, not after its first preemption."""
    import numpy as np
    import torch

    try:
        state: dict[str, Any] = {"x": torch.from_numpy(np.arange(3.0)), "step": 1}
        found = round_trip(state)
        if found["step"] != 1 or not torch.equal(found["x"], state["x"]):
            raise ValueError(f"loaded {found}")
    except Exception as error:
        # An unknown release of torch or NumPy may raise anything.
        raise UserError(
            f"torch {torch.__version__} with NumPy {np.__version__} could not resume a run: a small state "
            f"could not be saved and loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None


def release(version: str) -> tuple[int, int]:
    """(2, 4) for "2.4.1+cu121"."""
    major, minor = version.split(".")[:2]
    return int(major), int(re.sub(r"\D.*", "", minor))


def _load_before_2_6(path: str, map_location: Any, mapped: bool | None) -> Any:
    """`load` for torch 2.1 to 2.5, whose own weights_only cannot be given further names (safe_globals came
    with 2.5, names for them with 2.6) and lets crafted files run code (CVE-2025-32434, fixed in 2.6).

    It uses torch.load with our own unpickler: whatever a file names is looked up in a list, and nowhere else.
    The two formats that torch.load passes to other readers are refused, as since 2.6.
    """
    import torch

    reader: Any = torch._C.PyTorchFileReader
    if mapped:
        if reader(path).has_record("constants.pkl"):
            raise pickle.UnpicklingError(f"{path} is a TorchScript archive, not a checkpoint")
    elif tarfile.is_tarfile(path):
        raise pickle.UnpicklingError(f"{path} is a tar archive, not a checkpoint")
    known = allowed()
    module = _restricted(known)
    content = torch.load(
        path, map_location=map_location, pickle_module=module, weights_only=False, mmap=mapped
    )
    return numpy_data.made(content, _classes(known))


def _classes(known: dict[str, Any]) -> tuple[type, ...]:
    return tuple(one for one in known.values() if isinstance(one, type))


def _restricted(of_files: dict[str, Any]) -> Any:
    """A replacement for the module `pickle`, with what torch.load uses of it."""
    import torch

    known = of_files | {
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
    # Their names in pickle protocol 2, which torch uses.
    known |= {
        f"__builtin__.{name.partition('.')[2]}": value
        for name, value in known.items()
        if name.startswith("builtins.")
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            """Called for everything in a pickle that is not plain data. (torch's subclass handles the names
            of storages itself, and returns a mere description of one.)"""
            found = known.get(f"{module}.{name}")
            if found is None:
                raise pickle.UnpicklingError(
                    f"the file asks for {module}.{name}: this is not a plain checkpoint"
                )
            return found

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    module: Any = types.ModuleType("restricted_pickle")
    module.Unpickler, module.load = Unpickler, load
    return module


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """The call with which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(
            f"the file asks for bytes in {encoding!r}: this is not a plain checkpoint"
        )
    return text.encode("latin1")


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def allowed() -> dict[str, Any]:
    """What checkpoints may contain that weights_only does not know in every release, by the names in the
    files: NumPy's arrays and numbers, Python's plain values, and what is registered."""
    found: dict[str, Any] = {"numpy.ndarray": numpy_data.Array, "numpy.dtype": numpy_data.Dtype}
    found |= {f"builtins.{kind.__name__}": kind for kind in (set, frozenset, complex)}
    found["builtins.bytes"] = numpy_data.no_bytes
    found["collections.Counter"] = collections.Counter
    for package in ("numpy.core", "numpy._core"):  # NumPy 2 moved its internals; a file may be of either
        found[f"{package}.multiarray._reconstruct"] = numpy_data.reconstruct
        found[f"{package}.multiarray.scalar"] = numpy_data.scalar
    for classes in _registered:
        found |= classes()
    return found
