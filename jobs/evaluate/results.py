"""The folder of one evaluation: metrics.json, per_class.csv, per_image.csv, confusion.csv, pictures/.
metrics.json is written last: if it exists, everything does."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.mmseg import figures, pictures
from jobs.run import files, metrics
from jobs.run.directory import Run, write_atomically


def folder(run: Run, checkpoint: Path, digest: str, tta: bool) -> Path:
    """One folder per checkpoint content: evaluating the same one again finds the first result."""
    return run.eval / f"{checkpoint.stem}-{digest[:8]}{'-tta' if tta else ''}"


def finished(where: Path) -> dict[str, Any] | None:
    """The metrics of a complete evaluation, or None."""
    try:
        return dict(json.loads((where / files.EVAL_METRICS).read_text()))
    except (FileNotFoundError, ValueError):
        return None


def write(where: Path, found: dict[str, Any], matrix: np.ndarray) -> None:
    where.mkdir(parents=True, exist_ok=True)
    names = [one["name"] for one in found["classes"]]
    columns = ["IoU", "Acc", "pixels", *figures.PER_CLASS[2:], "BoundaryIoU"]
    ends = [
        [low, high] for low, high in (one["intervals"]["IoU"] or (None, None) for one in found["classes"])
    ]
    rows = [
        [one["name"], *(one[key] for key in columns), *both]
        for one, both in zip(found["classes"], ends, strict=True)
    ]
    head = ["class", *columns, "IoU low", "IoU high"]
    write_atomically(where / files.EVAL_CLASSES, table([head, *rows]))
    counts = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
    write_atomically(where / files.EVAL_CONFUSION, table([["truth \\ prediction", *names], *counts]))
    write_atomically(where / files.EVAL_METRICS, (json.dumps(found, indent=1) + "\n").encode())


def write_images(
    where: Path, order: Sequence[tuple[int, str]], paths: Sequence[str], scores: Sequence[tuple[float, float]]
) -> None:
    """Writes per_image.csv: mIoU and aAcc (in percent, empty if all is ignored) of each image, worst first.
    `order`: the images' numbers, each with its picture's name, "" without; `scores` by number."""
    rows: list[list[Any]] = []
    for place, (index, name) in enumerate(order, 1):
        figures_of_it = [value if math.isfinite(value) else None for value in scores[index]]
        drawn = name and (where / files.EVAL_PICTURES / f"{name}.jpg").exists()
        rows.append([place, paths[index], *figures_of_it, f"{name}.jpg" if drawn else ""])
    head = ["place", "image", "mIoU", "aAcc", "picture"]
    write_atomically(where / files.EVAL_WORST, table([head, *rows]))


def table(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")  # as bytes of a file's name are that are no text


def picture(
    where: Path, name: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: Any
) -> None:
    """Writes image, truth, prediction side by side to pictures/NAME.jpg. `image`: RGB, H × W × 3, uint8."""
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
    """Prints the per-class table and the summary."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    means = found.get("asked", metrics.EVALUATED[:3])
    columns = [name[1:] for name in means if name[0] == "m" and name[1:] in found["classes"][0]]
    augmented = f", augmented ({found['augmented']})" if found.get("augmented") else ""
    title = f"{found['images']} images, {found['checkpoint']}{augmented}"
    rows = Table("class", title=title, box=box.HEAVY_HEAD if len(columns) < 6 else box.SIMPLE)
    for column in columns:
        rows.add_column(column.replace("BoundaryIoU", "Boundary"), justify="right")
    for one in found["classes"]:
        rows.add_row(one["name"], *(percent(one[key]) for key in columns))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 80).print(rows)
    print("  ".join(f"{key} {shown(found, key)}" for key in means), flush=True)
    if "bootstrap" in found:
        print(f"in brackets: {found['bootstrap']['level']:.0%} intervals over images (bootstrap)", flush=True)
    for why in found.get("not_computed", []):
        print(f"not computed: {why}", flush=True)


def shown(found: dict[str, Any], key: str) -> str:
    """A figure in percent with its interval; another metric's unchanged."""
    if key in found.get("intervals", {}) and (ends := found["intervals"][key]):
        return f"{percent(found[key])} [{ends[0]:.2f}, {ends[1]:.2f}]"
    value = found[key]
    return percent(value) if value is None or isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
