"""MMSegmentation configs seen from the login node: which files one consists of, and whether it is one at all.

Only the syntax tree is read; nothing is imported or run, so a wrong config is found in milliseconds.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import UserError
from launch.runs import CHECKOUT


class Chain(msgspec.Struct, kw_only=True):
    """A config and everything it inherits from."""

    files: list[Path]
    """The config first, then its bases that are files of the user's or ours."""
    names: set[str] = set()
    """Top-level names that any of them sets."""
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


def check(config: Path) -> Chain:
    """Reads the config's chain. Raises UserError unless it is an MMSegmentation config that can be read."""
    if config.suffix != ".py":
        raise UserError(f"{config} is not an MMSegmentation config: its name does not end in .py")
    chain = Chain(files=[])
    _read(config, chain, [])
    if not chain.complete:
        return chain
    if "model" not in chain.names:
        raise UserError(f"{config} is not an MMSegmentation config: neither it nor its bases set `model`")
    if chain.scope not in ("", "mmseg"):
        raise UserError(f"{config} is not an MMSegmentation config: its default_scope is {chain.scope!r}")
    if not chain.scope and not chain.segments:
        raise UserError(f"{config} is not an MMSegmentation config: its model has no decode_head")
    missing = [name for name in ("train_dataloader", "train_cfg") if name not in chain.names]
    if missing:
        raise UserError(f"{config} cannot be trained: neither it nor its bases set {' and '.join(missing)}")
    return chain


def _read(path: Path, chain: Chain, above: list[Path], own: bool = True) -> None:
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
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            _assigned(node.targets[0].id, node.value, chain)
    # Names of the config itself stand first, so that the nearest default_scope wins.
    for base in _bases(tree, path):
        if base is None:
            chain.complete = False
        else:
            _read(base, chain, [*above, path], own and _is_own(base))


def _assigned(name: str, value: ast.expr, chain: Chain) -> None:
    chain.names.add(name)
    if name == "default_scope" and not chain.scope and isinstance(value, ast.Constant):
        chain.scope = str(value.value or "")
    if name == "model":
        keys = [keyword.arg for keyword in value.keywords] if isinstance(value, ast.Call) else []
        if isinstance(value, ast.Dict):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]  # type: ignore[misc]
        chain.segments = chain.segments or "decode_head" in keys


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
        module = {"mmseg": "mmseg"}.get(package, package)
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            return None
        file = Path(next(iter(spec.submodule_search_locations))) / ".mim" / "configs" / inside
        return file if file.is_file() else None
    if Path(base).is_absolute():
        raise UserError(
            f"{path}, line {line}: `_base_` is an absolute path, which no snapshot holds; make it relative"
        )
    return (path.parent / base).resolve()


def _is_own(path: Path) -> bool:
    """Not a file of an installed package, which needs no snapshot."""
    return not {"site-packages", "dist-packages"} & set(path.parts)
