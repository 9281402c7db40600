"""A run's `code/`: what its jobs import, copied at submission, so that later edits change nothing.

code/jobs/  launch/  configs/    as in the checkout at that moment
code/data                    link to the data root
code/MODULE                  the user's modules that the config's custom_imports names
code/…                       configs from elsewhere in the checkout, at the same place
code/config_files/…          configs from outside the checkout, in the same layout, so `_base_` still holds
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from jobs.errors import UserError
from launch.configs import Chain
from launch.runs import CHECKOUT


def take(code: Path, data_root: Path, chain: Chain | None = None) -> str:
    """Fills `code` (made here) and returns the config's path below it ("" without a config).

    Raises UserError if a config cannot be placed without losing its bases.
    """
    code.mkdir()
    for folder in ("jobs", "launch", "configs"):  # launch/ for the report after an evaluation
        _copy_tree(CHECKOUT / folder, code / folder)
    (code / "data").symlink_to(data_root)
    if chain is None:
        return ""
    targets = _targets(chain.files)
    for source, target in targets.items():
        place = code / target
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
    for module in chain.modules:
        place = code / module.name
        if module.is_dir() and not place.exists():
            _copy_tree(module, place)
        elif not place.exists():
            shutil.copyfile(module, place)
    return str(targets[chain.files[0]])


def _copy_tree(source: Path, target: Path) -> None:
    """Content only, for jobs need no times and modes, and a copy of a read-only checkout stays deletable.

    shutil.copytree takes twice as long, most of it to look for what cannot be here (FIFOs, the same file).
    """
    target.mkdir()
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
                continue
            if source.parts[-2:] == ("configs", "clusters") and entry.name != "example.yaml":
                continue  # profiles are the user's, and may hold secrets; run.yaml has what the job needs
            if entry.is_dir():
                _copy_tree(source / entry.name, target / entry.name)
            else:
                with open(entry.path, "rb") as old, open(target / entry.name, "wb") as new:
                    new.write(old.read())


def _targets(files: list[Path]) -> dict[Path, Path]:
    """Where each file of a chain goes below code/; their places relative to each other stay."""
    if all(file.is_relative_to(CHECKOUT) for file in files):
        targets = {file: file.relative_to(CHECKOUT) for file in files}
    else:
        top = Path(os.path.commonpath([file.parent for file in files]))
        targets = {file: Path("config_files") / file.relative_to(top) for file in files}
    for file, target in targets.items():
        if target.parts[0] == "data":
            raise UserError(f"{file}: a config cannot lie in data/, which stands for the data root in a run")
    return targets
