"""mmengine's Runner, without what a start does not need, and with resuming decided by the run directory."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import Runner

from jobs.engine.session import Session
from jobs.mmseg import backbone_weights, compiling, curves, kept, sampling, schedules, state
from jobs.mmseg import loop as _loops  # noqa: F401 - registers the loops
from jobs.mmseg.model import WRAPPERS
from jobs.run.checkpoint_files import Checkpoint
from jobs.run.errors import UserError

DATASETS.register_module(module=sampling.SeededDataset, force=True)
DATA_SAMPLERS.register_module(module=sampling.ExactSampler, force=True)
DATA_SAMPLERS.register_module(module=sampling.Batches, force=True)


def build(
    cfg: Config, session: Session, resume_from: Checkpoint | None, weights: list[str]
) -> TrainingRunner:
    """A runner for a prepared config. `resume_from`: the checkpoint to resume from; `weights`: the pretrained
    files from which the model is initialised otherwise."""
    names = [name for name in inspect.signature(Runner.__init__).parameters if name in cfg]
    arguments = {name: cfg[name] for name in names if name != "cfg"}
    arguments["resume"] = resume_from is not None
    return TrainingRunner(**arguments, cfg=cfg, session=session, resume_from=resume_from, weights=weights)


class TrainingRunner(Runner):
    own_attributes: set[str]
    """Without what hooks add."""
    survival: Any
    built: set[str]
    """Names of the model's weights when it is built: those that a resume finds."""
    groups: list[list[int]]
    """So are the optimizers' groups,"""
    schedules: list[dict[str, Any]]
    """and the schedulers."""
    as_built: kept.Kept
    """What the model keeps when it is built."""
    initialised: tuple[kept.Kept, dict[str, Any]] | None = None
    """That, and what the initialisation of the weights has changed of it."""
    kept: kept.Kept
    """Set when the hooks have begun (survival.py)."""
    resumed: dict[str, Any] | None = None
    """What `state.restore` says of the checkpoint that this start goes on from."""

    def __init__(
        self, *args: Any, session: Session, resume_from: Checkpoint | None, weights: list[str], **kwargs: Any
    ) -> None:
        self.session, self.weights = session, weights
        self.resume_from = resume_from.path if resume_from else None
        self.resumed_at = resume_from.step if resume_from else None
        super().__init__(*args, **kwargs)
        self.own_attributes = {*vars(self), *TrainingRunner.__annotations__}

    def begins(self) -> bool:
        """Whether no step of the run has been done yet. (`iter` would build the loop.)"""
        return self.resume_from is None and not getattr(self._train_loop, "iter", 0)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Logs the essentials. mmengine's own takes a second (it starts nvcc and gcc), and fails if
        torchvision does not match torch; run.yaml has the versions."""
        self.logger.info(f"seed {self.seed}, {self.world_size} ranks, torch {torch.__version__}, {env_cfg}")

    def build_visualizer(self, visualizer: Any = None) -> Any:
        built = super().build_visualizer(visualizer)
        curves.continue_from(built, self.session, self.resumed_at)
        for backend in built._vis_backends.values():
            guard(backend)
        return built

    def build_evaluator(self, evaluator: Any) -> Any:
        """Makes ranks exchange their results through the process group ("gpu", which also works with gloo);
        by default, mmengine uses files on the shared file system."""
        built = super().build_evaluator(evaluator)
        for metric in built.metrics:
            metric.collect_device = "gpu"
        return built

    def dump_config(self) -> None:
        """Does nothing: RUN/config.py exists already."""

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: Any) -> Any:
        if self.session.device == "cpu":
            # SyncBN has no CPU version. `state.average_statistics` keeps the ranks' statistics together.
            model = revert_sync_batchnorm(model)
        if (self.cfg.get("baton") or {}).get("channels_last"):
            # Activations adopt the memory format of the weights from the first convolution on.
            model = model.to(memory_format=torch.channels_last)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Of a type that it does not know mmengine says "None is not a callable object"."""
        try:
            return super().build_optim_wrapper(optim_wrapper)
        except TypeError:
            given = optim_wrapper.get("optimizer") if isinstance(optim_wrapper, dict) else None
            obj_type = given.get("type") if isinstance(given, dict) else None
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                if isinstance(obj_type, str) and registry.get(obj_type) is None:
                    said = f"{obj_type} is not in the {registry.scope}::{registry.name} registry"
                    raise KeyError(said) from None
            raise

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scales by the global batch, which stays the same when the run resumes on other GPUs."""
        if not auto_scale_lr or not auto_scale_lr.get("enable"):
            return
        batch, base = self.train_loop.plan.batch, auto_scale_lr["base_batch_size"]
        if self.session.main:
            factor = f"learning rate × {batch / base:g}"
            print(f"{factor}: global batch {batch}, made for {base} (auto_scale_lr)", flush=True)
        for wrapper in state.wrappers(optim_wrapper):
            # With the one that stands for what `paramwise_cfg` does not name, by which the rate is told.
            for group in wrapper.param_groups:
                group["lr"] *= batch / base

    def _init_model_weights(self) -> None:
        """Does nothing when resuming; otherwise also verifies that pretrained weights are really used."""
        self.built = set(kept.weights(state.bare(self.model)))
        self.groups = kept.groups(state.wrappers(self.optim_wrapper))
        self.schedules = schedules.states(self.param_schedulers)
        if self.resume_from is not None:
            return
        if self.session.main:
            self._tell_unmatched()
        self.as_built = kept.Kept(state.networks(self), ())
        partly = (self.cfg.get("baton") or {}).get("partly_pretrained")
        sampling.seed_everything(sampling.mix(self.seed, 0))
        with ExitStack() as stack:
            for backbone in (
                backbone_weights.backbones(state.bare(self.model)) if self.weights and not partly else []
            ):
                stack.enter_context(backbone_weights.every_weight_loaded(backbone))
            super()._init_model_weights()

    def _tell_unmatched(self) -> None:
        """Tells of learning rates set for parts that the model does not have, for example misspelt ones."""
        given = self.cfg.get("optim_wrapper") or {}
        keys = (given.get("paramwise_cfg") or {}).get("custom_keys") or {}
        names = [f".{name}" for name, _ in state.bare(self.model).named_parameters()]
        for key, options in keys.items():
            if "lr_mult" in options and not any(key in name for name in names):
                where = f"optim_wrapper.paramwise_cfg.custom_keys[{key!r}]"
                print(f"{where} has no effect: it is in the name of no parameter", flush=True)

    def _maybe_compile(self, target: str) -> None:  # noqa: ARG002
        if self.cfg.get("compile"):
            compiling.compile_parts(state.bare(self.model), self.cfg.compile)
            self.logger.info("the network is compiled: the first iterations are slow")

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Of a file that has none of the model's weights mmengine tells the log, and trains from scratch."""
        weights = state.bare(self.model).state_dict()
        before = _versions(weights)
        checkpoint = super().load_checkpoint(filename, *args, **{"revise_keys": WRAPPERS} | kwargs)
        if before and _versions(state.bare(self.model).state_dict()) == before:
            held = checkpoint.get("state_dict", checkpoint)
            raise UserError(
                f"load_from: none of the {len(held)} weights in {filename} fits the model: it has "
                f"{_some(held)}, the model {_some(weights)}"
            )
        return checkpoint

    def load_or_resume(self) -> None:
        if self.resume_from is None:
            super().load_or_resume()
            self.initialised = self.as_built, self.as_built.changed()
            del self.as_built
            return
        self.resumed = state.restore(self, self.session, str(self.resume_from))
        self._has_loaded = True


