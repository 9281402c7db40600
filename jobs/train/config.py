"""From the run's request to the config that trains: `resolve` what the user wrote, `prepare` it to be exact.

The resolved config is a plain MMSegmentation config (RUN/config.py); mmengine's own tools take it. What makes
it exactly resumable is put in afterwards, in memory: sampler, loop and checkpointing, so that any config
trains unchanged, by epoch or by iteration, with its own hooks.

Baton's own settings stand in the config's `baton` (or `--set baton.KEY=…`): see `BATON`.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.utils import import_modules_from_strings

from jobs import compat
from jobs.errors import UserError
from jobs.evaluate.metric import use_fast_metric
from jobs.run_directory import check_seed, write_atomically
from jobs.train import sampling
from jobs.train.saving import Settings
from jobs.train.session import Session
from jobs.train.transforms import use_fast_transforms

BATON: dict[str, Any] = {
    # Seconds between saves; None: the Young/Daly optimum of measured figures; 0: only as the config asks.
    "save_seconds": None,
    # Deterministic kernels only (GPU): bit for bit, at some cost in speed.
    "deterministic": False,
    # jobs/train/transforms.py in place of mmseg's, equal bit for bit.
    "fast_transforms": True,
    # Weights and activations in NHWC order, which tensor cores like (GPU, with mixed precision).
    "channels_last": False,
    # The backbone's file has only some of its weights, by design; the others stay random.
    "partly_pretrained": False,
}

NEEDED = ("model", "train_dataloader", "train_cfg", "optim_wrapper")
SAMPLERS = {"DefaultSampler": False, "InfiniteSampler": True}
"""Samplers that the exact one stands in for, and whether they are endless."""
LOOPS = {"EpochBasedTrainLoop": "ExactEpochLoop", "IterBasedTrainLoop": "ExactIterLoop"}
HONOURED = ("interval", "by_epoch", "save_begin", "max_keep_ckpts", "save_best", "rule")
"""CheckpointHook's options that saving.py follows."""
_WHOLE = "a run resumes from its whole state"
_RULE = "say what is better by rule='greater' or rule='less'"
NOT_OURS: dict[str, tuple[Any, str]] = {
    "save_optimizer": (True, _WHOLE),
    "save_param_scheduler": (True, _WHOLE),
    "save_last": (True, _WHOLE),
    "out_dir": (None, "checkpoints are kept in the run's own directory"),
    "filename_tmpl": (None, "checkpoints are named epoch_N.pth and iter_N.pth"),
    "published_keys": (None, "publish the finished run's checkpoint with mmengine's tools"),
    "greater_keys": (None, _RULE),
    "less_keys": (None, _RULE),
    "backend_args": (None, "checkpoints are local files"),
    "file_client_args": (None, "checkpoints are local files"),
}
"""Those that it does not: the one value that they may have, and why."""
VISUALIZERS = {"WandbVisBackend": "wandb", "MLflowVisBackend": "mlflow", "ClearMLVisBackend": "clearml"}


# ----------------------------------------------------------------------------------------------- resolving


def resolve(session: Session) -> Config:
    """The config of a run, from its code snapshot and the request's overrides.

    Raises UserError for a file that is missing, that does not parse or that is no training config.
    """
    request = session.request
    cfg = read(session.run.code / request.config)
    try:
        cfg.merge_from_dict(dict(request.set))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f"--set does not fit {request.config}: {' '.join(str(error).split())}") from None
    if "custom_imports" in request.set:
        # Those of the file itself were imported as it was read.
        import_modules_from_strings(**cfg.custom_imports)
    if absent := [key for key in NEEDED if key not in cfg]:
        raise UserError(
            f"{request.config} is not an MMSegmentation training config: it has no {', '.join(absent)}"
        )
    settings(cfg)
    if cfg.get("resume"):
        raise UserError(f"{request.config} sets resume: a run always resumes by itself; remove it")
    randomness = dict(cfg.get("randomness") or {})
    if randomness.get("seed") is None or request.seed:
        randomness["seed"] = request.seed
    check_seed(randomness["seed"], request.config)
    cfg.randomness = randomness
    cfg.work_dir = str(session.run.path / "mmengine")
    add_tensorboard(cfg, session)
    return cfg


