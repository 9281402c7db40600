"""The folder of one evaluation: metrics.json, per_class.csv, confusion.csv, pictures/. metrics.json comes
last, so where it is, all is."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.mmseg import figures, pictures
from jobs.run import files
from jobs.run.directory import Run, write_atomically


def folder(run: Run, checkpoint: Path, digest: str) -> Path:
    """One folder a checkpoint's content: evaluating the same one twice finds the first result."""
    return run.eval / f"{checkpoint.stem}-{digest[:8]}"


def finished(where: Path) -> dict[str, Any] | None:
    """The metrics of an evaluation that is whole, or None."""
    try:
        return dict(json.loads((where / files.EVAL_METRICS).read_text()))
    except (FileNotFoundError, ValueError):
        return None


def write(where: Path, found: dict[str, Any], matrix: np.ndarray) -> None:
    where.mkdir(parents=True, exist_ok=True)
    names = [one["name"] for one in found["classes"]]
    columns = ["IoU", "Acc", "pixels", *figures.PER_CLASS[2:]]
    rows = [[one["name"], *(one[key] for key in columns)] for one in found["classes"]]
    write_atomically(where / files.EVAL_CLASSES, table([["class", *columns], *rows]))
    counts = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
    write_atomically(where / files.EVAL_CONFUSION, table([["truth \\ prediction", *names], *counts]))
    write_atomically(where / files.EVAL_METRICS, (json.dumps(found, indent=1) + "\n").encode())


def table(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def picture(
    where: Path, name: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: Any
) -> None:
    """Image, truth and prediction side by side, as pictures/NAME.jpg. `image` is RGB (H × W × 3, uint8)."""
    target = where / files.EVAL_PICTURES / f"{name}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        image,
        np.asarray(pictures.overlay(image, truth, palette, 0.75)),
        np.asarray(pictures.overlay(image, prediction, palette, 0.75)),
    ]
    gap = np.full((image.shape[0], 4, 3), 255, np.uint8)
    pictures.save(Image.fromarray(np.hstack([parts[0], gap, parts[1], gap, parts[2]])), target)


def show(found: dict[str, Any]) -> None:
    """The per-class table and the summary, on a terminal or in a log."""
    from rich.console import Console
    from rich.table import Table

    rows = Table("class", title=f"{found['images']} images, {found['checkpoint']}")
    means = found.get("asked", ["mIoU", "mAcc", "aAcc"])
    columns = [name[1:] for name in means if name != "aAcc"]
    for column in columns:
        rows.add_column(column, justify="right")
    for one in found["classes"]:
        rows.add_row(one["name"], *(percent(one[key]) for key in columns))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 80).print(rows)
    print("  ".join(f"{key} {percent(found[key])}" for key in means), flush=True)
    for name in found.get("not_computed", []):
        print(f"{name} of the config is not computed here: mmseg's tools/test.py does", flush=True)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
