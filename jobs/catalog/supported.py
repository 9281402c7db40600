"""Checks that a config can be resumed exactly, and that the packages it needs are installed.

The input is plain dicts, without mmengine, because the launcher makes the same checks on what it can read of
a config (launch/submit/configs.py) as the job does on the resolved one (config.py). A missing `type` is
accepted: it is mmengine's default, or something that only the job will know.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from jobs.catalog import installed
from jobs.run.errors import UserError

BATON: dict[str, Any] = {
    # Seconds between saves; None: the Young/Daly optimum of measured figures; 0: only as the config asks.
    "save_seconds": None,
    # Deterministic kernels only (GPU): bit for bit, at some cost in speed.
    "deterministic": False,
    # jobs/mmseg/transforms.py in place of mmseg's, equal bit for bit.
    "fast_transforms": True,
    # Images of a packed dataset are decoded once a node, and their pixels kept in `stage`
    # (jobs/mmseg/decoded.py).
    "stage_decoded": False,
    # Weights and activations in NHWC order, which tensor cores like (GPU, with mixed precision).
    "channels_last": False,
    # A first start looks at some of the data, for seconds (jobs/mmseg/data.py).
    "check_data": True,
    # A loss that is not finite ends the run, at that step.
    "stop_at_nan": False,
    # The backbone's file has only some of its weights, by design; the others stay random.
    "partly_pretrained": False,
}

SAMPLERS = {"DefaultSampler": False, "InfiniteSampler": True}
"""Samplers that ExactSampler replaces, and whether they are endless."""
LOOPS = {"EpochBasedTrainLoop": "ExactEpochLoop", "IterBasedTrainLoop": "ExactIterLoop"}
HONOURED = ("interval", "by_epoch", "save_begin", "max_keep_ckpts", "save_best", "rule")
"""Options of CheckpointHook that saving.py supports."""
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
"""Those that it does not support: the only value allowed, and why."""
IOU_METRICS = ("IoUMetric", "FastIoUMetric")
IOU_OPTIONS = {
    *("type", "_scope_", "prefix", "ignore_index", "iou_metrics", "beta", "collect_device", "collect_dir"),
    *("nan_to_num", "output_dir", "format_only"),
}
"""All options of an IoUMetric, which itself accepts and ignores any other."""
FIGURES = {
    "mIoU": ("mIoU", "mAcc"),
    "mDice": ("mDice", "mAcc"),
    "mFscore": ("mFscore", "mPrecision", "mRecall"),
}
"""What IoUMetric computes for each of its `iou_metrics`, besides aAcc."""
MARKS = ("_scope_", "_delete_")
"""Keys that mmengine itself adds to a config."""

NEEDS = {
    "MaskFormerHead": ("mmdet", "mmdet"),
    "Mask2FormerHead": ("mmdet", "mmdet"),
    "TIMMBackbone": ("timm", "timm"),
    "Albu": ("albumentations", "albumentations"),
    "LoadSingleRSImageFromFile": ("osgeo", "GDAL"),
    "LoadMultipleRSImageFromFile": ("osgeo", "GDAL"),
    "LoadBiomedicalImageFromFile": ("nibabel", "nibabel"),
    "DSDLSegDataset": ("dsdl", "dsdl"),
    "VPD": ("ldm", "ldm, the code of Stable Diffusion"),
}
"""Types of mmseg that need a package which mmseg does not require: its module, and what to install."""
WITH = ("mmdet", "mmpretrain")
"""What env/setup.sh can install with --with."""
COMPILED = {"DCN": "deform_conv", "DCNv2": "modulated_deform_conv", "SAC": "deform_conv", "carafe": "carafe"}
"""Types that need one of mmcv's compiled operations that pure_ops.py does not have."""
READ = ("model", "train_dataloader", "val_dataloader", "test_dataloader", "optim_wrapper", "custom_hooks")
"""Parts of a config whose types are checked."""
RUNNER = (
    *("model", "work_dir", "train_dataloader", "val_dataloader", "test_dataloader"),
    *("train_cfg", "val_cfg", "test_cfg", "auto_scale_lr", "optim_wrapper", "param_scheduler"),
    *("val_evaluator", "test_evaluator", "default_hooks", "custom_hooks", "data_preprocessor", "load_from"),
    *("resume", "launcher", "env_cfg", "log_processor", "log_level", "visualizer", "default_scope"),
    *("randomness", "experiment_name"),
)
"""Parts of a config that mmengine's Runner takes as arguments."""
LOOKED_UP = (
    *("custom_imports", "model_wrapper_cfg", "find_unused_parameters", "sync_bn", "compile"),
    *("activation_checkpointing", "efficient_conv_bn_eval", "tta_model", "tta_pipeline", "baton"),
)
"""Those that the Runner or Baton looks up in the config itself."""
REPLACED = {
    "work_dir": "a run has a directory of its own (BATON_RUNS says where runs are kept)",
    "launcher": "Baton starts the ranks itself",
}
"""Those of the Runner's that a config may have, and that a run replaces: by what."""
OPENMMLAB = ("mmseg", "mmengine", "mmcv", "torch", "torchvision", *WITH)
"""Packages that are known to look up no other keys."""
LIKE = 0.8
"""A key this similar (difflib) to a known one counts as a typo, even where the user's code might read it."""
MOST_PLACES = 3
"""The most uses of a config's variable that a message names."""


