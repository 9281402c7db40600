"""Which of its evaluations a run goes by: the newest of its best checkpoint, without augmentation. Another
one's figures are told with what they are of."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.run import checkpoint_files, files, metrics, records
from jobs.run.checkpoint_files import Checkpoint


def chosen(folders: Sequence[Path], checkpoints: Path) -> tuple[int, str]:
    """The number of the evaluation that a run goes by, of those with their results in `folders`, oldest first
    (at least one); and what it is of, if that is not the best checkpoint as it is: `epoch_50`, `tta`."""
    best = meant(checkpoints, "best")
    about = [_about(folder) for folder in folders]
    owners = [_owner(name, digest, best) for name, digest, _ in about]
    augmented = [one for *_, one in about]
    number = max(range(len(folders)), key=lambda one: (not owners[one], not augmented[one], one))
    return number, ", ".join(filter(None, (owners[number], metrics.AUGMENTED if augmented[number] else "")))


def meant(checkpoints: Path, which: str) -> Checkpoint | None:
    """What an evaluation of `which` would be of. A best checkpoint whose file was deleted is the best one
    yet: it may have been evaluated before."""
    noted = checkpoint_files.noted_best(checkpoints) if which == "best" else None
    return noted or checkpoint_files.meant(checkpoints, which)


def whose(folder: Path, meant: Checkpoint | None) -> str:
    """The name of the checkpoint that was evaluated there, where that is not the one that is `meant`; ""
    where it is, and of a run that has none (None)."""
    name, digest, _ = _about(folder)
    return _owner(name, digest, meant)


def _owner(name: str, digest: str, meant: Checkpoint | None) -> str:
    if meant is None or digest == str(meant.manifest.get("digest", ""))[:8]:
        return ""
    return f"another {name}" if name == meant.path.stem else name


def _about(folder: Path) -> tuple[str, str, bool]:
    """Of an evaluation: the checkpoint's name, its digest's beginning, and whether images were augmented."""
    named = re.fullmatch("(.+)-([0-9a-f]{8})(-tta)?", folder.name)  # jobs/evaluate/results.py
    if named:
        return named[1], named[2], bool(named[3])
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError):  # --out, which may have any name, and lie on a disk that is gone
        told = records.read_json(folder / files.EVAL_METRICS)
    name = Path(str(told.get("checkpoint", "?"))).stem
    return name, str(told.get("digest", ""))[:8], bool(told.get("augmented"))
