"""Pictures of an evaluation's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate.drawing import Pictures


def test_an_image_that_cannot_be_drawn_costs_its_picture_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((4, 4), np.uint16)
    (tmp_path / "broken.tif").write_bytes(b"II*\0 and no more")
    pictures = Pictures(tmp_path, [0], ["1"], [[0, 0, 0]], True)
    assert not pictures.draw("one", str(tmp_path / "broken.tif"), labels, labels)
    said = capsys.readouterr().out
    assert said.startswith("no picture of broken.tif: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.rglob("*.jpg"))
