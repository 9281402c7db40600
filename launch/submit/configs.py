"""MMSegmentation configs seen from the login node: their values with all bases, and whether they can run.

Only the syntax trees are read; nothing is imported or run, so a wrong config is found in milliseconds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from jobs.catalog import installed, pretrained, sanity, supported
from jobs.run.errors import UserError
from launch.submit import config_files, literals
from launch.submit.config_files import locate
from launch.submit.literals import UNKNOWN
from launch.submit.runs import CHECKOUT

__all__ = ["CHECKOUT", "Chain", "check", "check_weights", "data_roots", "locate"]


class Chain(msgspec.Struct, kw_only=True):
    """A config and everything it inherits from."""

    files: list[Path]
    """The config, then those of its bases that go into the run's snapshot."""
    bases: dict[Path, dict[str, Path]] = {}
    """For each of `files`: the names in its `_base_`, as written -> the files meant."""
    modules: list[Path] = []
    """The user's own Python that `custom_imports` names or that a config imports: files and package folders,
    found beside one of the configs or in the checkout."""
    values: dict[str, Any] = {}
    """Top-level names that any of them sets, with their values where they are written out
    (launch/submit/literals.py); the file nearest to the config wins, and `--set` over all."""
    scope: str = ""
    """`default_scope`; the file nearest to the config wins."""
    segments: bool = False
    """Whether a `model` has a decode_head."""
    complete: bool = True
    """False if a base lies in a package that this interpreter does not have."""
    imports: list[str] = []
    """The modules that the files import, except their bases."""


def check(
    config: Path,
    overrides: dict[str, Any] | None = None,
    evaluated: bool = True,
    here: bool = True,
    asked: Sequence[tuple[str, str]] = (),
    code: Path | None = None,
    trained: bool = True,
) -> Chain:
    """Reads the config's chain; `overrides` are those of `--set`. `here`: the jobs run in this environment,
    so that a package which is missing in it is a mistake. `asked`: overrides that are new, as (option, key),
    each of which has to change something. `code`: the run's, if the config is the copy that a run has.
    `trained`: not only used with weights from elsewhere.

    Raises UserError unless it is an MMSegmentation config that can be read, trained exactly and, if it is to
    be `evaluated`, tested.
    """
    if config.suffix != ".py":
        raise UserError(f"{config} is not an MMSegmentation config: its name does not end in .py")
    chain = Chain(files=[])
    written = _read(config, chain, [], here)
    chain.values = literals.overridden(written, overrides or {})
    if isinstance(scope := chain.values.get("default_scope"), str):
        chain.scope = scope
    chain.modules = _modules(config, chain, here, code)
    if not chain.complete:
        return chain
    own = bool(asked) and _brings_code(config, chain)
    for option, key in asked:
        if why := supported.unread(key, written, own):
            raise UserError(f"{option} {key}: {why}")
    _check_kind(config, chain)
    known = _known(chain.values)
    try:
        supported.check(known, begun=code is not None, trained=trained)
        sanity.check(chain.values)
        if code is None:
            sanity.check_options(chain.values, trained)
        if here:
            supported.check_packages(known, {module.stem for module in chain.modules})
    except UserError as error:
        raise UserError(f"{config}: {error}") from None
    _check_parts(config, chain, evaluated)
    return chain


def _brings_code(config: Path, chain: Chain) -> bool:
    """Whether the config brings code of the user's, or may do so in values that it computes: the job, which
    knows these, checks again."""
    parts = {key: chain.values.get(key) for key in ("custom_imports", "custom_hooks")}
    return bool(chain.modules) or _computes(parts) or supported.of_others(_known(chain.values), config)


def _computes(node: Any) -> bool:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return node is UNKNOWN or any(map(_computes, inner))


def _check_kind(config: Path, chain: Chain) -> None:
    if chain.values.get("model") is None:
        raise UserError(f"{config} is not an MMSegmentation config: neither it nor its bases set `model`")
    if chain.scope not in ("", "mmseg"):
        raise UserError(f"{config} is not an MMSegmentation config: its default_scope is {chain.scope!r}")
    if not chain.scope and not chain.segments:
        raise UserError(f"{config} is not an MMSegmentation config: its model has no decode_head")


