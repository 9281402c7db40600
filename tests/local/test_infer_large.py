"""Inference in tiles: as the whole image, with its place on the earth, and going on where it stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.mmseg import compat
from jobs.run import events, windows
from jobs.run.directory import Run
from tests.support import tiny

rasterio = pytest.importorskip("rasterio", reason="env/setup.sh --with geotiff installs what this needs")
compat.prepare()

from jobs.infer import large, raster, segmenting  # noqa: E402
from jobs.infer import whole as untiled  # noqa: E402

HEIGHT, WIDTH = 896, 1024
TILE, OVERLAP = 576, 288
"""A quarter of the overlap, 72 pixels, is as far as tests/support/configs/tiny.py looks. The sides are
multiples of 32: of others the network itself stretches what it says of the whole image."""


def config(**model: Any) -> Any:
    from mmengine.config import Config

    cfg = Config.fromfile("tests/support/configs/tiny.py")
    steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    cfg.test_dataloader.dataset.pipeline = steps
    cfg.model.update(model)
    return cfg


def make_run(folder: Path, cfg: Any) -> Run:
    """A run of a model with random weights, in RUN/weights.pth."""
    import torch
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    (folder / "data").mkdir(parents=True)
    run = tiny.make_run(folder / "run", folder / "data")
    cfg.dump(str(run.config))
    register_all_modules(init_default_scope=False)
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    torch.save({"state_dict": model.state_dict()}, run.path / "weights.pth")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("tiles"), config())


def colours() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3))
    smooth = np.stack([rows // 3, columns // 4, (rows + columns) // 9], axis=2) % 190
    return (smooth + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    Image.fromarray(colours()).save(path)
    return path


@pytest.fixture(scope="module")
def geotiff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geotiff") / "land.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=WIDTH, height=HEIGHT, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.transform.from_origin(500_000, 5_400_000, 0.5, 0.25), tiled=True,
    ) as file:  # fmt: skip
        file.write(colours().transpose(2, 0, 1))
    return path


def segment(
    run: Run,
    path: Path,
    out: Path,
    tile: tuple[int | None, int | None] = (None, None),
    asked_to_leave: Callable[[], bool] = lambda: False,
) -> segmenting.Done:
    work = segmenting.Segmenting(run, run.path / "weights.pth", "cpu", out, tile, asked_to_leave)
    work.one(path, Path("x"))
    assert work.error is None, work.done
    return work.done


def labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return np.asarray(file.read(1))


def test_tiles_give_what_the_whole_image_gives(run: Run, picture: Path, tmp_path: Path) -> None:
    for name, tile in (("whole", (None, None)), ("tiles", (TILE, OVERLAP)), ("cut", (TILE, 0))):
        assert segment(run, picture, tmp_path / name, tile).segmented == 1
    whole, tiles, cut = (labels(tmp_path / name / "x.png") for name in ("whole", "tiles", "cut"))
    assert whole.shape == (HEIGHT, WIDTH)
    assert len(np.unique(whole)) > 4
    # Blending rounds, so where two classes are equal to the last bit, the other may win.
    assert (whole != tiles).mean() < 1e-5
    assert (whole != cut).mean() > 1e-3  # tiles that see nothing of each other are told apart by this
    mask = Image.open(tmp_path / "tiles" / "x.png")
    assert mask.mode == "P"
    assert mask.getpalette() == Image.open(tmp_path / "whole" / "x.png").getpalette()
    assert Image.open(tmp_path / "tiles" / "x_overlay.jpg").size == (WIDTH, HEIGHT)
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == ["x.png", "x_overlay.jpg"]


def test_a_config_that_slides_slides_over_a_file_as_over_an_image(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = {"mode": "slide", "crop_size": (200, 240), "stride": (130, 90)}
    run = make_run(tmp_path, config(test_cfg=slide))
    segment(run, picture, tmp_path / "whole")
    monkeypatch.setattr(windows, "MOST_PIXELS", WIDTH * HEIGHT - 1)
    # Several panels, as a very wide image has.
    monkeypatch.setattr("jobs.infer.tiles.MOST_SCORES", 21 * 200 * 400)
    segment(run, picture, tmp_path / "tiles")
    assert np.array_equal(labels(tmp_path / "whole" / "x.png"), labels(tmp_path / "tiles" / "x.png"))
    assert len(np.unique(labels(tmp_path / "whole" / "x.png"))) > 4


def test_batches_of_tiles_give_what_one_at_a_time_gives(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that has room for three tiles at once."""
    sizes: list[int] = []
    results_of = untiled.results_of

    def counted(model: Any, some: list[Any]) -> list[Any]:
        sizes.append(len(some))
        return results_of(model, some)

    monkeypatch.setattr(untiled, "results_of", counted)
    segment(run, picture, tmp_path / "one", (256, 64))
    alone = len(sizes)
    assert set(sizes) == {1}
    sizes.clear()
    monkeypatch.setattr("jobs.engine.devices.fitting", lambda _: 3)
    segment(run, picture, tmp_path / "three", (256, 64))
    assert sum(sizes) == alone
    assert max(sizes) == 3
    assert sizes.count(3) > alone // 6
    one, three = (labels(tmp_path / name / "x.png") for name in ("one", "three"))
    assert (one != three).mean() < 1e-5


