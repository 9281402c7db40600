"""An evaluation's figures as a launcher shows them: the table by class, and the three means."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from jobs.run import files
from launch.observe import tables


def told(event: dict[str, Any]) -> str:
    """The text for an `evaluated` event: the table of its folder's per_class.csv (none where that cannot be
    read from here), the means, the folder. A figure that is not defined is –."""
    metrics = event["metrics"]
    means = "  ".join(f"{key} {percent(metrics[key])}" for key in ("mIoU", "mAcc", "aAcc") if key in metrics)
    lines = [by_class(Path(event["path"])), f"evaluated {event['checkpoint']}: {means}", f"  {event['path']}"]
    return "\n".join(line for line in lines if line)


def by_class(folder: Path) -> str:
    """IoU and accuracy of each class, in percent; "" without a table."""
    try:
        text = (folder / files.EVAL_CLASSES).read_text(encoding="utf-8")
    except OSError:
        return ""
    rows = [
        [row["class"], *(percent(float(row[key]) if row[key] else None) for key in ("IoU", "Acc"))]
        for row in csv.DictReader(text.splitlines())
    ]
    return tables.plain(["class", ">IoU", ">Acc"], rows)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
