"""An evaluation's figures as the commands show them: the table by class, the means, other metrics."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.run import files
from jobs.run.metrics import FIGURES
from launch.observe import tables


def summary(event: dict[str, Any]) -> str:
    """The text for an `evaluated` event: the table from its folder's per_class.csv (if it can be read from
    here), the means, the folder. An undefined figure is shown as –."""
    metrics = event["metrics"]
    asked = [key for key in FIGURES if key in metrics]
    others = [key for key in metrics if key not in FIGURES]
    means = "  ".join(f"{key} {percent(metrics[key])}" for key in (*asked, *others))
    lines = [
        by_class(Path(event["path"]), asked),
        f"evaluated {event['checkpoint']}: {means}",
        f"  {event['path']}",
    ]
    return "\n".join(line for line in lines if line)


def by_class(folder: Path, asked: Sequence[str]) -> str:
    """For each class the figures whose means are `asked`, in percent; "" without a table."""
    try:
        text = (folder / files.EVAL_CLASSES).read_text(encoding="utf-8")
    except OSError:
        return ""
    columns = [name[1:] for name in asked if name.startswith("m")]
    rows = [
        [row["class"], *(percent(float(row[key]) if row.get(key) else None) for key in columns)]
        for row in csv.DictReader(text.splitlines())
    ]
    return tables.plain(["class", *(f">{column}" for column in columns)], rows)


def percent(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, (int, float)) else str(value)
