"""Which of its evaluations counts for a run: the newest of its best checkpoint, without augmentation. Figures
of another one are shown together with what was evaluated."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.run import checkpoint_files, files, metrics, records
from jobs.run.checkpoint_files import Checkpoint


def chosen(folders: Sequence[Path], checkpoints: Path) -> tuple[int, str]:
    """The index in `folders` (of evaluation results, oldest first, not empty) of the evaluation that counts
    for a run; and what was evaluated, if not the best checkpoint without augmentation: `epoch_50`, `tta`."""
    best = meant(checkpoints, "best")
    about = [_about(folder) for folder in folders]
    owners = [_owner(name, digest, best) for name, digest, _ in about]
    augmented = [one for *_, one in about]
    number = max(range(len(folders)), key=lambda one: (not owners[one], not augmented[one], one))
    return number, ", ".join(filter(None, (owners[number], metrics.AUGMENTED if augmented[number] else "")))


def meant(checkpoints: Path, which: str) -> Checkpoint | None:
    """The checkpoint that `which` means. A best checkpoint remains the best even if its file has been
    deleted: it may have been evaluated before."""
    noted = checkpoint_files.noted_best(checkpoints) if which == "best" else None
    return noted or checkpoint_files.meant(checkpoints, which)


def whose(folder: Path, meant: Checkpoint | None) -> str:
    """The name of the checkpoint that was evaluated there, if it is not the one `meant`; "" if it is, or if a
    run has none (None)."""
    name, digest, _ = _about(folder)
    return _owner(name, digest, meant)


def _owner(name: str, digest: str, meant: Checkpoint | None) -> str:
    if meant is None or digest == str(meant.manifest.get("digest", ""))[:8]:
        return ""
    return f"another {name}" if name == meant.path.stem else name


def _about(folder: Path) -> tuple[str, str, bool]:
    """An evaluation's checkpoint name, the start of its digest, and whether images were augmented."""
    named = re.fullmatch("(.+)-([0-9a-f]{8})(-tta)?", folder.name)  # jobs/evaluate/results.py
    if named:
        return named[1], named[2], bool(named[3])
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError):  # --out may have any name, and be on a disk that is gone
        told = records.read_json(folder / files.EVAL_METRICS)
    name = Path(str(told.get("checkpoint", "?"))).stem
    return name, str(told.get("digest", ""))[:8], bool(told.get("augmented"))
