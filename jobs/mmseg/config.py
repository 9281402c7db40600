"""From the run's request to the config that trains: `resolve` what the user wrote, `prepare` it to be exact.

The resolved config is a plain MMSegmentation config (RUN/config.py); mmengine's own tools take it. What makes
it exactly resumable is put in afterwards, in memory: sampler, loop and checkpointing, so that any config
trains unchanged, by epoch or by iteration, with its own hooks.

Baton's own settings stand in the config's `baton` (or `--set baton.KEY=…`): see supported.py.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import traceback
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError

from jobs.catalog import installed, pretrained, sanity, supported
from jobs.catalog.supported import name_of, settings
from jobs.engine import distributed, kernels
from jobs.engine.saving import Settings
from jobs.engine.session import Session
from jobs.mmseg import compat, curves, data, decoded, deterministic, packed, sampling
from jobs.mmseg.evaluator import use_fast_metric
from jobs.mmseg.losses import weigh_ignored_pixels
from jobs.mmseg.transforms import use_fast_transforms
from jobs.run import files, trackers
from jobs.run.directory import check_seed, write_atomically
from jobs.run.errors import UserError, in_a_line, one_line, users_place
from jobs.supervise import budget

NEEDED = ("model", "train_dataloader", "train_cfg", "optim_wrapper")


# ----------------------------------------------------------------------------------------------- resolving


def resolve(session: Session, trained: bool = True) -> Config:
    """The config of a run, from its code snapshot and the request's overrides.

    Raises UserError for a file that is missing, that does not parse or that is no training config.
    """
    request = session.request
    cfg = read(session.run.code / request.config)
    if request.overrides:
        override(cfg, session)
    import_modules(cfg, request.named)
    if absent := [key for key in NEEDED if key not in cfg]:
        raise UserError(
            f"{request.named} is not an MMSegmentation training config: it has no {', '.join(absent)}"
        )
    content = cfg.to_dict()
    try:
        supported.check(content, trained=trained)
        sanity.check(content)
        supported.check_packages(content)
    except UserError as error:
        raise UserError(f"{request.named}: {error}") from None
    randomness = dict(cfg.get("randomness") or {})
    if randomness.get("seed") is None or request.seed:
        randomness["seed"] = request.seed
    check_seed(randomness["seed"], request.named)
    cfg.randomness = randomness
    cfg.work_dir = str(session.run.path / files.MMENGINE())
    add_tensorboard(cfg, session)
    return cfg


def override(cfg: Config, session: Session) -> None:
    """Applies the overrides. Raises UserError for one that does not fit the config or changes nothing."""
    request, run = session.request, session.run
    written = cfg.to_dict()
    try:
        cfg.merge_from_dict(dict(request.overrides))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError, AttributeError) as error:
        raise UserError(f"--set does not fit {request.named}: {one_line(error)}") from None
    modules = [path for path in run.modules() if path != run.code / request.config]
    own = bool(modules) or supported.of_others(cfg.to_dict(), request.named)
    for key in request.overrides:
        # If a base cannot be read on the login node, only this check finds it.
        if why := supported.unread(key, written, own):
            raise UserError(f"--set {key}: {why}")


def read(path: Path) -> Config:
    """A config file as plain values: classes in a pure Python config become their dotted paths, and
    mmengine's own marks for merging are removed. Does not import its `custom_imports`.

    Raises UserError instead of whatever reading it raises.
    """
    if not path.is_file():
        raise UserError(f"there is no config {path}")
    try:
        cfg = Config.fromfile(str(path), import_custom_modules=False)
        content = cfg.to_dict()
    except (ConfigParsingError, OSError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    except (Exception, SystemExit) as error:
        # A config is the user's program: it may raise anything.
        raise UserError(f"{path} cannot be read: {_what_raised(error, path)}") from None
    # It is None in pure Python configs; here, names such as mmseg's "IoUMetric" are always understood.
    content["default_scope"] = content.get("default_scope") or "mmseg"
    return Config(_without_marks(content, content["default_scope"]))


def _what_raised(error: BaseException, path: Path) -> str:
    """The error in one line, with the line of the config, or of its base, that raised it."""
    lines = [one for one in traceback.extract_tb(error.__traceback__) if one.name == "<module>" and one.line]
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    if not lines:
        named = str(error.args[0]) if isinstance(error, KeyError) else ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if named else ():
            if re.search(rf"_base_\.(\w+\.)*{re.escape(named)}\b", line):  # a template's
                return f"line {number}: {line.strip()}: no base has {named}"
        return said
    # mmengine's stand-in for an imported name raises this, without a message, when it is called.
    why = " (only what is imported from the standard library can be called)" if said == "RuntimeError" else ""
    return f"{Path(lines[-1].filename).name}, line {lines[-1].lineno}: {lines[-1].line}: {said}{why}"


def _without_marks(node: Any, scope: str) -> Any:
    """A copy without mmengine's marks in inherited dicts: `_scope_` if it is the config's own scope, and a
    `_delete_` that had nothing to delete."""
    if isinstance(node, dict):
        return {
            key: _without_marks(value, scope)
            for key, value in node.items()
            if key != "_delete_" and not (key == "_scope_" and value == scope)
        }
    if isinstance(node, (list, tuple)):
        return type(node)(_without_marks(value, scope) for value in node)
    return node


def import_modules(cfg: Config, config: str) -> None:
    """Imports the config's `custom_imports`. Raises UserError, with the reason, if one cannot be imported."""
    names = supported.imported(cfg.get("custom_imports"), config)
    given = supported.unmarked(cfg.get("custom_imports"))
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if given.get("allow_failed_imports"):
                print(f"custom_imports: {name} cannot be imported and is left out: {error}", flush=True)
                continue
            top = name.partition(".")[0]
            missing = not installed.is_installed(top)
            reason = f"{top} is not installed" if missing else f"{error}{users_place(error)}"
            raise UserError(f"{config}: custom_imports names {name}: {reason}") from None
        except (Exception, SystemExit) as error:  # it is the user's program, too
            if data.transient(error) or budget.is_hardware(why := in_a_line(error)):
                raise
            raise UserError(f"{config}: custom_imports names {name}, whose import raises {why}") from error
    # If a package cannot be imported, mmengine only says that it does not know the type.
    for package in sorted({kind.partition(".")[0] for kind in supported.types(cfg.to_dict())}):
        if package in supported.WITH:
            try:
                importlib.import_module(package)
            except Exception as error:  # its import may raise anything, even in a library that it uses
                reason = one_line(error, 200)
                raise UserError(f"{config}: {package} cannot be imported: {reason}") from None