def read(path: Path) -> Config:
    """A config file. Raises UserError instead of whatever reading it raises."""
    if not path.is_file():
        raise UserError(f"there is no config {path}")
    try:
        return Config.fromfile(str(path))
    except (ConfigParsingError, FileNotFoundError, ModuleNotFoundError, OSError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    except Exception as error:
        # A config is a program of the user's: it may raise anything.
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


def settings(cfg: Config) -> dict[str, Any]:
    """Baton's own settings, defaults filled in. Raises UserError for an unknown one."""
    own = dict(cfg.get("baton") or {})
    for key in own:
        if key not in BATON:
            near = difflib.get_close_matches(key, BATON, 1)
            raise UserError(f"unknown setting baton.{key}" + (f": did you mean {near[0]}?" if near else ""))
    return BATON | own


def add_tensorboard(cfg: Config, session: Session) -> None:
    """TensorBoard beside mmengine's own files; services that are not installed are left out, said aloud."""
    visualizer = dict(cfg.get("visualizer") or {"type": "SegLocalVisualizer", "name": "visualizer"})
    # One folder for all starts: one curve in TensorBoard.
    visualizer.setdefault("save_dir", str(session.run.path / "tensorboard"))
    backends = list(visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}])
    for backend in list(backends):
        package = VISUALIZERS.get(backend["type"])
        if package and not compat.is_installed(package):
            backends.remove(backend)
            if session.main:
                print(f"{backend['type']} is left out: {package} is not installed", flush=True)
    if all(backend["type"] != "TensorboardVisBackend" for backend in backends):
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
    """A copy of a resolved config for this start, with exact sampling and resuming put in.

    `global_batch`: samples an iteration, all ranks together, which the run has kept from its first start.
    Raises UserError where a config has something that cannot be resumed exactly.
    """
    cfg = Config(cfg._cfg_dict.to_dict(), filename=None)
    own = settings(cfg)
    cfg.launcher = "pytorch" if session.ranks > 1 else "none"
    cfg.randomness["deterministic"] = cfg.randomness.get("deterministic", False) or own["deterministic"]
    endless = exact_sampling(cfg, session, global_batch)
    exact_loop(cfg, endless)
    # Ours saves; `Settings` has what it asks for.
    cfg.default_hooks = dict(cfg.get("default_hooks") or {}) | {"checkpoint": None}
    if session.device == "cpu":
        without_gpu(cfg, session)
    if cfg.get("compile"):
        cfg.compile = exact_compiling(cfg.compile)
    if own["fast_transforms"] and cfg.get("default_scope", "mmseg") == "mmseg":
        use_fast_transforms(cfg.train_dataloader.dataset)
    use_fast_metric(cfg.get("val_evaluator"))
    return cfg


def exact_sampling(cfg: Config, session: Session, global_batch: int) -> bool:
    """Puts the exact sampler into the training's data loader. Returns whether it is endless."""
    loader = cfg.train_dataloader
    if "batch_sampler" in loader and loader.batch_sampler is not None:
        raise UserError("train_dataloader.batch_sampler cannot be resumed exactly: remove it")
    sampler = loader.get("sampler") or {"type": "DefaultSampler"}
    kind = name_of(sampler["type"])
    if kind not in SAMPLERS:
        raise UserError(
            f"train_dataloader.sampler {kind} cannot be resumed exactly: use "
            "sampler=dict(type='DefaultSampler', shuffle=True), or InfiniteSampler by iteration; what it "
            "weights or repeats can be put into the data set (RepeatDataset, ConcatDataset, its list)"
        )
    if unknown := set(sampler) - {"type", "shuffle", "seed", "round_up"}:
        raise UserError(f"train_dataloader.sampler: {kind} takes no {', '.join(sorted(unknown))}: remove it")
    loader.batch_size = loader.get("batch_size", 1)
    loader.sampler = {
        "type": "ExactSampler",
        "seed": cfg.randomness.seed if sampler.get("seed") is None else sampler["seed"],
        "batch": global_batch,
        "rank": session.rank,
        "ranks": session.ranks,
        "rounds": sampling.rounds_for(global_batch, session.ranks, loader.batch_size),
        "shuffle": sampler.get("shuffle", True),
        "endless": SAMPLERS[kind],
        "drop_last": loader.pop("drop_last", False),
    }
    loader.batch_sampler = {"type": "Batches"}
    loader.dataset = {"type": "SeededDataset", "dataset": loader.dataset}
    if not loader.get("num_workers"):
        loader.num_workers = 0
        loader.persistent_workers = False
    return SAMPLERS[kind]