def _versions(weights: dict[str, Any]) -> list[tuple[int, int]]:
    """What shows whether one is changed or replaced. Not counts of batch norm, which mmengine sets itself."""
    tensors = [one for one in weights.values() if isinstance(one, torch.Tensor)]  # not an extra state
    return [(one.data_ptr(), one._version) for one in tensors if one.is_floating_point()]


def _some(weights: Any) -> str:
    """The first of them, with their shapes."""
    first = [f"{name} {tuple(getattr(one, 'shape', ()))}" for name, one in [*weights.items()][:2]]
    return ", ".join(first) + (", …" if len(weights) > 2 else "")


def say_nothing_of_dead_writers() -> None:
    """Silences TensorBoard's writer thread, which dies of a full disk with a traceback, for each value. If
    one is being printed when the process exits, Python aborts, and a finished training fails ("could not
    acquire lock … at interpreter shutdown")."""
    hook = threading.excepthook
    if getattr(hook, "quiet", False):
        return

    def quiet(dead: threading.ExceptHookArgs) -> None:
        if not (isinstance(dead.exc_value, OSError) and type(dead.thread).__name__ == "_AsyncWriterThread"):
            hook(dead)

    quiet.quiet = True  # type: ignore[attr-defined]
    threading.excepthook = quiet


def guard(backend: Any) -> None:
    """Makes a training survive whatever a visualizer's backend raises (a full disk, a service that is gone):
    what it cannot write is lost, and reported once.

    TensorBoard's writer is dead after an OSError; the next value opens a new file.
    """
    say_nothing_of_dead_writers()
    said = False

    def guarded(method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal said
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if isinstance(error, OSError):
                    backend._env_initialized = False
                if not said:
                    what = str(error) or type(error).__name__
                    print(f"{type(backend).__name__} could not write: {what}", file=sys.stderr, flush=True)
                said = True
                return None

        return call

    for name in ("add_config", "add_graph", "add_image", "add_scalar", "add_scalars", "close", "flush"):
        if hasattr(backend, name):
            setattr(backend, name, guarded(getattr(backend, name)))


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """AmpOptimWrapper without a GPU: bfloat16, which needs no loss scaling."""

    def __init__(self, **kwargs: Any) -> None:
        for needless in ("loss_scale", "dtype", "use_fsdp"):
            kwargs.pop(needless, None)
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: Any) -> Any:
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