def add_tensorboard(cfg: Config, session: Session) -> None:
    """Adds TensorBoard to mmengine's own files; removes services that are not installed, with a message."""
    visualizer = dict(cfg.get("visualizer") or {"type": "SegLocalVisualizer", "name": "visualizer"})
    # One folder for all starts: one curve in TensorBoard.
    visualizer.setdefault("save_dir", str(session.run.path / files.TENSORBOARD()))
    backends = list(visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}])
    kinds = [curves.kind_of(one) for one in backends]
    for kind, backend in zip(kinds, list(backends), strict=True):
        package = trackers.BACKENDS.get(kind)
        if package and not installed.is_installed(package):
            backends.remove(backend)
            if session.main:
                print(f"{kind} is left out: {package} is not installed", flush=True)
    if "TensorboardVisBackend" not in kinds:
        backends.append({"type": "TensorboardVisBackend"})
    visualizer["vis_backends"] = backends
    cfg.visualizer = visualizer


def write(cfg: Config, session: Session) -> None:
    """Writes RUN/config.py, if this start is the first or the request has changed (rank 0 only)."""
    mark = f"# Resolved from {session.request.config}, digest {digest(cfg)}\n"
    path = session.run.config
    if session.main and not (path.is_file() and path.read_text(encoding="utf-8").startswith(mark)):
        write_atomically(path, (mark + compat.formatted(cfg)).encode())


def digest(cfg: Config) -> str:
    return hashlib.blake2b(cfg.pretty_text.encode(), digest_size=8).hexdigest()


# ----------------------------------------------------------------------------------------------- preparing


def prepare(cfg: Config, session: Session, global_batch: int) -> Config:
    """A copy of a resolved config for this start, with exact sampling and resuming added.

    `global_batch`: samples per iteration, over all ranks, which the run keeps from its first start.
    Raises UserError if the config has something that cannot be resumed exactly.
    """
    cfg = Config(cfg._cfg_dict.to_dict(), filename=None)
    own = settings(cfg)
    cfg.launcher = "pytorch" if session.ranks > 1 else "none"
    cfg.randomness["deterministic"] = cfg.randomness.get("deterministic", False) or own["deterministic"]
    if cfg.randomness["deterministic"]:
        deterministic.enable(os.environ)
    endless = exact_sampling(cfg, session, global_batch)
    exact_loop(cfg, endless)
    curves.put_in(cfg)
    # Our own code saves; `Settings` has the hook's options.
    cfg.default_hooks = dict(cfg.get("default_hooks") or {}) | {"checkpoint": None}
    if session.device == "cpu":
        without_gpu(cfg, session)
    else:
        pin(cfg)
    if cfg.get("compile"):
        cfg.compile = exact_compiling(cfg.compile)
        kernels.keep(session.run, session.rank, os.environ)
    if own["fast_transforms"] and cfg.default_scope == "mmseg":
        use_fast_transforms(cfg.train_dataloader.dataset)
    use_fast_metric(cfg.get("val_evaluator"))
    loaders = [cfg[name] for name in ("train_dataloader", "val_dataloader") if cfg.get(name)]
    for loader in loaders:
        packed.read_packed(loader.get("dataset"))
    if own["stage_decoded"]:
        decoded.decode_once(loaders, distributed.cores_of_rank(session))
    weigh_ignored_pixels()
    if cfg.get("val_dataloader"):
        cfg.val_dataloader.dataset = {"type": "SeededDataset", "dataset": cfg.val_dataloader.dataset}
    return cfg


