"""MMSegmentation configs seen from the login node: which files one consists of, and whether it is one at all.

Only the syntax tree is read; nothing is imported or run, so a wrong config is found in milliseconds.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import UserError
from jobs.train import pretrained
from launch import literals
from launch.literals import UNKNOWN
from launch.runs import CHECKOUT


class Chain(msgspec.Struct, kw_only=True):
    """A config and everything it inherits from."""

    files: list[Path]
    """The config first, then its bases that are files of the user's or ours."""
    modules: list[Path] = []
    """The user's own Python that `custom_imports` names: files and package folders, found beside the config
    or in the checkout."""
    values: dict[str, Any] = {}
    """Top-level names that any of them sets, and the values where they are written out (launch/literals.py);
    the nearest to the config wins, and `--set` over all."""
    scope: str = ""
    """`default_scope`, the nearest one to the config wins."""
    segments: bool = False
    """Some `model` has a decode_head."""
    complete: bool = True
    """False if a base lies in a package that this interpreter does not have."""


def locate(config: str) -> Path:
    """The file a user means by --config: as given, or relative to the checkout. Raises UserError."""
    given = Path(config).expanduser()
    for path in (given.absolute(), CHECKOUT / given):
        if path.is_file():
            return path.resolve()
    known = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "configs").glob("*.py"))
    raise UserError(f"there is no config {config!r}; the checkout has {', '.join(known) or 'none'}")


def check(config: Path, overrides: dict[str, Any] | None = None, evaluated: bool = True) -> Chain:
    """Reads the config's chain; `overrides` are those of `--set`.

    Raises UserError unless it is an MMSegmentation config that can be read, trained and, if it is to be
    `evaluated`, tested.
    """
    if config.suffix != ".py":
        raise UserError(f"{config} is not an MMSegmentation config: its name does not end in .py")
    chain = Chain(files=[])
    chain.values = literals.overridden(_read(config, chain, []), overrides or {})
    chain.modules = _modules(config, chain.values.get("custom_imports"))
    if not chain.complete:
        return chain
    names = {name for name, value in chain.values.items() if value is not None}
    if "model" not in names:
        raise UserError(f"{config} is not an MMSegmentation config: neither it nor its bases set `model`")
    if chain.scope not in ("", "mmseg"):
        raise UserError(f"{config} is not an MMSegmentation config: its default_scope is {chain.scope!r}")
    if not chain.scope and not chain.segments:
        raise UserError(f"{config} is not an MMSegmentation config: its model has no decode_head")
    if missing := {"train_dataloader", "train_cfg"} - names:
        missed = " and ".join(sorted(missing, reverse=True))
        raise UserError(f"{config} cannot be trained: neither it nor its bases set {missed}")
    for what in ("dataloader", "evaluator"):
        # jobs/model.py takes the validation's where there is none for the test.
        if evaluated and not {f"test_{what}", f"val_{what}"} & names:
            raise UserError(
                f"{config} cannot be evaluated: neither it nor its bases set test_{what} or val_{what}; "
                "add it, or train with --no-evaluation"
            )
    return chain


def check_weights(chain: Chain, data_root: Path, coming: set[str]) -> None:
    """Raises UserError if a file of pretrained weights that the model names is not in its place; those that a
    preparation on its way will fetch are `coming` (as configs refer to them)."""
    if not chain.complete:
        return
    for holder, key in pretrained.references(chain.values.get("model")):
        if holder[key] not in coming:
            pretrained.placed(holder[key], data_root / "pretrained")


def data_roots(chain: Chain) -> set[str]:
    """Every `data_root` of the training's and the validation's datasets, as the config writes it; those that
    it computes are not among them."""
    found: set[str] = set()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(root := node.get("data_root"), str):
                found.add(root)
            for key, value in node.items():
                if key != "pipeline":
                    look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look([chain.values.get("train_dataloader"), chain.values.get("val_dataloader")])
    return found


