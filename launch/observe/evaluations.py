"""Which of its evaluations a run goes by: the newest of its best checkpoint. Another one's figures are told
with the checkpoint that they are of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jobs.run import checkpoint_files, files, records
from jobs.run.checkpoint_files import Checkpoint


def chosen(folders: Sequence[Path], checkpoints: Path) -> tuple[int, str]:
    """The number of the evaluation that a run goes by, of those with their results in `folders`, oldest first
    (at least one); and `whose` it is."""
    best = checkpoint_files.meant(checkpoints, "best")
    owners = [whose(folder, best) for folder in folders]
    own = [number for number, owner in enumerate(owners) if not owner]
    number = own[-1] if own else len(folders) - 1
    return number, owners[number]


def whose(folder: Path, meant: Checkpoint | None) -> str:
    """The name of the checkpoint that was evaluated there, where that is not the one that is `meant`; ""
    where it is, and of a run that has none (None)."""
    if meant is None:
        return ""
    name, _, digest = folder.name.removesuffix("-tta").rpartition("-")  # jobs/evaluate/results.py
    if not re.fullmatch("[0-9a-f]{8}", digest):  # --out, which may have any name
        told = records.read_json(folder / files.EVAL_METRICS)
        name, digest = Path(str(told.get("checkpoint", "?"))).stem, str(told.get("digest", ""))[:8]
    if digest == str(meant.manifest.get("digest", ""))[:8]:
        return ""
    return f"another {name}" if name == meant.path.stem else name
