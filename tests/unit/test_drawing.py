"""Pictures of an evaluation's images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate import results
from jobs.evaluate.drawing import Pictures, pictures_of
from jobs.infer import raster
from jobs.run.errors import UserError
from launch.observe.report import page


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


def test_no_two_pictures_of_one_evaluation_have_one_name() -> None:
    class Dataset(list[str]):
        def get_data_info(self, index: int) -> dict[str, str]:
            return {"img_path": f"/data/{self[index]}"}

    dataset = Dataset(["site/1/x.png", "site_1/x.png", "site_1_x.png"])
    assert pictures_of(dataset, ["all"]) == {0: "site_1_x", 1: "site_1_x_", 2: "site_1_x__"}


def test_an_images_name_that_is_no_text_costs_no_evaluation(tmp_path: Path) -> None:
    """All has been computed when the tables are written."""
    name = os.fsdecode(b"a\xff.png")
    results.write_images(tmp_path, [(0, "")], [name], [(1.0, 2.0)])
    assert b"\r\n1,a\xff.png,1.0,2.0,\r\n" in (tmp_path / "per_image.csv").read_bytes()
    assert "a\\udcff.png" in page.document("x", name)
    with pytest.raises(UserError, match="not UTF-8: rename it"):  # and GDAL takes it in no form
        raster.check_name(Path(name))