def check(values: dict[str, Any], begun: bool = False, trained: bool = True) -> None:
    """Raises UserError for settings that cannot be resumed exactly, or are unknown. `begun`: the run has
    begun, maybe with an earlier version, so harmless settings are accepted. Of a config that is not to be
    `trained`, only Baton's own settings are checked."""
    settings(values)
    if not trained:
        return
    if values.get("resume"):
        raise UserError("the config sets resume: runs always resume by themselves; remove it")
    if (runner := values.get("runner_type")) not in (None, "Runner") and not begun:
        raise UserError(
            f"the config's runner_type {runner} would not be used: the run has its own; remove it"
        )
    loader, loop = values.get("train_dataloader"), values.get("train_cfg")
    endless = sampler(loader) if isinstance(loader, dict) else False
    if isinstance(loop, dict):
        train_loop(loop, endless)
    model: Any = values.get("model")
    multimodal = isinstance(model, dict) and name_of(model.get("type")) == "MultimodalEncoderDecoder"
    if multimodal and model.get("pretrained", "") is None:
        raise UserError("mmseg cannot begin SAN without CLIP's weights: name them in model.pretrained")
    hooks = values.get("default_hooks")
    hook = hooks.get("checkpoint") if isinstance(hooks, dict) else None
    if isinstance(hook, dict):
        best = checkpoint_hook(hook)["save_best"]
        metric(values.get("val_evaluator"), best)


def settings(values: Any) -> dict[str, Any]:
    """Baton's own settings, with defaults. Raises UserError for an unknown one or an invalid value."""
    own = unmarked(values.get("baton"))
    for key, value in own.items():
        if key not in BATON:
            near = difflib.get_close_matches(key, BATON, 1)
            raise UserError(f"unknown setting baton.{key}" + (f": did you mean {near[0]}?" if near else ""))
        if key != "save_seconds" and value not in (True, False):
            raise UserError(f"baton.{key} is True or False, not {value!r}")
        if key == "save_seconds" and value is not None and not (type(value) in (int, float) and value >= 0):
            raise UserError(f"baton.{key} is a number of seconds, 0 or more, not {value!r}")
    return BATON | own


def unread(key: str, values: dict[str, Any], own: bool) -> str:
    """Why an override of `key` (dotted) would change nothing, and what would; "" if something reads it.
    `values`: the config without overrides. `own`: there is, or may be, code of the user's.

    The config's parts have already been made from its variables; only the user's code may look up a variable,
    or a key that the config does not have. Even then, a key similar to a known one counts as a typo.
    """
    top = key.partition(".")[0]
    if top in REPLACED:
        return f"nothing reads it: {REPLACED[top]}"
    model = values.get("model")
    placed = top == "data_preprocessor" and isinstance(model, dict) and model.get(top) is not None
    if top in (*RUNNER, *LOOKED_UP) and not placed:
        return ""
    places = _places(key, values)
    if top not in values:
        known = [*RUNNER, *LOOKED_UP, *(values if own else ())]
        near = places[:1] or difflib.get_close_matches(top, known, 1, LIKE if own else 0.6)
        if own and not near:
            return ""
        says = f"the config has no {top}" if own else f"nothing reads {top}"
        return says + (f": did you mean {near[0]}?" if near else "")
    if not placed and own:
        return ""
    shown = ", ".join(places[:MOST_PLACES]) + (", …" if len(places) > MOST_PLACES else "")
    instead = f"set {shown}, or edit the config" if places else "edit the config"
    return f"{top} is a variable of the config's file, which has gone into the config's parts: {instead}"