def _modules(config: Path, imports: Any) -> list[Path]:
    """Where the modules of `custom_imports` lie: their file, or their top-level package's folder."""
    named = imports.get("imports") if isinstance(imports, dict) else None
    found: list[Path] = []
    for name in [named] if isinstance(named, str) else named if isinstance(named, list) else []:
        parts = str(name).split(".")
        for place in (config.parent, CHECKOUT):
            inner = place.joinpath(*parts)
            if inner.with_suffix(".py").is_file() or (inner.is_dir() and len(parts) > 1):
                top = place / parts[0]
                found.append(top if len(parts) > 1 else inner.with_suffix(".py"))
            elif (inner / "__init__.py").is_file():
                found.append(place / parts[0])
            else:
                continue
            break
    return list(dict.fromkeys(found))


def _read(path: Path, chain: Chain, above: list[Path], own: bool = True) -> dict[str, Any]:
    """Adds a config and its bases to the chain; returns their values, merged."""
    if path in above:
        raise UserError(f"{path} inherits from itself, through {above[-1]}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        by = f", which {above[-1]} inherits from" if above else ""
        raise UserError(f"there is no config {path}{by}") from None
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not Python: {error.msg}") from None
    except (UnicodeDecodeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a config: {error}") from None
    if own and path not in chain.files:
        chain.files.append(path)
    mine = literals.values(tree)
    inherited: dict[str, Any] = {}
    # Values of the config itself come first, so that the nearest default_scope wins.
    if not chain.scope and isinstance(scope := mine.get("default_scope"), str):
        chain.scope = scope
    for base in _bases(tree, path):
        if base is None:
            chain.complete = False
        else:
            inherited = literals.merged(_read(base, chain, [*above, path], own and _is_own(base)), inherited)
    if any(isinstance(node, ast.With) for node in tree.body):
        # A config in pure Python goes on with its bases' names as a program, not by merging.
        inherited = dict.fromkeys(inherited, UNKNOWN)
    model = mine.get("model")
    chain.segments |= model is UNKNOWN or (isinstance(model, dict) and "decode_head" in model)
    return literals.merged(mine, inherited)


def _bases(tree: ast.Module, path: Path) -> list[Path | None]:
    """The files a config inherits from; None for one in a package that is not installed here."""
    found: list[Path | None] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "_base_" for t in node.targets):
            try:
                value: Any = ast.literal_eval(node.value)
            except ValueError:
                raise UserError(
                    f"{path}, line {node.lineno}: `_base_` must be written out, not computed"
                ) from None
            for base in [value] if isinstance(value, str) else value:
                found.append(_base(str(base), path, node.lineno))
        if isinstance(node, ast.With) and "read_base" in ast.dump(node.items[0].context_expr):
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and statement.level:
                    parent = path.parents[statement.level - 1]
                    found.append(parent.joinpath(*(statement.module or "").split(".")).with_suffix(".py"))
                else:
                    found.append(None)
    return found


def _base(base: str, path: Path, line: int) -> Path | None:
    if "::" in base:
        package, _, inside = base.partition("::")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        folder = Path(next(iter(spec.submodule_search_locations))) / ".mim" / "configs"
        if not (folder / inside).is_file():
            known = [str(file.relative_to(folder)) for file in folder.rglob("*.py")]
            near = difflib.get_close_matches(inside, known, 1)
            hint = f": did you mean {package}::{near[0]}?" if near else f" (its configs: {folder})"
            raise UserError(f"{path}, line {line}: {package} has no config {inside}{hint}")
        return folder / inside
    if Path(base).is_absolute():
        raise UserError(
            f"{path}, line {line}: `_base_` is an absolute path, which no snapshot holds; make it relative"
        )
    return (path.parent / base).resolve()


def _is_own(path: Path) -> bool:
    """Not a file of an installed package, which needs no snapshot."""
    return not {"site-packages", "dist-packages"} & set(path.parts)
