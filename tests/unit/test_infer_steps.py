"""Inference reads an image by the config's own steps, whatever they are: the network gets what it gets of the
same file in the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from jobs.mmseg import compat
from jobs.run import output
from jobs.run.directory import Run
from jobs.run.errors import UserError
from tests.support import tiny

compat.prepare()

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATASETS, DefaultScope, init_default_scope  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

from jobs.export import __main__ as export  # noqa: E402
from jobs.infer import segmenting, stamp, whole  # noqa: E402
from jobs.mmseg import images  # noqa: E402
from jobs.mmseg import model as models  # noqa: E402
from jobs.prepare.own import reading  # noqa: E402

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def scope() -> None:
    register_all_modules(init_default_scope=False)
    if DefaultScope.get_current_instance() is None:
        init_default_scope("mmseg")


def config(folder: Path, suffix: str, **load: Any) -> Any:
    steps = [
        {"type": "LoadImageFromFile", **load},
        {"type": "Resize", "scale": (30, 20), "keep_ratio": True},
        {"type": "LoadAnnotations"},
        {"type": "PackSegInputs"},
    ]
    dataset = {
        "type": "BaseSegDataset",
        "data_root": str(folder),
        "data_prefix": {"img_path": "img", "seg_map_path": "ann"},
        "img_suffix": suffix,
        "metainfo": {"classes": ("a",), "palette": [[0, 0, 0]]},
        "pipeline": steps,
        "test_mode": True,
    }
    return Config({"test_dataloader": {"dataset": dataset}})


def deep(path: Path) -> None:
    cv2.imwrite(str(path), COLOURS.astype(np.uint16) * 200)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(path, exif=exif)


def bands(path: Path) -> None:
    five = np.dstack([COLOURS, COLOURS[..., :2]]).astype(np.uint16) * 40
    pytest.importorskip("tifffile").imwrite(path, five, photometric="minisblack", planarconfig="contig")


CASES: dict[str, tuple[Any, str, dict[str, Any], bool]] = {
    "16 bits": (deep, ".png", {"color_type": "unchanged", "to_float32": True}, False),
    "16 bits as 8": (deep, ".png", {}, True),
    "grey": (lambda p: Image.fromarray(COLOURS).save(p), ".png", {"color_type": "grayscale"}, True),
    "transparent": (
        lambda p: Image.fromarray(np.dstack([COLOURS, COLOURS[..., :1]])).save(p), ".png", {}, True
    ),
    "turned": (turned, ".jpg", {}, True),
    "turning ignored": (turned, ".jpg", {"color_type": "color_ignore_orientation"}, False),
    "five bands": (bands, ".tif", {"imdecode_backend": "tifffile", "to_float32": True}, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_the_network_gets_what_it_gets_in_the_evaluation(kind: str, tmp_path: Path) -> None:
    write, suffix, load, turns = CASES[kind]
    for name in ("img", "ann"):
        (tmp_path / name).mkdir()
    file = tmp_path / "img" / f"x{suffix}"
    write(file)
    Image.fromarray(COLOURS[..., 0] * 0).save(tmp_path / "ann" / "x.png")
    cfg = config(tmp_path, suffix, **load)
    expected = DATASETS.build(cfg.test_dataloader.dataset)[0]

    read, prepare = models.reading(cfg)
    found = prepare(images.loaded(read, file))
    assert found["inputs"].dtype == expected["inputs"].dtype
    assert torch.equal(found["inputs"], expected["inputs"])
    assert found["data_samples"].ori_shape == expected["data_samples"].ori_shape
    assert models.turns(cfg) == turns
    if kind != "five bands":
        assert images.read(file, turns).shape[:2] == found["data_samples"].ori_shape


def test_what_cannot_be_drawn_costs_the_overlay_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0")
    whole.write(tmp_path / "out" / "x", tmp_path / "x.tif", np.zeros((40, 60), np.uint8), [[0, 0, 0]], True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.png"]
    turned(tmp_path / "y.jpg")
    whole.write(tmp_path / "out" / "y", tmp_path / "y.jpg", np.zeros((40, 60), np.uint8), [[0, 0, 0]], True)
    assert (tmp_path / "out" / "y.png").exists()
    first, second = capsys.readouterr().out.splitlines()
    assert "x.tif cannot be decoded" in first
    assert "the image is 40 × 60, its labels are 60 × 40" in second


def planes(path: Path) -> None:
    deep = COLOURS.astype(np.uint16).transpose(2, 0, 1) * 200
    pytest.importorskip("tifffile").imwrite(path, deep, photometric="rgb", planarconfig="separate")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.gif", lambda path: Image.fromarray(COLOURS).save(path)),
        ("x.jp2", lambda path: Image.fromarray(COLOURS).save(path)),
        ("x.tif", deep),
        ("x.tif", bands),
        ("x.tif", planes),
    ],
)
def test_whatever_is_segmented_has_an_overlay(
    name: str, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    palette = [[0, 0, 0]]  # the image is left as it is
    whole.write(tmp_path / "out" / "x", tmp_path / name, np.zeros((40, 60), np.uint8), palette, True)
    assert capsys.readouterr().out == ""
    with Image.open(tmp_path / "out" / "x_overlay.jpg") as shown:
        assert shown.size == (60, 40)
        assert np.asarray(shown).std() > 30


def test_what_killed_processes_left_is_removed_by_the_last_that_writes_there(tmp_path: Path) -> None:
    """Of two equal commands the first to end took the files that the other was just writing."""
    output.claim(tmp_path)
    left = {".a.png.12.tmp", ".b.part.json.12.tmp", ".c.0a1b2c3d.tmp.tif", ".c.0a1b2c3d.tmp.png.aux.xml"}
    kept = {"a.png", ".b.part", ".c.tmp", output.MARK}
    for name in left | kept:
        (tmp_path / name).touch()
    with output.held(tmp_path), output.held(tmp_path):
        segmenting.sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == left | kept
    segmenting.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_whether_images_are_read_as_they_are_stored_is_looked_at_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image of four bands took several times as long to read, though nothing was wrong with any."""
    bands = np.ones((4, 4, 4), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", bands, photometric="minisblack", planarconfig="contig")
    looked = []
    monkeypatch.setattr(reading, "misread", lambda *given: looked.append(given))
    work = segmenting.Segmenting.__new__(segmenting.Segmenting)
    work.load, work.looks = None, segmenting.LOOKS
    for _ in range(segmenting.LOOKS + 9):
        work._look(tmp_path / "x.tif")
    assert len(looked) == segmenting.LOOKS


def test_a_folder_of_results_that_goes_meanwhile_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made again, and all images were said to be in it, where the first had gone."""
    out = tmp_path / "out"
    output.claim(out)
    work = segmenting.Segmenting.__new__(segmenting.Segmenting)
    work.out, work.done, work.asked_to_leave = out, segmenting.Done(), lambda: False
    monkeypatch.setattr(work, "_segment", lambda *_: True)
    assert [work.one(tmp_path / "x.png", Path("x")) for _ in range(2)] == [True, True]
    out.rename(tmp_path / "renamed")
    out.mkdir()  # as the next result's
    assert not work.one(tmp_path / "x.png", Path("x"))
    assert (work.done.segmented, work.done.full) == (2, True)
    assert work.done.problems == [f"{out} was removed or renamed meanwhile: start again, with a new --out"]


def test_a_pipeline_that_reads_no_file_is_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path, ".png")
    cfg.test_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline[2:3]
    with pytest.raises(UserError, match="does not begin by reading an image"):
        models.reading(cfg)


def test_what_an_export_cannot_be_checked_on_is_named(tmp_path: Path) -> None:
    cfg = config(tmp_path, ".png")
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    (found,) = export.samples(cfg, [str(tmp_path)])
    assert found["inputs"].shape[0] == 3
    (tmp_path / "b.png").touch()
    with pytest.raises(UserError, match=r"b\.png cannot be read as an image: it is empty$"):
        export.samples(cfg, [str(tmp_path)])
    Image.new("RGB", (2000, 1)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png cannot be used for the check: "):
        export.samples(cfg, [str(tmp_path)])


def test_an_export_takes_a_packages_files_and_not_its_folders_of_data(tmp_path: Path) -> None:
    run, out = Run(tmp_path / "run"), tmp_path / "out"
    (run.code / "parts").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "large.pth").write_bytes(b"x")
    (run.code / "parts" / "__init__.py").touch()
    (run.code / "parts" / "data").symlink_to(tmp_path / "images")
    (run.code / "parts" / "large.pth").symlink_to(tmp_path / "large.pth")
    (run.code / "parts" / "gone").symlink_to(tmp_path / "gone")
    out.mkdir()
    assert export.copy_modules(run, out) == ["parts/__init__.py", "parts/large.pth"]
    assert not (out / "parts" / "large.pth").is_symlink()
    assert not (out / "parts" / "data").exists()


def test_no_image_starts_ghostscript(tmp_path: Path) -> None:
    images.start_no_ghostscript()
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    read, _ = models.reading(config(tmp_path, ".png", imdecode_backend="pillow"))
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image: cannot identify"):
        images.loaded(read, tmp_path / "x.png")


def test_masks_of_another_model_are_not_taken_for_those_of_an_untrained_run(tmp_path: Path) -> None:
    """Its config file may be the same, and its overrides not. Its folder does not count: each inference with
    an exported model has a run of its own."""
    (tmp_path / "w.pth").write_bytes(b"weights")
    marks = []
    for name, settings in (("a", {}), ("b", {}), ("c", {"model__decode_head__align_corners": True})):
        run = tiny.make_run(tmp_path / name, tmp_path, **settings)
        marks.append(stamp.common(run, models.config(run), tmp_path / "w.pth", None))
    assert marks[0] == marks[1] != marks[2]