def exact_loop(cfg: Config, endless: bool) -> None:
    loop = cfg.train_cfg
    by_epoch = loop.pop("by_epoch", None)
    kind = name_of(loop.get("type") or ("EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"))
    if kind not in LOOPS:
        raise UserError(f"train_cfg.type {kind} cannot be resumed exactly: use {' or '.join(LOOPS)}")
    if endless and kind == "EpochBasedTrainLoop":
        raise UserError("an InfiniteSampler has no epochs: use DefaultSampler with EpochBasedTrainLoop")
    loop.type = LOOPS[kind]


def exact_compiling(options: Any) -> dict[str, Any]:
    """The config's `compile`, with a kernel for each shape.

    By default torch.compile makes one for any shape once it has seen two: which of them computes a batch
    would depend on the batches that this start saw before.
    """
    given = dict(options) if isinstance(options, dict) else {}
    return {"dynamic": False} | given


def without_gpu(cfg: Config, session: Session) -> None:
    """What mmengine asserts a GPU for: mixed precision, and DistributedDataParallel's device."""
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


def saving(cfg: Config) -> Settings:
    """What the resolved config says about saving. Raises UserError for a checkpoint hook of another type."""
    hook = dict((cfg.get("default_hooks") or {}).get("checkpoint") or {})
    kind = name_of(hook.pop("type", "CheckpointHook"))
    if kind != "CheckpointHook":
        raise UserError(f"default_hooks.checkpoint of type {kind} is not supported: use CheckpointHook")
    for key, value in hook.items():
        where = f"default_hooks.checkpoint.{key}"
        if key in NOT_OURS and value != NOT_OURS[key][0]:
            raise UserError(f"{where} = {value!r} is not supported: {NOT_OURS[key][1]}; remove it")
        if key not in NOT_OURS and key not in HONOURED:
            near = difflib.get_close_matches(key, [*HONOURED, *NOT_OURS], 1)
            raise UserError(f"unknown {where}" + (f": did you mean {near[0]}?" if near else ": remove it"))
    best, rule = only(hook, "save_best"), only(hook, "rule")
    if rule not in (None, "greater", "less"):
        raise UserError(f"default_hooks.checkpoint.rule is {rule!r}: use 'greater' or 'less'")
    return Settings(
        interval=hook.get("interval", -1),
        by_epoch=hook.get("by_epoch", True),
        save_begin=hook.get("save_begin", 0),
        max_keep_ckpts=hook.get("max_keep_ckpts", -1),
        save_best=best,
        rule=rule,
        seconds=settings(cfg)["save_seconds"],
    )


def only(hook: dict[str, Any], key: str) -> str | None:
    """The value of an option that may be a list of one. Raises UserError for a longer list."""
    value = hook.get(key)
    if not isinstance(value, (list, tuple)):
        return None if value is None else str(value)
    if len(value) != 1:
        raise UserError(
            f"default_hooks.checkpoint.{key} names {len(value)}: one best checkpoint is kept, name one"
        )
    return str(value[0])


def name_of(kind: Any) -> str:
    """The class name of a registry type, given as a name, with a scope, or as the class itself."""
    return kind.__name__ if isinstance(kind, type) else str(kind).rsplit(".", 1)[-1]


def check_data(cfg: Config, session: Session) -> None:
    """Raises UserError, before anything is built, if a data set is not where the config looks for it."""
    for name in ("train_dataloader", "val_dataloader"):
        for dataset in _datasets(cfg.get(name) or {}):
            root, listing = dataset.get("data_root"), dataset.get("ann_file")
            path = Path(root or "") / (listing or "")
            if (root or listing) and not path.exists():
                raise UserError(
                    f"{name} needs {path}, which is not there (data root {session.request.data_root}): "
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
