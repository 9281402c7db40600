"""What every start imports and few trainings use, imported when it is used: torch's compiler (0.6 s) and
matplotlib (0.4 s).

Whoever imports either gets all of it, as ever. BATON_IMPORT_ALL=1 in the environment leaves both as they are,
and so does a torch or an mmengine that is not as expected here.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

COMPILER = "torch._dynamo"
VARIABLE = "BATON_IMPORT_ALL"


def import_less() -> None:
    """Applies both. What is imported already stays as it is."""
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        no_compiler_for_a_step()
        figures_when_drawn()


def no_compiler_for_a_step() -> None:
    """Optimizers import the compiler to tell it what not to compile (torch/_compile.py and the wrapper
    `_use_grad` of torch/optim/optimizer.py), at their first step and wherever their state is read. As long as
    nobody else has imported it, nothing is being compiled, and they do without."""
    import torch

    classes = [torch.optim.Optimizer, *torch.optim.Optimizer.__subclasses__()]
    for owner in classes:
        for name, method in list(vars(owner).items()):
            plain = getattr(method, "__wrapped__", None)
            code = getattr(method, "__code__", None)
            if plain is None or code is None:
                continue
            if code.co_name == "_use_grad":
                setattr(owner, name, _until_compiled(method, _with_grad_as_wanted(plain)))
            elif code.co_filename == torch._compile.__file__:
                setattr(owner, name, _until_compiled(method, plain))


def _until_compiled(method: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Calls `method` where the compiler is imported, or compiles this very call, otherwise `plain`."""
    from torch import compiler

    compiling = getattr(compiler, "is_compiling", bool)  # not before torch 2.2

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (method if compiling() or COMPILER in sys.modules else plain)(*args, **kwargs)

    return call


def _with_grad_as_wanted(step: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def call(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return call


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
