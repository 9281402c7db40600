"""What every start imports and few trainings use, imported when it is used: torch's compiler (0.6 s) and
matplotlib (0.4 s).

Whoever imports either gets all of it, as ever. BATON_IMPORT_ALL=1 in the environment leaves both as they are,
and so does a torch or an mmengine that is not as expected here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types
from typing import Any

COMPILER = "torch._dynamo"
VARIABLE = "BATON_IMPORT_ALL"


def import_less() -> None:
    """Applies both. What is imported already stays as it is."""
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        stand_in_for_compiler()
        figures_when_drawn()


def stand_in_for_compiler() -> None:
    """torch imports its compiler for an optimizer's first step, only to tell it what not to compile. As long
    as nobody else has imported it, nothing is being compiled."""
    import torch

    if COMPILER in sys.modules:
        return
    spec = importlib.util.find_spec(COMPILER)
    if spec is None or spec.submodule_search_locations is None:
        return
    sys.meta_path.insert(0, _Below())
    sys.modules[COMPILER] = torch._dynamo = _Compiler(spec)


class _Compiler(types.ModuleType):
    """Stands for the compiler until it is asked for anything but what an optimizer's step asks it for."""

    def __init__(self, spec: importlib.machinery.ModuleSpec) -> None:
        super().__init__(COMPILER)
        vars(self).update(
            __spec__=spec,
            __file__=spec.origin,
            __loader__=spec.loader,
            __package__=COMPILER,
            __path__=spec.submodule_search_locations,
            disable=_disable,
            graph_break=_graph_break,
        )

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks every module where it comes from: that is no use of it.
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {COMPILER!r} has no attribute {name!r}")
        return getattr(real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(real(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(real(), name)

    def __dir__(self) -> list[str]:
        return dir(real())


_not_compiled: list[types.FunctionType] = []
"""The functions that torch holds for disabled (`_disable`)."""


def real() -> types.ModuleType:
    """The compiler itself, imported now if it is not there. It is told anew what not to compile."""
    if isinstance(sys.modules.get(COMPILER), _Compiler):
        del sys.modules[COMPILER]
        while _not_compiled:
            vars(_not_compiled.pop()).pop("__dynamo_disable", None)
    return importlib.import_module(COMPILER)


def _disable(*args: Any, **options: Any) -> Any:
    """As torch._compile calls it, once a function: what it returns becomes FUNCTION.__dynamo_disable. Any
    other call is for the compiler."""
    here = isinstance(sys.modules.get(COMPILER), _Compiler)
    plain = len(args) == 2 and isinstance(args[0], types.FunctionType) and options == {"wrapping": False}
    if not (here and plain):
        return real().disable(*args, **options)
    _not_compiled.append(args[0])
    return args[0]


def _graph_break(*args: Any, **options: Any) -> None:
    if not isinstance(sys.modules.get(COMPILER), _Compiler):
        real().graph_break(*args, **options)


class _Below(importlib.abc.MetaPathFinder):
    """Whoever imports a module of the compiler imports the compiler first. That may bring the module along,
    which is not executed again then."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.startswith(f"{COMPILER}.") and isinstance(sys.modules.get(COMPILER), _Compiler):
            real()
            if name in sys.modules:
                module = sys.modules[name]
                spec = importlib.machinery.ModuleSpec(name, _Imported(module))
                # importlib takes the spec of a module that its package has brought along.
                vars(module)["__spec__"] = spec  # a module of settings takes no others by `setattr`
                return spec
        return None


class _Imported(importlib.abc.Loader):
    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, _: Any) -> types.ModuleType:
        return self.module

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__spec__"] = self.spec


FIGURE = ("fig_save_canvas", "fig_save", "ax_save", "dpi")
_NAMES = {*FIGURE, "fig_save_cfg", "_initialize_fig", "get_dpi"}


def figures_when_drawn() -> None:
    """mmengine's Visualizer makes a figure before anything is drawn on it."""
    from mmengine.visualization import Visualizer

    init, figure = Visualizer.__init__, Visualizer._initialize_fig
    if hasattr(Visualizer, "__getattr__") or not set(init.__code__.co_names) >= _NAMES:
        return
    signature = inspect.signature(init)

    @functools.wraps(init)
    def late_init(self: Any, *args: Any, **kwargs: Any) -> None:
        drawn = signature.bind(self, *args, **kwargs).arguments.get("image") is not None
        own = type(self)._initialize_fig is not figure or type(self).__getattr__ is not get
        if drawn or own:
            init(self, *args, **kwargs)
            return
        self._initialize_fig = lambda _: (None, _Undrawn(), None)
        init(self, *args, **kwargs)
        for name in ("_initialize_fig", *FIGURE):
            del vars(self)[name]

    def get(self: Any, name: str) -> Any:
        if name not in FIGURE or "fig_save_cfg" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        made = figure(self, self.fig_save_cfg)
        for key, value in zip(FIGURE, (*made, made[1].get_dpi()), strict=True):
            vars(self).setdefault(key, value)
        return vars(self)[name]

    # Its metaclass looks at the arguments, past what is wrapped.
    late_init.__signature__ = signature  # type: ignore[attr-defined]
    Visualizer.__init__, Visualizer.__getattr__ = late_init, get


class _Undrawn:
    """The figure while a visualizer is made: what that keeps of it is forgotten."""

    def get_dpi(self) -> None:
        pass
