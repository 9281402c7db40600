"""A run's `code/`: what its jobs import, copied at submission, so that later edits change nothing.

code/jobs/  launch/  configs/    as in the checkout at that moment
code/data                    link to the data root
code/MODULE                  the user's modules that the configs (or the `--worker` program) import
code/…                       configs, or the `--worker`, from elsewhere in the checkout, at the same place
code/config_files/…          those from outside the checkout, in the same layout
code/package_configs/…       configs of an installed package (`mmseg::…`, or by their path)

Where a `_base_` would not lead to its copy (an absolute path, `mmseg::…`), it is rewritten in the copy;
nothing else in a config is changed.
"""

from __future__ import annotations

import ast
import errno
import itertools
import os
import shutil
from pathlib import Path

from jobs.run import code_files
from jobs.run.errors import UserError
from launch.submit import config_files
from launch.submit.configs import Chain
from launch.submit.runs import CHECKOUT

FOLDERS = ("jobs", "launch", "configs")
"""Folders of the checkout that are copied; launch/ for the report after an evaluation."""
MOST = 1000
"""The most files other than code that a folder with code may have."""


def take(code: Path, data_root: Path, chain: Chain | None = None) -> str:
    """Fills `code` (made here) and returns the config's path below it ("" without a config).

    Raises UserError if a config cannot be placed without losing its bases.
    """
    code.mkdir()
    for folder in FOLDERS:
        _copy_tree(CHECKOUT / folder, code / folder)
    try:
        (code / "data").symlink_to(data_root)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"{code.parent.parent} is on a file system without symbolic links, and a run needs one: "
            "set BATON_RUNS to a folder elsewhere"
        ) from None
    return place(code, chain) if chain else ""


def place_of(chain: Chain) -> str:
    """The config's path below a run's code/."""
    return str(_targets(chain.files)[chain.files[0]])


def place(code: Path, chain: Chain) -> str:
    """Copies a config, its bases and its modules into `code`; returns the config's path below it."""
    targets = _targets(chain.files)
    for source, target in targets.items():
        copy = code / target
        if not copy.exists() or source in chain.bases:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(_rebased(source, targets, chain.bases.get(source, {})))
    for module in chain.modules:
        copy = code / module.name
        if module.is_dir() and not copy.exists():
            _copy_tree(module, copy)
        elif not copy.exists():
            shutil.copyfile(module, copy)
    return place_of(chain)


def _copy_tree(source: Path, target: Path, above: tuple[str, ...] = ()) -> None:
    """Copies content only: jobs need no times and modes, and a copy of a read-only checkout stays deletable.
    Data beside a user's code is linked, not copied for each run. `above`: the folders that this one is copied
    within, to skip links that lead back.

    shutil.copytree takes twice as long, mostly to check for what cannot be here (FIFOs, the same file).
    """
    above = (*above, str(source))
    target.mkdir()
    beside = 0
    for entry in code_files.entries(source):
        if source.parts[-2:] == ("configs", "clusters") and entry.name != "example.yaml":
            continue  # profiles are the user's, and may hold secrets; run.yaml has what the job needs
        copy = target / entry.name
        if entry.is_symlink() and os.path.realpath(entry.path) in map(os.path.realpath, above):
            continue
        if code_files.is_data(entry.path) if entry.is_dir() else code_files.is_large(entry):
            copy.symlink_to(os.path.realpath(entry.path))
        elif entry.is_dir():
            _copy_tree(source / entry.name, copy, above)
        else:
            beside += not entry.name.endswith(code_files.CODE)
            if beside > MOST:
                raise UserError(
                    f"{source} has code and more than {MOST} other files, which each run would copy: move "
                    "those into a subfolder without code, which a run only links"
                )
            with open(entry.path, "rb") as old, open(copy, "wb") as new:
                new.write(old.read())


def _targets(files: list[Path]) -> dict[Path, Path]:
    """Where each file of a chain goes below code/; the user's own keep their relative places."""
    packaged = {file: place for file in files if (place := config_files.place_in_package(file))}
    own = [file for file in files if file not in packaged]
    if all(file.is_relative_to(CHECKOUT) for file in own):
        targets = {file: file.relative_to(CHECKOUT) for file in own}
    else:
        top = Path(os.path.commonpath([file.parent for file in own]))
        targets = {file: Path("config_files") / file.relative_to(top) for file in own}
    for file, target in targets.items():
        if target.parts[0] == "data":
            raise UserError(f"{file}: a config cannot be in data/, which stands for the data root in a run")
    return targets | {file: Path("package_configs") / place for file, place in packaged.items()}


def _rebased(source: Path, targets: dict[Path, Path], bases: dict[str, Path]) -> bytes:
    """The content of a config's copy, in which every `_base_` leads to the copy of that base.

    Raises UserError if the names of its bases cannot be rewritten because of the file's templates.
    """
    content = source.read_bytes()
    here = targets[source].parent
    moved = {
        written: os.path.relpath(targets[base], here)
        for written, base in bases.items()
        if "::" in written or os.path.normpath(here / written) != str(targets[base])
    }
    if not moved:
        return content
    if source.suffix != ".py":
        raise UserError(
            f"{source}: the snapshot must rewrite the paths of its bases, which is only "
            "possible in a Python config"
        )
    try:
        tree = ast.parse(content, str(source))
    except SyntaxError:
        raise UserError(
            f"{source}: a snapshot has to name its bases anew, which its {{{{…}}}} templates prevent: name "
            "them by relative paths"
        ) from None
    lines = content.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    spans = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "_base_" for t in node.targets):
            for one in ast.walk(node.value):
                if isinstance(one, ast.Constant) and one.value in moved:
                    begin = starts[one.lineno - 1] + one.col_offset
                    end = starts[(one.end_lineno or 1) - 1] + (one.end_col_offset or 0)
                    spans.append((begin, end, moved[one.value]))
    for begin, end, name in sorted(spans, reverse=True):
        content = content[:begin] + repr(name).encode() + content[end:]
    return content