def _check_parts(config: Path, chain: Chain, evaluated: bool) -> None:
    names = {name for name, value in chain.values.items() if value is not None}
    if missing := {"train_dataloader", "train_cfg"} - names:
        missed = " and ".join(sorted(missing, reverse=True))
        raise UserError(f"{config} cannot be trained: neither it nor its bases set {missed}")
    for what in ("dataloader", "evaluator"):
        # jobs/mmseg/model.py falls back on the validation's where there is none for the test.
        if evaluated and not {f"test_{what}", f"val_{what}"} & names:
            raise UserError(
                f"{config} cannot be evaluated: neither it nor its bases set test_{what} or val_{what}; "
                "add it, or train with --no-evaluation"
            )
    model = chain.values["model"]
    if evaluated and isinstance(model, dict) and supported.name_of(model.get("type")) == "DepthEstimator":
        raise UserError(
            f"{config} cannot be evaluated: its model estimates depth, and only classes can be evaluated "
            "here; train with --no-evaluation"
        )
    loader = "test_dataloader" if "test_dataloader" in names else "val_dataloader"
    if evaluated and any(map(_loads_none, _pipelines(chain.values.get(loader)))):
        raise UserError(
            f"{config} cannot be evaluated: the pipeline in its {loader} loads no annotations; add "
            "LoadAnnotations, or train with --no-evaluation"
        )


LOADS_NONE = {
    *("LoadImageFromFile", "Resize", "ResizeToMultiple", "ResizeShortestEdge", "RandomFlip", "Pad"),
    *("CenterCrop", "Normalize", "Rerange", "CLAHE", "AdjustGamma", "RGB2Gray", "PackSegInputs"),
}
"""Transforms of mmseg and mmcv, as in test pipelines, that load no annotation."""


def _pipelines(node: Any) -> Iterator[Any]:
    """The pipelines of a data loader's datasets, within wrappers too."""
    if isinstance(node, (list, tuple)):
        for one in node:
            yield from _pipelines(one)
    elif isinstance(node, dict):
        yield node.get("pipeline")
        for key in ("dataset", "datasets"):
            yield from _pipelines(node.get(key))


def _loads_none(pipeline: Any) -> bool:
    """Whether it is known that a pipeline loads no annotation."""
    if not isinstance(pipeline, (list, tuple)) or not pipeline:
        return False
    kinds = [step.get("type") if isinstance(step, dict) else None for step in pipeline]
    return all(isinstance(kind, str) and supported.name_of(kind) in LOADS_NONE for kind in kinds)


def _known(node: Any) -> Any:
    """A copy without what is UNKNOWN."""
    if isinstance(node, dict):
        return {key: _known(value) for key, value in node.items() if value is not UNKNOWN}
    return [_known(one) for one in node if one is not UNKNOWN] if isinstance(node, list) else node


def check_weights(chain: Chain, data_root: Path, coming: set[str]) -> None:
    """Raises UserError if a file of pretrained weights that the config names is missing, except those that a
    running preparation will fetch (`coming`, as configs refer to them); and if the model would download
    weights itself when it is built."""
    if not chain.complete:
        return
    pretrained.check_timm(chain.values.get("model"))
    for reference, without in _weights(chain).items():
        if reference not in coming:
            try:
                pretrained.placed(reference, data_root / "pretrained", without)
            except UserError:
                if not (clip := pretrained.meant_clip(chain.values.get("model"))):
                    raise
                raise UserError(
                    "pretrained weights are missing: SAN starts from CLIP's, but in mmseg's other configs "
                    f"{reference} means a ViT trained on ImageNet: --set model.pretrained={clip}"
                ) from None


def weights(chain: Chain) -> list[str]:
    """Every reference to pretrained weights, as written in the config; without those that it computes."""
    return list(_weights(chain))


def _weights(chain: Chain) -> dict[str, str]:
    """Each of `weights` -> the override that does without it."""
    found = pretrained.references(pretrained.parts(chain.values))
    return {str(holder[key]): without for holder, key, without in found}


def data_roots(chain: Chain) -> dict[str, list[str]]:
    """Every `data_root` of the training and validation datasets, as written in the config -> the dotted keys
    where it is; without those that it computes."""
    found: dict[str, list[str]] = {}

    def look(node: Any, above: str) -> None:
        if isinstance(node, dict) and isinstance(root := node.get("data_root"), str):
            found.setdefault(root, []).append(f"{above}data_root")
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in pairs:
            if key != "pipeline":
                look(value, f"{above}{key}.")

    for loader in ("train_dataloader", "val_dataloader"):
        look(chain.values.get(loader), f"{loader}.")
    return found