@pytest.mark.parametrize("tile", [(None, None), (TILE, OVERLAP)])
def test_a_mask_lies_where_its_image_lies(
    tile: tuple[int | None, int | None], run: Run, geotiff: Path, tmp_path: Path
) -> None:
    segment(run, geotiff, tmp_path / "out", tile)
    with rasterio.open(geotiff) as image, rasterio.open(tmp_path / "out" / "x.tif") as mask:
        assert mask.crs == image.crs
        assert mask.transform == image.transform
        assert mask.shape == image.shape
        assert mask.colormap(1)[1][:3] == (128, 0, 0)
    segment(run, geotiff, tmp_path / "whole")
    whole, found = (labels(tmp_path / name / "x.tif") for name in ("whole", "out"))
    assert (whole != found).mean() < 1e-5
    assert not (tmp_path / "out" / "x.png").exists()


@pytest.mark.parametrize("wide", [True, False])
def test_what_was_interrupted_anywhere_ends_with_the_same_bytes(
    wide: bool, run: Run, geotiff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr("jobs.infer.tiles.MOST_SCORES", 21 * 128 * 300)
    tile = (128, 32)
    segment(run, geotiff, tmp_path / "once", tile)
    out = tmp_path / "often"
    starts = 0
    while segment(run, geotiff, out, tile, asked_to_leave=after(2)).left:
        starts += 1
        assert not (out / "x.tif").exists()
    assert starts > 3
    assert (out / "x.tif").read_bytes() == (tmp_path / "once" / "x.tif").read_bytes()
    assert segment(run, geotiff, out, tile).before == 1
    assert sorted(path.name for path in out.iterdir()) == ["x.tif", "x_overlay.jpg"]


def after(times: int) -> Callable[[], bool]:
    """True from the second time on that it is asked `times` times."""
    count = 0

    def asked() -> bool:
        nonlocal count
        count += 1
        return count > times

    return asked


def test_what_changed_is_done_again(run: Run, picture: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "image.png", tmp_path / "out"
    image.write_bytes(picture.read_bytes())
    assert segment(run, image, out).segmented == 1
    assert segment(run, image, out).before == 1
    assert segment(run, image, out, (TILE, OVERLAP)).segmented == 1
    assert segment(run, image, out, (TILE, OVERLAP)).before == 1
    image.touch()
    assert segment(run, image, out).segmented == 1
    mask = out / "x.png"
    mask.write_bytes(mask.read_bytes()[:-100])
    assert segment(run, image, out).segmented == 1
    assert segment(run, image, out).before == 1


def few_bits(path: Path, values: np.ndarray, bits: int, **more: Any) -> None:
    with rasterio.open(
        path, "w", width=values.shape[1], height=values.shape[0], count=1, dtype=values.dtype, nbits=bits,
        driver="PNG" if path.suffix == ".png" else "GTiff", **more,
    ) as file:  # fmt: skip
        if more.get("photometric") == "palette":
            file.write_colormap(1, {number: (number, 250 - number, 9, 255) for number in range(1 << bits)})
        file.write(values, 1)
    if path.suffix == ".png":
        assert path.read_bytes()[24:26] == bytes([bits, 0])  # depth, grey


def test_bands_bits_and_palettes_reach_the_config_as_they_are(tmp_path: Path) -> None:
    import cv2

    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (90, 120, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    five = random.integers(0, 65536, (90, 120, 5)).astype(np.uint16)
    pytest.importorskip("tifffile").imwrite(tmp_path / "five.tif", five, planarconfig="contig")
    grey = random.integers(0, 256, (90, 120)).astype(np.uint8)
    for bits in (1, 2, 4, 8):
        few_bits(tmp_path / f"grey{bits}.png", grey >> (8 - bits), bits)
        for kind in ("minisblack", "miniswhite", "palette"):
            few_bits(tmp_path / f"{kind}{bits}.tif", grey >> (8 - bits), bits, photometric=kind)
    few_bits(tmp_path / "grey10.tif", grey.astype(np.uint16) * 4, 10)
    few_bits(tmp_path / "transparent.png", grey, 8, nodata=7)
    Image.fromarray(grey).convert("1").save(tmp_path / "fax.tif", compression="group4")
    for name, more in (("alone.png", {"driver": "PNG"}), ("planes.tif", {"interleave": "band"})):
        with rasterio.open(
            tmp_path / name, "w", width=120, height=90, count=3, dtype="uint8", **({"driver": "GTiff"} | more)
        ) as file:
            file.write(deep.astype(np.uint8).transpose(2, 0, 1))
            file.update_tags(NODATA_VALUES="1 2 3")  # of a PNG: the colour that is transparent
    eight = Image.fromarray(random.integers(0, 256, (90, 120, 3)).astype(np.uint8))
    for colours in (2, 4, 16, 64):
        eight.quantize(colours).save(tmp_path / f"palette{colours}.png")
    eight.quantize(64).save(tmp_path / "clear.png", transparency=bytes(range(64)))
    eight.quantize(16).save(tmp_path / "palette.tif")
    for mode in ("1", "L", "LA", "RGBA"):
        eight.convert("L" if mode == "LA" else mode).convert(mode).save(tmp_path / f"mode-{mode}.png")
        eight.convert("L" if mode == "LA" else mode).convert(mode).save(tmp_path / f"mode-{mode}.tif")
    eight.convert("L").save(tmp_path / "grey.jpg")
    eight.save(tmp_path / "photo.tif", compression="jpeg")
    four = random.integers(0, 256, (90, 120, 4)).astype(np.uint8)
    write = pytest.importorskip("tifffile").imwrite
    for alpha in ("assocalpha", "unassalpha"):
        write(tmp_path / f"{alpha}.tif", four, photometric="rgb", extrasamples=[alpha])
    write(tmp_path / "nameless.tif", four[..., :3].copy(), photometric="minisblack", planarconfig="contig")
    from mmcv.transforms import LoadImageFromFile

    compared = set()
    for path in sorted(tmp_path.iterdir()):
        for colour in ("color", "unchanged", "grayscale"):
            for backend in ("tifffile",) if path.stem == "five" else ("cv2", "pillow"):
                load = LoadImageFromFile(color_type=colour, imdecode_backend=backend)
                try:
                    whole = load({"img_path": str(path)})["img"]
                except Exception:  # of few bits, or in planes, no loader reads all that GDAL does
                    continue
                with raster.opened(path) as source:
                    tile = tmp_path / f"tile.{'tif' if path.suffix == '.tif' else 'png'}"
                    raster.write_window(source, (10, 74), (20, 100), tile)
                part = load({"img_path": str(tile)})["img"]
                tile.unlink()
                assert part.dtype == whole.dtype, (path, colour, backend)
                assert np.array_equal(part, whole[10:74, 20:100]), (path, colour, backend)
                compared.add((path.stem, colour))
    for stem in (
        "grey1",
        "grey2",
        "grey4",
        "minisblack1",
        "miniswhite1",
        "palette1",
        "fax",
        "planes",
        "mode-1",
        "assocalpha",
        "unassalpha",
        "nameless",
    ):
        assert (stem, "color") in compared


def test_colours_that_gdal_and_the_reader_take_for_others_are_refused(run: Run, tmp_path: Path) -> None:
    """tifffile gives the four bands of CMYK as they are: the tiles had RGBA."""
    tifffile = pytest.importorskip("tifffile")
    four = np.random.default_rng(0).integers(0, 256, (200, 300, 4)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "cmyk.tif", four, photometric="separated")
    assert not segment(run, tmp_path / "cmyk.tif", tmp_path / "out", (128, 0)).problems
    cfg = config()
    cfg.test_dataloader.dataset.pipeline[0].imdecode_backend = "tifffile"
    other = make_run(tmp_path / "other", cfg)
    (problem,) = segment(other, tmp_path / "cmyk.tif", tmp_path / "masks", (128, 0)).problems
    assert problem.endswith("cmyk.tif is a TIFF in CMYK, which is not read in tiles: save it as RGB")
    # Most orthophotos are stored so, and each reader makes RGB of them.
    cfg.test_dataloader.dataset.pipeline[0].imdecode_backend = "pillow"
    third = make_run(tmp_path / "third", cfg)
    with rasterio.open(
        tmp_path / "ortho.tif", "w", driver="GTiff", width=300, height=200, count=3, dtype="uint8",
        compress="jpeg", photometric="ycbcr",
    ) as file:  # fmt: skip
        file.write(four[..., :3].transpose(2, 0, 1))
    assert not segment(third, tmp_path / "ortho.tif", tmp_path / "more", (128, 0)).problems


@pytest.mark.parametrize(
    "name", ["grey1.png", "grey4.png", "fax.tif", "palette.tif", "deep.tif", "float.tif"]
)
def test_the_overlay_of_a_tiled_image_shows_it(name: str, tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (90, 1))
    grey[:45] = 255 - grey[:45]
    path = tmp_path / name
    if name.startswith("grey"):
        few_bits(path, grey >> (8 - int(name[4])), int(name[4]))
    elif name == "fax.tif":
        Image.fromarray(grey).point(lambda value: 255 * (value > 127)).convert("1").save(
            path, compression="group4"
        )
    elif name == "palette.tif":
        Image.fromarray(grey).quantize(64).save(path)
    else:
        kind = np.uint16 if name == "deep.tif" else np.float32
        with rasterio.open(path, "w", driver="GTiff", width=128, height=90, count=3, dtype=kind) as file:
            file.write(np.repeat(grey[None].astype(kind) * 16, 3, axis=0))
    with raster.opened(path) as source:
        shown = large.preview(source)
    assert (shown.shape, shown.dtype) == ((90, 128, 3), np.uint8)
    assert shown.min() < 20
    assert shown.max() > 235
    assert np.corrcoef(shown[..., 1].ravel(), grey.ravel())[0, 1] > 0.85


def started(run: Run, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "jobs.infer",
        str(run.path),
        "--checkpoint",
        str(run.path / "weights.pth"),
    ]
    return subprocess.Popen(
        [*command, "--out", str(out), *arguments], cwd=run.code, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_goes_on_where_it_stopped(number: signal.Signals, run: Run, tmp_path: Path) -> None:
    inputs, out = tmp_path / "in", tmp_path / "out"
    (inputs / "deeper").mkdir(parents=True)
    small = colours()[:100, :120]
    for index in range(60):
        Image.fromarray(np.roll(small, index, axis=1)).save(inputs / "deeper" / f"{index:03}.png")
    (inputs / "bad.png").write_bytes(b"no image")
    job = started(run, out, "--", str(inputs))
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.png")):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.send_signal(number)
    said, _ = job.communicate(timeout=400)
    assert job.returncode == (85 if number == signal.SIGTERM else -signal.SIGKILL), said
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 0 < len(first) < 60
    if number == signal.SIGTERM:
        assert f"{len(first)} image(s) done; the same command goes on from there" in said
        assert [event["signal"] for event in events.read(run.events) if event["event"] == "signal"]
    (out / "deeper" / ".005.png.123.tmp").write_bytes(b"half")

    job = started(run, out, "--", str(inputs))
    said, problems = job.communicate(timeout=400)
    assert job.returncode == 2, problems
    assert f"60 of 61 images segmented ({len(first)} of them before)" in said
    assert "bad.png cannot be read as an image" in problems
    assert {path: path.stat().st_mtime_ns for path in first} == first
    once = tmp_path / "once"
    started(run, once, "--", str(inputs)).communicate(timeout=400)
    for path in once.rglob("*.png"):
        assert (out / path.relative_to(once)).read_bytes() == path.read_bytes()
    made = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert made == {path.relative_to(once) for path in once.rglob("*") if path.is_file()}


def test_an_unreadable_image_in_tiles_is_named_as_the_user_knows_it(
    run: Run, geotiff: Path, tmp_path: Path
) -> None:
    broken, bands = tmp_path / "broken.tif", tmp_path / "bands.tif"
    broken.write_bytes(geotiff.read_bytes()[: geotiff.stat().st_size // 2])
    with rasterio.open(bands, "w", driver="GTiff", width=300, height=200, count=5, dtype="uint8") as file:
        file.write(np.zeros((5, 200, 300), np.uint8))
    for path in (broken, bands):
        (problem,) = segment(run, path, tmp_path / "out", (128, 0)).problems
        assert problem.startswith(f"{path} cannot be read as an image: ")
        assert large.TILES not in problem
        assert "previous exception" not in problem
        assert not list((tmp_path / "out").iterdir()), "the labels of what was read before"


def test_what_a_killed_process_left_of_its_tiles_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with large.own_folder() as mine:
        left = tmp_path / f"{large.TILES}left"
        left.mkdir()
        (left / "tile.png").write_bytes(b"half")
        with large.own_folder() as other:
            assert sorted(tmp_path.iterdir()) == sorted([mine, other])
    assert not list(tmp_path.iterdir())


def test_a_large_image_without_the_library_is_said_and_the_others_are_done(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = segment(run, picture, tmp_path / "out", (TILE, OVERLAP))
    assert done.problems == [
        f"{picture}: to segment in tiles needs rasterio, not installed here: "
        "env/setup.sh --with geotiff installs it"
    ]


def test_the_tiles_of_a_config() -> None:
    cfg = config()
    assert large.tiling_of(cfg, None, None).size == (large.DEFAULT_TILE, large.DEFAULT_TILE)
    cfg.test_dataloader.dataset.pipeline.insert(1, {"type": "Resize", "scale": (2048, 512)})
    assert large.tiling_of(cfg, None, None).size == (512, 512)
    assert large.tiling_of(cfg, 256, 64).stride == (192, 192)


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ({"type": "Resize", "scale_factor": 1.0}, (32, 48)),  # its own crops
        ({"type": "Resize", "scale_factor": 0.5}, (large.DEFAULT_TILE, large.DEFAULT_TILE)),
        ({"type": "mmseg.ResizeShortestEdge", "scale": 640, "max_size": 2560}, (640, 640)),
    ],
)
def test_crops_of_a_resized_image_are_no_tiles(resize: dict[str, Any], size: tuple[int, int]) -> None:
    """The network saw each as an image to be resized: at another scale than of the whole image."""
    cfg = config()
    cfg.model.test_cfg = {"mode": "slide", "crop_size": (32, 48), "stride": (20, 30)}
    cfg.test_dataloader.dataset.pipeline.insert(1, resize)
    assert large.tiling_of(cfg, None, None).size == size
