"""The figures of an evaluation as `--wait` shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jobs.evaluate import per_image, results
from jobs.mmseg import figures as made
from launch.observe import evaluation_table as figures
from launch.observe import wording


def test_the_table_by_class_is_shown_also_where_a_figure_is_not_defined(tmp_path: Path) -> None:
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    each = per_image.PerImage()
    each.add(len(each.rows), matrix, matrix)
    counts = per_image.joined([each.tobytes()], 1, 3)
    found = made.figures(matrix, ["background", "dog, small", "never there"], boundary=counts[0, 3:])
    results.write(tmp_path, per_image.completed(found, counts, 1.0), matrix)
    event = {"checkpoint": "epoch_3.pth", "path": str(tmp_path)}
    metrics = {"mIoU": found["mIoU"], "mAcc": None, "aAcc": 75.0, "own/digest": "abc", "own/x": 0.5}
    text = figures.summary(event | {"metrics": metrics})
    rows = [line.split() for line in text.splitlines()]
    assert rows[:4] == [
        ["CLASS", "IOU", "ACC"],
        ["background", "66.67", "75.00"],
        ["dog,", "small", "50.00", "75.00"],
        ["never", "there", "–", "–"],
    ]
    assert text.endswith(
        f"evaluated epoch_3.pth: mIoU 58.33  mAcc –  aAcc 75.00  own/digest abc  own/x 0.50\n  {tmp_path}"
    )


def test_without_the_table_the_means_are_shown(tmp_path: Path) -> None:
    event = {"checkpoint": "x.pth", "path": str(tmp_path / "gone"), "metrics": {"mIoU": None}}
    assert figures.summary(event) == f"evaluated x.pth: mIoU –\n  {tmp_path}/gone"


def test_no_span_is_below_zero() -> None:
    """Between two machines' clocks, or where one was put right."""
    assert [wording.span(seconds) for seconds in (-494157618.1, -0.01, 0, 0.05, 89)] == [
        "0.0 s", "0.0 s", "0.0 s", "50 ms", "89 s",
    ]  # fmt: skip