def _modules(config: Path, chain: Chain, here: bool, code: Path | None) -> list[Path]:
    """The user's modules that the configs need. Raises UserError if one of `custom_imports` is neither among
    them nor installed."""
    given = _known(chain.values.get("custom_imports"))
    names = supported.imported(given, config)
    given = given if isinstance(given, dict) else {}
    # A run has its modules in one place (launch/submit/snapshot.py), wherever its configs lie below it.
    places = [code] if code else [*dict.fromkeys(file.parent for file in chain.files), CHECKOUT]
    outer = [] if code else config_files.above(chain.files)
    found = config_files.modules([*names, *chain.imports], places, outer)
    parts = [chain.values.get(key) for key in ("train_dataloader", "val_dataloader")]
    config_files.check_datasets(found, _without_classes(parts))
    for name in names if here else []:
        for module in found:
            if (file := module.parent.joinpath(*name.split(".")).with_suffix(".py")).is_file():
                config_files.parsed(file)
    own = {module.stem for module in found}
    for name in names if here and not given.get("allow_failed_imports") else []:
        top = name.split(".")[0]
        if top not in own and not installed.is_installed(top):
            raise UserError(
                f"{config}: custom_imports names {name}: {top} is neither beside the config nor installed in "
                f"this environment{f' (env/setup.sh --with {top})' if top in supported.WITH else ''}"
            )
        if top not in own and top in supported.OPENMMLAB and not config_files.has_module(name):
            raise UserError(
                f"{config}: custom_imports names {name}, which the installed {top} does not have: put it "
                f"into a package of your own beside the config, or install your {top} into this environment"
            )
    return found


def _without_classes(node: Any) -> set[str]:
    """The types of a config's parts that have no `metainfo`."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    found = set().union(*map(_without_classes, inner))
    if isinstance(node, dict) and isinstance(node.get("type"), str) and "metainfo" not in node:
        found.add(supported.name_of(node["type"]))
    return found


def _read(path: Path, chain: Chain, above: list[Path], here: bool, taken: bool = True) -> dict[str, Any]:
    """Adds a config and its bases to the chain; returns the merged values. `taken`: into the snapshot."""
    if path in above:
        raise UserError(f"{path} inherits from itself, through {above[-1]}")
    tree = _parsed(path, above)
    config_files.check_calls(tree, path)
    if taken and path not in chain.files:
        chain.files.append(path)
        chain.imports += config_files.imports(tree)
    bases: list[dict[str, Any]] = []
    modules: list[dict[str, Any]] = []
    named = list(config_files.bases(tree, path))
    if len({bool(base.written) for base in named}) > 1:
        raise UserError(f"{path} has both _base_ and `with read_base():`, which mmengine cannot mix: use one")
    for base in named:
        if base.path is None:
            if here:
                raise UserError(
                    f"{path}, line {base.line}: its base comes from {base.package}, which is not installed "
                    "in this environment"
                )
            chain.complete = False
            continue
        # Another package's config is read where it is installed: mmengine marks its dicts with its scope.
        along = taken and base.package in ("", "mmseg") and (bool(base.written) or not base.package)
        inherited = _read(base.path, chain, [*above, path], here, along)
        (bases if base.written else modules).append(inherited)
        if along and base.written:
            chain.bases.setdefault(path, {})[base.written] = base.path
    _check_distinct(path, bases)
    mine = literals.values(tree, bases, modules)
    model = mine.get("model")
    chain.segments |= model is UNKNOWN or (isinstance(model, dict) and "decode_head" in model)
    result: dict[str, Any] = {}
    for inherited in bases:
        result |= inherited
    try:
        return dict(literals.merged(mine, result))
    except literals.Clash as clash:
        raise UserError(
            f"{path}: {clash} is a dict here but not in its base, so the two cannot be merged: write "
            f"{str(clash).rpartition('.')[2]}=dict(_delete_=True, …)"
        ) from None


DATA = (".json", ".yaml", ".yml")
"""Base config formats that mmengine reads besides Python."""


def _parsed(path: Path, above: list[Path]) -> ast.Module:
    try:
        text = config_files.filled_in(path.read_text(encoding="utf-8"), path)
        return config_files.of_data(text, path) if path.suffix in DATA else ast.parse(text, str(path))
    except FileNotFoundError:
        by = f", which {above[-1]} inherits from" if above else ""
        raise UserError(f"there is no config {path}{by}") from None
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        mark = ": save it as UTF-8 without a byte order mark" if text.startswith("\ufeff") else ""
        raise UserError(f"{path}{line}: not Python: {error.msg}{mark}") from None
    except (UnicodeDecodeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a config: {error}") from None


def _check_distinct(path: Path, bases: list[dict[str, Any]]) -> None:
    """mmengine refuses bases that set the same name."""
    seen: set[str] = set()
    for base in bases:
        names = {name for name, value in base.items() if value is not UNKNOWN}
        if twice := seen & names:
            raise UserError(f"{path}: more than one of its bases sets {', '.join(sorted(twice))}")
        seen |= names