def _places(key: str, values: dict[str, Any]) -> list[str]:
    """Where the parts of a config have `key` (dotted), or, after these, the value of that variable."""
    top, dot, rest = key.partition(".")
    held = values.get(top)
    named, equal = [], []
    # The data_preprocessor is in the model.
    for where, value in _walk({part: values.get(part) for part in RUNNER if part != "data_preprocessor"}):
        if f".{where}".endswith(f".{key}"):
            named.append(where)
        elif held and isinstance(held, (dict, list, tuple)) and value == held:
            equal.append(where + dot + rest)
    return [*dict.fromkeys([*named, *equal])]


def _walk(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts and lists: (dotted key, value)."""
    pairs = (
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    )
    for key, value in pairs:
        where = f"{above}.{key}" if above else str(key)
        yield where, value
        yield from _walk(value, where)


def of_others(values: dict[str, Any], config: object) -> bool:
    """Whether the config names code from outside OpenMMLab. Raises UserError as `imported` does."""
    names = imported(values.get("custom_imports"), config)
    names += [kind for kind in types(values) if "." in kind]
    return any(name.partition(".")[0] not in OPENMMLAB for name in names)


def sampler(loader: Any) -> bool:
    """Whether the training sampler is endless. Raises UserError if it cannot be resumed exactly."""
    if loader.get("batch_sampler") is not None:
        raise UserError("train_dataloader.batch_sampler cannot be resumed exactly: remove it")
    given = unmarked(loader.get("sampler"))
    kind = name_of(given.get("type") or "DefaultSampler")
    if kind not in SAMPLERS:
        raise UserError(
            f"train_dataloader.sampler {kind} cannot be resumed exactly: use "
            "sampler=dict(type='DefaultSampler', shuffle=True), or InfiniteSampler by iteration; weighting "
            "and repetition can be put into the dataset (RepeatDataset, ConcatDataset, its list)"
        )
    if unknown := set(given) - {"type", "shuffle", "seed", "round_up"}:
        raise UserError(f"train_dataloader.sampler: {kind} takes no {', '.join(sorted(unknown))}: remove it")
    return SAMPLERS[kind]


def train_loop(loop: Any, endless: bool) -> str:
    """The type of the loop. Raises UserError if it cannot be resumed exactly."""
    for key in ("max_epochs", "max_iters", "val_interval"):
        value = loop.get(key)
        if value is not None and (type(value) not in (int, float) or value != value // 1 or value < 1):
            raise UserError(f"train_cfg.{key} is {value!r}: it must be a whole number of at least 1")
    kind = name_of(
        loop.get("type") or ("EpochBasedTrainLoop" if loop.get("by_epoch") else "IterBasedTrainLoop")
    )
    if kind not in LOOPS:
        raise UserError(f"train_cfg.type {kind} cannot be resumed exactly: use {' or '.join(LOOPS)}")
    if endless and kind == "EpochBasedTrainLoop":
        raise UserError("an InfiniteSampler has no epochs: use DefaultSampler with EpochBasedTrainLoop")
    return kind


def checkpoint_hook(given: Any) -> dict[str, Any]:
    """The supported options of CheckpointHook, `save_best` and `rule` as plain strings. Raises UserError for
    others, and for another type of hook."""
    hook = unmarked(given)
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
    best, rule = _only(hook, "save_best"), _only(hook, "rule")
    if rule not in (None, "greater", "less"):
        raise UserError(f"default_hooks.checkpoint.rule is {rule!r}: use 'greater' or 'less'")
    return hook | {"save_best": best, "rule": rule}


def metric(evaluator: Any, best: str | None) -> None:
    """Raises UserError for `iou_metrics` that mmseg does not know, or a `save_best` that the validation does
    not compute."""
    given = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    computed: list[str] = []
    for one in given:
        if not isinstance(one, dict) or name_of(one.get("type")) not in IOU_METRICS:
            return  # a user's metric may compute anything
        prefix = f"{one['prefix']}/" if one.get("prefix") else ""
        computed += [prefix + name for name in ("aAcc", *figures_of(one))]
    known = {name for full in computed for name in (full, full.rpartition("/")[2])}
    if best not in (None, "auto") and known and best not in known:
        raise UserError(
            f"default_hooks.checkpoint.save_best is {best!r}, which val_evaluator does not compute: it has "
            f"{', '.join(dict.fromkeys(computed))}"
        )


def figures_of(evaluator: Any) -> list[str]:
    """The figures that an IoUMetric will compute. Raises UserError for an unknown one."""
    given = evaluator.get("iou_metrics", ["mIoU"])
    names = [given] if isinstance(given, str) else list(given)
    if unknown := [name for name in names if name not in FIGURES]:
        raise UserError(f"iou_metrics has {unknown[0]!r}: IoUMetric knows {', '.join(FIGURES)}")
    return [figure for name in names for figure in FIGURES[name]]


def _only(hook: dict[str, Any], key: str) -> str | None:
    """The value of an option that may also be a list of one value. Raises UserError for other lists."""
    value = hook.get(key)
    if not isinstance(value, (list, tuple)):
        return None if value is None else str(value)
    if len(value) != 1:
        raise UserError(
            f"default_hooks.checkpoint.{key} names {len(value)}: only one best checkpoint is kept, so name "
            "one"
        )
    return str(value[0])


def unmarked(node: Any) -> dict[str, Any]:
    """A dict of the config ({} for None), without mmengine's marks at its top level."""
    return {key: value for key, value in dict(node or {}).items() if key not in MARKS}


def imported(given: Any, config: object) -> list[str]:
    """The modules in the `config`'s `custom_imports`. Raises UserError if that is a plain name or list."""
    if isinstance(given, (str, list, tuple)) and given:
        raise UserError(f"{config}: custom_imports is {given!r}: write custom_imports=dict(imports=[…])")
    named = given.get("imports") if isinstance(given, dict) else None
    return [one for one in (named if isinstance(named, (list, tuple)) else [named]) if isinstance(one, str)]


def name_of(kind: Any) -> str:
    """The class name of a type that is given as a name, a name with a scope, or the class itself."""
    return kind.__name__ if isinstance(kind, type) else str(kind).rsplit(".", 1)[-1]


def check_packages(values: dict[str, Any], own: set[str] | frozenset[str] = frozenset()) -> None:
    """Raises UserError if a part of the config needs a package that is not installed here. `own`: top-level
    names of the user's modules in the run."""
    for kind in types({key: values.get(key) for key in READ}):
        top, dot, _ = kind.partition(".")
        needed = NEEDS.get(name_of(kind))
        if dot and top not in own and not installed.is_installed(top):
            needed = (top, top)
        if needed and not installed.is_installed(needed[0]):
            raise UserError(
                f"{name_of(kind)} needs {needed[1]}, which is not installed in this environment "
                f"({how_to_install(needed[0])})"
            )
        if (operation := COMPILED.get(name_of(kind))) and not installed.has_compiled_mmcv():
            raise UserError(
                f"{name_of(kind)} needs mmcv's compiled operation {operation}, which is not installed: "
                "mmcv-lite has none; install mmcv, compiled for this torch"
            )


def how_to_install(package: str) -> str:
    if package in WITH:
        return f"env/setup.sh --with {package} installs it"
    return "docs/models.md names what each model needs"


def types(node: Any) -> Iterator[str]:
    """Every `type` in nested dicts and lists, as text."""
    if isinstance(node, dict):
        kind = node.get("type")
        if isinstance(kind, type):
            yield f"{kind.__module__}.{kind.__name__}"
        elif isinstance(kind, str):
            yield str(kind)
        for value in node.values():
            yield from types(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from types(value)