def exact_sampling(cfg: Config, session: Session, global_batch: int) -> bool:
    """Puts the exact sampler into the training data loader. Returns whether it is endless."""
    loader = cfg.train_dataloader
    endless = supported.sampler(loader)
    sampler = loader.get("sampler") or {}
    loader.batch_size = loader.get("batch_size", 1)
    loader.sampler = {
        "type": "ExactSampler",
        "seed": cfg.randomness.seed if sampler.get("seed") is None else sampler["seed"],
        "batch": global_batch,
        "rank": session.rank,
        "ranks": session.ranks,
        "rounds": sampling.rounds_for(global_batch, session.ranks, loader.batch_size),
        "shuffle": sampler.get("shuffle", True),
        "endless": endless,
        "drop_last": loader.pop("drop_last", False),
    }
    loader.batch_sampler = {"type": "Batches"}
    loader.dataset = {"type": "SeededDataset", "dataset": loader.dataset}
    if not loader.get("num_workers"):
        loader.num_workers = 0
        loader.persistent_workers = False
    return endless


def exact_loop(cfg: Config, endless: bool) -> None:
    loop = cfg.train_cfg
    kind = supported.train_loop(loop, endless)
    loop.pop("by_epoch", None)
    loop.type = supported.LOOPS[kind]


def exact_compiling(options: Any) -> dict[str, Any]:
    """The config's `compile` options, with one kernel per shape.

    By default, torch.compile makes a kernel for any shape once it has seen two: which one computes a batch
    would depend on the batches that this start has seen before.
    """
    given = dict(options) if isinstance(options, dict) else {}
    return {"dynamic": False} | given


def without_gpu(cfg: Config, session: Session) -> None:
    """Replaces what mmengine requires a GPU for: mixed precision, and DistributedDataParallel's device."""
    if name_of(cfg.optim_wrapper.get("type", "")) == "AmpOptimWrapper":
        cfg.optim_wrapper.type = "CpuAmpOptimWrapper"
        if session.main and cfg.optim_wrapper.get("dtype") != "bfloat16":
            print("no GPU: mixed precision is bfloat16 instead of float16, without loss scaling", flush=True)
    if cfg.launcher != "none":
        unused = cfg.get("find_unused_parameters", False)
        default = {
            "type": "MMDistributedDataParallel",
            "broadcast_buffers": False,
            "find_unused_parameters": unused,
        }
        cfg.model_wrapper_cfg = default | dict(cfg.get("model_wrapper_cfg") or {}) | {"device_ids": None}


def pin(cfg: Config) -> None:
    """Makes torch's loaders pin memory unless the config says otherwise. The benefit is the thread that does
    so: it also receives the batches from the workers, so the training need not wait for that."""
    for name in ("train_dataloader", "val_dataloader"):
        if cfg.get(name):
            cfg[name].setdefault("pin_memory", True)


def saving(cfg: Config) -> Settings:
    """The resolved config's settings for saving. Raises UserError for another type of checkpoint hook."""
    hook = supported.checkpoint_hook((cfg.get("default_hooks") or {}).get("checkpoint"))
    return Settings(
        interval=hook.get("interval", -1),
        by_epoch=hook.get("by_epoch", True),
        save_begin=hook.get("save_begin", 0),
        max_keep_ckpts=hook.get("max_keep_ckpts", -1),
        save_best=hook["save_best"],
        rule=hook["rule"],
        seconds=settings(cfg)["save_seconds"],
    )


def begin_from(cfg: Config, resuming: bool) -> list[str]:
    """Replaces a resolved config's references to pretrained weights by their files, and returns these; if the
    run resumes, removes the references. Raises UserError if a file is missing."""
    if resuming:
        return pretrained.forget(cfg.model)
    named = pretrained.parts(cfg)
    found = pretrained.localise(named)
    cfg.load_from = named["load_from"]
    return found


def check_data(cfg: Config, session: Session) -> None:
    """Raises UserError, before anything is built, if a dataset is not where the config says."""
    for name in ("train_dataloader", "val_dataloader"):
        for dataset in _datasets(cfg.get(name) or {}):
            root, listing = dataset.get("data_root"), dataset.get("ann_file")
            path = Path(root or "") / (listing or "")
            if (root or listing) and not packed.exists(path):
                raise UserError(
                    f"{name} needs {path}, which is missing (data root {session.request.data_root}): "
                    "run python launch/prepare.py first"
                )


def _datasets(node: Any) -> list[Any]:
    found = []
    if isinstance(node, dict):
        if "data_root" in node or "ann_file" in node:
            found.append(node)
        for key, value in node.items():
            if key != "pipeline":
                found += _datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            found += _datasets(value)
    return found
