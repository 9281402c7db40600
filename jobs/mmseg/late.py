"""Lazy imports of what every start would import but few trainings use: torch's compiler (0.6 s), matplotlib
(0.4 s), torch's sharded training (0.5 s), CLIP's tokenizer (0.2 s), what mmseg uses of scipy (0.2 s).

An explicit import of any of it still gets all of it. BATON_IMPORT_ALL=1 in the environment disables this, and
so does a torch, mmengine or mmseg that is not as expected here.
"""

from __future__ import annotations

import builtins
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

COMPILER = "torch._dynamo"
VARIABLE = "BATON_IMPORT_ALL"


def import_less() -> None:
    """Applies all of them. What is already imported stays as it is."""
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        no_compiler_for_a_step()
        sharding_when_named()
        tokenizer_when_called()
        figures_when_drawn()
        scipy_when_called()


def no_compiler_for_a_step() -> None:
    """Optimizers import the compiler to tell it what not to compile (torch/_compile.py and the wrapper
    `_use_grad` of torch/optim/optimizer.py), at their first step and whenever their state is read. Until
    something else has imported it, nothing is being compiled, and they do without."""
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
    """Calls `method` if the compiler is imported, or compiling this call, otherwise `plain`."""
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


class _Named(NamedTuple):
    """A class that mmengine registers in a module of its own, and the packages that re-export it."""

    module: str
    name: str
    registry: str
    packages: tuple[str, ...]


SHARDING = (
    _Named(
        "mmengine.optim.optimizer.zero_optimizer",
        "ZeroRedundancyOptimizer",
        "OPTIMIZERS",
        ("mmengine.optim.optimizer", "mmengine.optim"),
    ),
    _Named(
        "mmengine.model.wrappers.fully_sharded_distributed",
        "MMFullyShardedDataParallel",
        "MODEL_WRAPPERS",
        ("mmengine.model.wrappers", "mmengine.model"),
    ),
    _Named("mmengine._strategy.fsdp", "FSDPStrategy", "STRATEGIES", ("mmengine._strategy",)),
)


def sharding_when_named() -> None:
    """Three of mmengine's classes are based on torch's sharded training. Stand-ins replace them while
    mmengine is imported; building one by its name, or importing it, yields the real one."""
    if "mmengine.optim" in sys.modules or not all(_is_there(one.module) for one in SHARDING):
        return
    from mmengine import registry

    stand_ins = {one.module: _stand_in(one) for one in SHARDING}
    for one in SHARDING:
        stub = types.ModuleType(one.module)
        setattr(stub, one.name, stand_ins[one.module])
        sys.modules[one.module] = stub
    try:
        for one in SHARDING:
            importlib.import_module(one.packages[0])
    finally:
        for one in SHARDING:
            del sys.modules[one.module]
    for one in SHARDING:
        for package in map(sys.modules.get, one.packages):
            if package is not None and vars(package).pop(one.name, None) is not None:
                package.__getattr__ = _found_later(package, one)  # type: ignore[method-assign]
        getattr(registry, one.registry).register_module(one.name, module=stand_ins[one.module])
    sys.meta_path.insert(0, _Making())


def _stand_in(one: _Named) -> type:
    def make(_: type, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(one.module), one.name)(*args, **kwargs)

    return type(one.name, (), {"__new__": make, "__doc__": f"Makes the one of {one.module}."})


def _found_later(package: types.ModuleType, one: _Named) -> Callable[[str], Any]:
    def get(name: str) -> Any:
        if name != one.name:
            raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(one.module), name)

    return get


class _Making(importlib.abc.MetaPathFinder):
    """Removes the stand-in from the registry when the real class is about to be imported."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        for one in SHARDING:
            if fullname == one.module:
                from mmengine import registry

                getattr(registry, one.registry)._module_dict.pop(one.name, None)


TOKENIZER = "mmseg.utils.tokenizer"


def tokenizer_when_called() -> None:
    """mmseg reads CLIP's vocabulary on import, but only needs that module's `tokenize`."""
    if "mmseg" not in sys.modules and _is_there(TOKENIZER):
        sys.modules[TOKENIZER] = _Tokenizer(TOKENIZER)


class _Tokenizer(types.ModuleType):
    def tokenize(self, *args: Any, **kwargs: Any) -> Any:
        return self.real().tokenize(*args, **kwargs)

    def real(self) -> types.ModuleType:
        if sys.modules.get(TOKENIZER) is self:
            del sys.modules[TOKENIZER]
        return importlib.import_module(TOKENIZER)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)


def _is_there(module: str) -> bool:
    """Whether a module's file is installed; imports nothing."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return any(Path(folder, *rest).with_suffix(".py").is_file() for folder in folders or [])


SCIPY = {
    "mmseg.datasets.transforms.transforms": ("scipy.ndimage", "gaussian_filter"),
    "mmseg.models.assigners.hungarian_assigner": ("scipy.optimize", "linear_sum_assignment"),
    "mmseg.models.backbones.beit": ("scipy", "interpolate"),
    "mmseg.models.losses.huasdorff_distance_loss": ("scipy.ndimage", "distance_transform_edt"),
}
"""What these modules import from scipy, each for one of its classes."""


def scipy_when_called() -> None:
    """Gives modules that are imported from now on stand-ins for what SCIPY lists."""
    if importlib.util.find_spec("scipy") is not None and not any(
        isinstance(finder, _WithoutScipy) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _WithoutScipy())


class _WithoutScipy(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Any = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if fullname in SCIPY else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Less(spec.loader)
        return spec


class _Less(importlib.abc.Loader):
    """Executes a module with stand-ins for what SCIPY lists for it. All other imports meanwhile, by it or by
    others, work as usual."""

    def __init__(self, usual: importlib.abc.Loader) -> None:
        self.usual = usual

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.usual.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.usual
        wanted, importing = SCIPY[module.__name__], builtins.__import__

        def less(name: str, *how: Any, **named: Any) -> Any:
            # `from … import …` passes all by position; explicit calls of __import__ may use keywords.
            space, _, names = (*how, None, None, None)[:3]
            if space is vars(module) and (name, *(names or ())) == wanted:
                return types.SimpleNamespace(**{wanted[1]: _Later(*wanted)})
            return importing(name, *how, **named)

        builtins.__import__ = less
        try:
            self.usual.exec_module(module)
        finally:
            builtins.__import__ = importing


class _Later:
    """Stands for the result of `from MODULE import NAME`."""

    def __init__(self, module: str, name: str) -> None:
        self.wanted = module, name

    def real(self) -> Any:
        module, name = self.wanted
        return getattr(__import__(module, fromlist=[name]), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)


FIGURE = ("fig_save_canvas", "fig_save", "ax_save", "dpi")
_NAMES = {*FIGURE, "fig_save_cfg", "_initialize_fig", "get_dpi"}


def figures_when_drawn() -> None:
    """mmengine's Visualizer creates a matplotlib figure even if nothing is ever drawn."""
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

    # Its metaclass inspects the signature.
    late_init.__signature__ = signature  # type: ignore[attr-defined]
    Visualizer.__init__, Visualizer.__getattr__ = late_init, get


class _Undrawn:
    """Stands for the figure while a visualizer is created, which then forgets it."""

    def get_dpi(self) -> None:
        pass
