"""The files that a config consists of: the config itself, however it is named, its bases, the user's modules.

Only names and syntax trees are looked at; nothing is imported or run.
"""

from __future__ import annotations

import ast
import difflib
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from jobs.catalog import installed
from jobs.run import code_files
from jobs.run.errors import UserError, one_line
from launch.submit.literals import is_read_base
from launch.submit.runs import CHECKOUT


class Base(msgspec.Struct, kw_only=True):
    """A file that a config inherits from."""

    path: Path | None
    """None if it lies in a package that this interpreter does not have."""
    written: str = ""
    """The name as written in `_base_`; "" if it is imported in `with read_base():`."""
    package: str = ""
    """The package through which it is named, if any."""
    line: int = 0


def locate(config: str) -> Path:
    """The file that --config means: as given, relative to the checkout, or `PACKAGE::PATH` for a config of an
    installed package. Raises UserError, with a similar name if there is one."""
    if "::" in config:
        package, _, inside = config.partition("::")
        found = of_package(package, inside)
        if found is None:
            raise UserError(f"--config {config}: {package} is not installed in this environment")
        return found
    given = Path(config).expanduser()
    for path in (given.absolute(), CHECKOUT / given):
        if path.is_file():
            return path.resolve()
        if path.is_dir():
            raise UserError(f"--config {config}: that is a folder, not a config")
    near = difflib.get_close_matches(given.name, [path.name for path in given.parent.glob("*.py")], 1)
    if near:
        raise UserError(f"there is no config {config!r}: did you mean {given.parent / near[0]}?")
    # A bare file name of the model zoo.
    zoo = _near("mmseg", given.stem)
    if zoo.endswith(f"/{given.stem}.py"):
        raise UserError(f"there is no config {config!r}: did you mean {zoo}?")
    known = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "configs").glob("*.py"))
    raise UserError(f"there is no config {config!r}; the checkout has {', '.join(known) or 'none'}")


def of_package(package: str, inside: str) -> Path | None:
    """The file of `PACKAGE::INSIDE`; None if the package is not installed.

    Raises UserError, with the nearest name, if the package has no such config.
    """
    folder = configs_of(package)
    if folder is None:
        return None
    if not (folder / inside).is_file():
        near = _near(package, inside)
        hint = f": did you mean {near}?" if near else f" (its configs: {folder})"
        raise UserError(f"{package} has no config {inside}{hint}")
    return folder / inside


def configs_of(package: str) -> Path | None:
    """The folder of an installed package's configs, as mmengine finds it; None if it is not installed."""
    root = _root_of(package)
    return root / ".mim" / "configs" if root else None


def _root_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def has_module(name: str) -> bool:
    """Whether an installed package has the module of this dotted name."""
    package, *inside = name.split(".")
    root = _root_of(package)
    if root is None or not inside:
        return root is not None
    place = root.joinpath(*inside)
    return place.is_dir() or any(place.parent.glob(f"{glob.escape(place.name)}.*"))


def _near(package: str, name: str) -> str:
    """The package's config closest to a mistyped name, with or without its folder; "" if there is none."""
    folder = configs_of(package)
    if folder is None:
        return ""
    known = {path.relative_to(folder).as_posix(): path.stem for path in folder.rglob("*.py")}
    if "_base_" not in name:
        known = {path: stem for path, stem in known.items() if not path.startswith("_base_/")}
    stem = name.rpartition("/")[2].removesuffix(".py")
    for path, itself in known.items():
        if itself == stem:
            return f"{package}::{path}"
    near = difflib.get_close_matches(name, known, 1)
    if not near and (like := difflib.get_close_matches(stem, known.values(), 1, 0.8)):
        near = [path for path, itself in known.items() if itself == like[0]]
    return f"{package}::{near[0]}" if near else ""


def place_in_package(path: Path) -> Path | None:
    """PACKAGE/INSIDE for a config below an installed package's `.mim/configs`; None for any other file."""
    parts = path.parts
    for index in range(1, len(parts) - 2):
        if parts[index : index + 2] == (".mim", "configs"):
            return Path(parts[index - 1], *parts[index + 2 :])
    return None


def filled_in(text: str, path: Path) -> str:
    """A config's text with mmengine's templates filled in: `{{ fileBasename }}`, `{{$HOME:/tmp}}`,
    `{{_base_.model}}`."""
    if "{{" not in text:
        return text
    known = {
        "fileDirname": path.parent,
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for name, value in known.items():
        text = re.sub(r"\{\{\s*" + name + r"\s*\}\}", lambda _, value=value: str(value), text)  # type: ignore[misc]
    variable = r"\{\{['\"]?\s*\$(\w+)\s*:\s*(\S*?)\s*['\"]?\}\}"
    text = re.sub(variable, lambda found: os.environ.get(found[1], found[2]), text)
    return re.sub(r"\{\{\s*(_base_\.[\w.]+)\s*\}\}", r"\1", text)


def of_data(text: str, path: Path) -> ast.Module:
    """A JSON or YAML config as the Python assignments that it stands for. Raises ValueError if it cannot be
    read."""
    import yaml  # which reads JSON, too

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("it has no names with values")
    return ast.parse("\n".join(f"{name} = {value!r}" for name, value in content.items()), str(path))


def bases(tree: ast.Module, path: Path) -> Iterator[Base]:
    """What a config inherits from, in order. Raises UserError for a base that cannot be determined."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "_base_" for t in node.targets):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                raise UserError(
                    f"{path}, line {node.lineno}: `_base_` must be written out, not computed"
                ) from None
            for written in [value] if isinstance(value, str) else value:
                yield _named(str(written), path, node.lineno)
        if isinstance(node, ast.With) and is_read_base(node):
            for statement in node.body:
                yield _from_module(statement, path)


def _named(written: str, path: Path, line: int) -> Base:
    package, colons, inside = written.partition("::")
    if not colons:
        return Base(path=(path.parent / written).resolve(), written=written, line=line)
    try:
        return Base(path=of_package(package, inside), written=written, package=package, line=line)
    except UserError as error:
        raise UserError(f"{path}, line {line}: {error}") from None


def _from_module(statement: ast.stmt, path: Path) -> Base:
    """`from .base import *` means the file beside this one, `from mmseg.configs.x import *` a package's."""
    if not isinstance(statement, ast.ImportFrom) or not statement.module:
        raise UserError(
            f"{path}, line {statement.lineno}: `with read_base():` may only contain `from … import …` of a "
            "file"
        )
    parts = statement.module.split(".")
    if statement.level:
        file = path.parents[statement.level - 1].joinpath(*parts).with_suffix(".py")
        return Base(path=file.resolve(), line=statement.lineno)
    root = _root_of(parts[0])
    inside = root.joinpath(*parts[1:]).with_suffix(".py") if root else None
    return Base(path=inside, package=parts[0], line=statement.lineno)


# ------------------------------------------------------------------------------------------------- modules


def imports(tree: ast.Module) -> list[str]:
    """The modules that a config or module imports by absolute name, except within `read_base()`."""
    within = {id(one) for node in tree.body if isinstance(node, ast.With) for one in node.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module and id(node) not in within:
            found.append(node.module)
    return found


def check_calls(tree: ast.Module, path: Path) -> None:
    """Raises UserError if a pure Python config calls something it imports: mmengine imports nothing but the
    standard library and only notes the name. A config that sets `_base_` first is executed as it is."""
    lazy: set[str] = set()
    for node in tree.body:
        if not lazy and isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_":
            return
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = {alias.asname or alias.name: module for alias in node.names}
        else:
            # The name may be assigned to something else.
            lazy -= {getattr(one, "id", "") for one in getattr(node, "targets", [])}
            continue
        lazy |= {name for name, module in names.items() if not _is_imported(module)}
    rest: list[ast.AST] = [tree]
    while rest:
        part = rest.pop()
        if isinstance(part, ast.Call):
            called = part.func
            while isinstance(called, ast.Attribute):
                called = called.value
            if isinstance(called, ast.Name) and called.id in lazy:
                raise UserError(
                    f"{path}, line {part.lineno}: a config cannot call the imported "
                    f"{ast.unparse(part.func)}: only the standard library can be called; write dict(type=…)"
                )
        rest += [
            one for one in ast.iter_child_nodes(part) if not isinstance(one, (ast.FunctionDef, ast.Lambda))
        ]


def _is_imported(module: str) -> bool:
    return module in ("mmengine", "mmengine.config") or module.split(".")[0] in sys.stdlib_module_names


def modules(names: list[str], places: list[Path], outer: Sequence[Path] = ()) -> list[Path]:
    """The named modules that lie in one of `places`, and those they import from there in turn: each as its
    file, or its top-level package's folder. A module whose package is not installed may also lie in an
    `outer` place."""
    found: list[Path] = []
    prerequisites = [(name, places) for name in names]
    while prerequisites:
        name, where = prerequisites.pop(0)
        top = name.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        for place in where if installed.is_installed(top) else [*where, *outer]:
            module = _module(name, place)
            if module is not None:
                if module not in found:
                    found.append(module)
                    prerequisites += [(inner, [place]) for inner in _imported_by(module)]
                break
    return found


def above(files: list[Path]) -> list[Path]:
    """The folders above config files, up to the root of their repository, and the current one: there lies the
    package beside configs/ of `PYTHONPATH=. python tools/train.py configs/mine/config.py`."""
    found = []
    home = Path.home().resolve()
    for file in files:
        if place_in_package(file):
            continue
        for folder in file.parents:
            if folder == home or folder == folder.parent:
                break
            found.append(folder)
            if (folder / ".git").exists():
                break
    return [*dict.fromkeys([*found, Path.cwd()])]


def _module(name: str, place: Path) -> Path | None:
    parts = name.split(".")
    inner = place.joinpath(*parts)
    top = place / parts[0]
    if len(parts) > 1:
        # The last part may be a name within the module.
        there = inner.with_suffix(".py").is_file() or inner.is_dir() or (top / "__init__.py").is_file()
        return top if there and top.is_dir() else None
    if inner.with_suffix(".py").is_file():
        return inner.with_suffix(".py")
    return top if (top / "__init__.py").is_file() else None


def _imported_by(module: Path) -> list[str]:
    found: list[str] = []
    for file in code_files.python(module):
        try:
            found += imports(ast.parse(file.read_text(encoding="utf-8")))
        except (SyntaxError, ValueError, OSError):
            continue  # importing it in the job will say so
    return found


def parsed(file: Path) -> ast.Module:
    """The file's syntax tree. Raises UserError if it is not Python or cannot be read."""
    try:
        return ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: not Python: {error.msg}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read as a program: {error}") from None


def check_datasets(found: list[Path], used: set[str]) -> None:
    """Raises UserError for a dataset class, among those `used`, that names its classes as MMSegmentation
    before 1.0 did: in 1.x it would have none, which only the first validation would show."""
    for module in found:
        for file in code_files.python(module):
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError):
                continue  # the job's import of it will say so
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name in used and _is_old_dataset(node):
                    raise UserError(
                        f"{file}, line {node.lineno}: {node.name} has CLASSES and PALETTE, as in "
                        "MMSegmentation 0.x; now it is METAINFO = dict(classes=…, palette=…)"
                    )


def _is_old_dataset(node: ast.ClassDef) -> bool:
    targets = [t for one in node.body if isinstance(one, ast.Assign) for t in one.targets]
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    return "CLASSES" in names and "METAINFO" not in names and any(b.endswith("Dataset") for b in bases)
