"""Images of a packed dataset that are decoded once a node."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from jobs.catalog import manifest
from jobs.catalog.manifest import Manifest
from jobs.mmseg import compat
from jobs.prepare.packed import convert
from jobs.run import file_systems, staged
from jobs.run import packed as containers
from jobs.run.deflate import content_digest
from jobs.supervise import copier, staging
from tests.stages import end_of, start_ranks
from tests.support import tiny
from tests.unit.test_config import RECIPE, ROOT, session

compat.prepare()

import mmcv  # noqa: E402
import torch  # noqa: E402
from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmseg.datasets.transforms import LoadAnnotations  # noqa: E402
from mmseg.registry import DATASETS, TRANSFORMS  # noqa: E402

from jobs.mmseg import config, decoded, packed  # noqa: E402

FOLDER = "VOCdevkit"
ROOT_OF_VOC = f"{FOLDER}/VOC2012"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's own disk, however full; nothing is open from another test."""
    if file_systems.kind(tmp_path) in file_systems.IN_MEMORY:
        pytest.skip("there is no disk below the folder of temporary files")
    place = tmp_path / "local"
    place.mkdir()
    monkeypatch.setenv(staged.VARIABLE, str(place))
    monkeypatch.setattr(decoded, "_kept", {})
    monkeypatch.setattr(decoded, "KEPT_FREE", 0.0)
    monkeypatch.setattr(staging, "KEPT_FREE", 0.0)
    return place


@pytest.fixture
def both(voc_small: Path, tmp_path: Path, stage: Path) -> tuple[Path, Path]:
    """The same data root as a tree and packed, with a copy on the node's disk."""
    for name in ("tree", "packed"):
        shutil.copytree(voc_small / FOLDER, tmp_path / name / FOLDER)
    convert.pack(tmp_path / "packed", FOLDER)
    copier.copy(tmp_path / "packed" / FOLDER / containers.NAME, stage)
    return tmp_path / "tree", tmp_path / "packed"


def dataset(data: Path) -> Any:
    loader = copy.deepcopy(Config.fromfile(ROOT / RECIPE).train_dataloader)
    loader.dataset.data_root = str(data / ROOT_OF_VOC)
    if packed.read_packed(loader.dataset):
        decoded.decode_once([loader], cores=2)
    return DATASETS.build(loader.dataset)


def samples(data: Any) -> list[Any]:
    made = []
    for index in range(len(data)):
        np.random.seed(index)
        made.append(data[index])
    return made


def assert_same(some: list[Any], others: list[Any]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        a, b = (each["data_samples"] for each in (one, other))
        assert torch.equal(a.gt_sem_seg.data, b.gt_sem_seg.data)
        assert {key: value for key, value in a.metainfo.items() if "path" not in key} == {
            key: value for key, value in b.metainfo.items() if "path" not in key
        }


def kept(stage: Path) -> Path:
    (path,) = staged.folder(stage).glob(f"*{staged.PIXELS}")
    return path


def slots(folder: Path) -> int:
    """Bytes of the slots of what is packed there."""
    return len(containers.Container(folder / containers.NAME).files) * decoded.SLOT.size


def no_decoder(*_: Any, **__: Any) -> Any:
    raise AssertionError("an image was decoded")


def test_samples_are_the_same_and_decoded_once(
    both: tuple[Path, Path], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever start: another one has the pixels, too."""
    expected = samples(dataset(both[0]))
    one = dataset(both[1])
    assert type(one.pipeline.transforms[0]) is decoded.LoadImageFromFileOnce
    assert_same(samples(one), expected)
    size = kept(stage).stat().st_size
    pixels = sum(int(np.prod(sample["data_samples"].ori_shape)) for sample in expected)
    assert size == slots(both[1] / FOLDER) + (3 + 1) * pixels
    monkeypatch.setattr(cv2, "imdecode", no_decoder)
    monkeypatch.setattr(mmcv, "imfrombytes", no_decoder)
    assert_same(samples(one), expected)
    decoded._kept.clear()
    assert_same(samples(dataset(both[1])), expected)
    assert kept(stage).stat().st_size == size


def test_workers_fill_and_read_it_at_once(
    both: tuple[Path, Path], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several loaders, forked anew for every epoch: as of several ranks that train on one node."""
    tree, data = (only_images(dataset(root)) for root in both)
    expected = [tree[index] for index in range(12)]
    for _ in range(2):
        loaders = [
            iter(
                torch.utils.data.DataLoader(
                    torch.utils.data.Subset(data, range(12)),
                    batch_size=None,
                    num_workers=3,
                    multiprocessing_context="fork",
                )
            )
            for _ in range(3)
        ]
        for loader in loaders:
            for results, other in zip(loader, expected, strict=True):
                assert np.array_equal(results["img"], other["img"])
    assert kept(stage).stat().st_size > slots(both[1] / FOLDER)
    for index in range(12):  # one that was never written, for another one was at each time
        data[index]
    monkeypatch.setattr(cv2, "imdecode", no_decoder)
    for index, other in enumerate(expected):
        assert np.array_equal(data[index]["img"], other["img"])


def only_images(data: Any) -> Any:
    data.pipeline.transforms = data.pipeline.transforms[:1]
    return data


def images_of_many_kinds(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    r = np.random.default_rng(0)
    colour = Image.fromarray(r.integers(0, 256, (31, 57, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    colour.save(folder / "turned.jpg", exif=turned)
    colour.save(folder / "one.bmp")
    colour.convert("L").save(folder / "grey.jpg")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.quantize(7).save(folder / "palette.png")
    Image.fromarray(r.integers(0, 65536, (9, 1), np.uint16)).save(folder / "deep.png")
    return sorted(path.name for path in folder.iterdir())


def packed_beside_tree(folder: Path, make: Callable[[Path], list[str]], stage: Path) -> list[str]:
    """The names of files that are made below FOLDER/tree/mine, and packed, with a copy, below FOLDER/mine."""
    top = folder / "mine"
    names = make(top / "images")
    entries = []
    for name in names:
        content = (top / "images" / name).read_bytes()
        entries.append(manifest.Entry(f"images/{name}", len(content), content_digest(content)))
    table = manifest.files_text(entries)
    (top / manifest.FILES).write_bytes(table)
    made = Manifest("mine", "", 1, 1, manifest.table_digest(table))
    (top / manifest.MANIFEST).write_bytes(manifest.to_json(made))
    shutil.copytree(top, folder / "tree/mine")
    convert.pack(folder, "mine")
    copier.copy(top / containers.NAME, stage)
    return names


def once_for(folder: Path, step: dict[str, Any]) -> Any:
    """The transform that stands in for one of a dataset in FOLDER/mine."""
    dataset = {"type": "BaseSegDataset", "data_root": str(folder / "mine"), "pipeline": [step]}
    loader = ConfigDict(dataset=dataset)
    packed.read_packed(loader.dataset)
    assert decoded.decode_once([loader], cores=2) == 1
    return TRANSFORMS.build(loader.dataset.pipeline[0])


@pytest.mark.parametrize(
    ("options", "is_kept"),
    [({}, True), ({"to_float32": True}, False), ({"color_type": "grayscale"}, False)],
)
def test_every_kind_of_image_is_loaded_as_before(
    tmp_path: Path, stage: Path, options: dict[str, Any], is_kept: bool
) -> None:
    names = packed_beside_tree(tmp_path, images_of_many_kinds, stage)
    once, stock = once_for(tmp_path, {"type": "LoadImageFromFile", **options}), LoadImageFromFile(**options)
    for _ in range(3):
        for name in names:
            ours = once({"img_path": str(tmp_path / "mine/images" / name)})
            theirs = stock({"img_path": str(tmp_path / "tree/mine/images" / name)})
            image, other = ours.pop("img"), theirs.pop("img")
            assert image.dtype == other.dtype
            assert np.array_equal(image, other), name
            assert ours.pop("img_path") != theirs.pop("img_path")
            assert ours == theirs
    assert (kept(stage).stat().st_size > slots(tmp_path / "mine")) == is_kept


def masks_of_many_kinds(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    labels = np.random.default_rng(0).integers(0, 5, (31, 57), np.uint8)
    mask = Image.fromarray(labels)
    mask.save(folder / "grey.png")
    palette = Image.fromarray(labels, "P")
    palette.putpalette(list(range(30)))
    palette.save(folder / "palette.png")
    mask.save(folder / "lossless.tif")
    mask.convert("RGB").save(folder / "colour.png")
    Image.fromarray(labels.astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(labels[:, :1]).save(folder / "narrow.png")
    Image.fromarray(labels.astype(np.uint16) + 300).save(folder / "wrong.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("described", "is_kept"),
    [({}, True), ({"reduce_zero_label": True}, False), ({"label_map": {1: 7, 2: 9}}, False)],
)
def test_every_kind_of_mask_is_loaded_as_before(
    tmp_path: Path, stage: Path, described: dict[str, Any], is_kept: bool, fast: bool
) -> None:
    names = packed_beside_tree(tmp_path, masks_of_many_kinds, stage)
    once = once_for(tmp_path, {"type": f"LoadAnnotations{'Fast' if fast else ''}"})
    stock = LoadAnnotations()

    def load(by: Any, path: Path) -> Any:
        asked = {"reduce_zero_label": False, "label_map": None, **described}
        try:
            found = by({"seg_map_path": str(path), "seg_fields": [], **asked})
        except ValueError as error:
            return str(error)
        mask = found.pop("gt_seg_map")
        assert mask.dtype == np.uint8
        return mask.shape, mask.tolist(), {key: found[key] for key in ("seg_fields", *asked)}

    for _ in range(3):
        for name in names:
            expected = load(stock, tmp_path / "tree/mine/images" / name)
            assert load(once, tmp_path / "mine/images" / name) == expected, name
            assert isinstance(expected, str) == (name == "wrong.png")
    assert (kept(stage).stat().st_size > slots(tmp_path / "mine")) == is_kept


@pytest.mark.parametrize("where", ["pixels", "slot", "cut"])
def test_what_was_spoilt_is_found_and_decoded(
    both: tuple[Path, Path], stage: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = samples(dataset(both[0]))
    one = dataset(both[1])
    samples(one)
    path = kept(stage)
    content = bytearray(path.read_bytes())
    pixels = slots(both[1] / FOLDER)
    if where == "pixels":
        content[pixels + 100] ^= 1
    elif where == "slot":
        for begin in range(0, pixels, decoded.SLOT.size):
            content[begin + 8] ^= 1
    else:
        del content[-1000:]
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(len(content))
    capsys.readouterr()
    assert_same(samples(one), expected)
    said = capsys.readouterr().out
    if where == "slot":  # as one that is just being written: decoded again, and kept again
        assert said == ""
        assert path.stat().st_size > len(content)
    else:
        assert said.count("is the node's disk bad?; each image is decoded instead") == 1
        assert not path.exists()
    assert_same(samples(one), expected)


def test_a_disk_that_fills_up_is_said_once_and_the_rest_is_decoded(
    both: tuple[Path, Path], stage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, and in its workers: the limit is for all files that it writes."""
    expected = samples(dataset(both[0]))
    capfd.readouterr()
    child = os.fork()
    if not child:
        code = 1
        try:
            one = dataset(both[1])
            size = kept(stage).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300_000, size + 300_000))
            for _ in range(2):
                assert_same(samples(one), expected)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    said = capfd.readouterr().out
    assert said.count("each image is decoded instead") == 1, said
    decoded._kept.clear()
    assert_same(samples(dataset(both[1])), expected)


def test_a_fifth_of_the_disk_is_left_to_others(
    both: tuple[Path, Path], stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = os.statvfs(stage)
    monkeypatch.setattr(decoded, "KEPT_FREE", there.f_bavail / there.f_blocks + 0.01)
    expected = samples(dataset(both[0]))
    capsys.readouterr()
    one = dataset(both[1])
    for _ in range(2):
        assert_same(samples(one), expected)
    assert capsys.readouterr().out.count("there is no more room; each image is decoded instead") == 1
    assert kept(stage).stat().st_size == slots(both[1] / FOLDER)


def test_it_goes_where_room_is_needed_but_not_while_it_is_read(both: tuple[Path, Path], stage: Path) -> None:
    samples(dataset(both[1]))
    path = kept(stage)
    inside = os.open(path.parent, os.O_RDONLY)
    names = [name for _, _, name in staging._unused(inside)]
    assert path.name not in names
    assert not staging.evict(inside, path.name)
    decoded._kept.clear()
    found = {name: size for _, size, name in staging._unused(inside)}
    assert found[path.name] == path.stat().st_size
    assert staging.evict(inside, path.name)
    os.close(inside)
    assert not path.exists()


@pytest.mark.parametrize("how", ["none", "missing", "link", "memory", "network"])
def test_where_none_can_be_kept_it_is_said_and_harms_nothing(
    both: tuple[Path, Path],
    stage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    words = "has no " if how == "missing" else "there is no `stage`"
    if how == "link":
        container = containers.Container(both[1] / FOLDER / containers.NAME)
        (tmp_path / "theirs").write_bytes(b"theirs")
        (staged.folder(stage) / decoded.name(container)).symlink_to(tmp_path / "theirs")
        words = "Too many levels of symbolic links"
    elif how == "memory":
        if not os.path.isdir("/dev/shm") or file_systems.kind(Path("/dev/shm")) not in file_systems.IN_MEMORY:
            pytest.skip("no /dev/shm")
        monkeypatch.setenv(staged.VARIABLE, "/dev/shm")
        words = "is in memory (tmpfs)"
    elif how == "network":
        monkeypatch.setattr(file_systems, "kind", lambda _: "nfs4")
        words = "is not a local disk of the node (nfs4)"
    else:
        monkeypatch.setenv(staged.VARIABLE, "" if how == "none" else str(tmp_path / "no/where"))
    one = dataset(both[1])
    said = capsys.readouterr().out
    assert words in said
    assert "each image is decoded every time" in said
    assert "loader workers" not in said
    assert_same(samples(one), samples(dataset(both[0])))
    if how == "link":
        assert (tmp_path / "theirs").read_bytes() == b"theirs"
    else:
        assert not list(staged.folder(stage).glob(f"*{staged.PIXELS}"))


def test_the_folder_is_made_where_this_start_is_the_first_there(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, stage: Path
) -> None:
    monkeypatch.setenv(staged.VARIABLE, str(stage / "mine"))
    assert_same(samples(dataset(both[1])), samples(dataset(both[0])))
    assert kept(stage / "mine").stat().st_size == slots(both[1] / FOLDER)  # there is no copy yet


def test_nobody_waits_for_a_writer_that_was_stopped(both: tuple[Path, Path], stage: Path) -> None:
    one = dataset(both[1])
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX, 1);"
        " print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, kept(stage)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdin
        other.stdout.readline()
        expected = samples(dataset(both[0]))
        assert_same(samples(one), expected)
        assert kept(stage).stat().st_size == slots(both[1] / FOLDER)
        other.stdin.close()
        other.wait()
    assert_same(samples(one), expected)
    assert kept(stage).stat().st_size > slots(both[1] / FOLDER)


def test_a_file_that_is_image_and_mask_is_kept_as_what_it_was_first(tmp_path: Path, stage: Path) -> None:
    names = packed_beside_tree(tmp_path, masks_of_many_kinds, stage)
    image = once_for(tmp_path, {"type": "LoadImageFromFile"})
    mask = once_for(tmp_path, {"type": "LoadAnnotations"})
    path, other = (str(tmp_path / place / "images" / names[0]) for place in ("mine", "tree/mine"))
    sizes = []
    for _ in range(3):
        pixels = image({"img_path": path})["img"]
        asked = {"seg_map_path": path, "seg_fields": [], "reduce_zero_label": False}
        labels = mask(asked)["gt_seg_map"]
        assert np.array_equal(pixels, np.asarray(cv2.imread(other)))
        assert np.array_equal(labels, np.asarray(Image.open(other)))
        sizes.append(kept(stage).stat().st_size)
    assert sizes == [slots(tmp_path / "mine") + pixels.nbytes] * 3


def test_one_that_finds_damage_removes_no_file_that_was_begun_since(
    both: tuple[Path, Path], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = dataset(both[1])
    expected = samples(one)
    path = kept(stage)
    with path.open("r+b") as file:
        file.truncate(slots(both[1] / FOLDER))
    path.rename(path.with_suffix(".old"))
    monkeypatch.setattr(decoded, "_kept", {})
    samples(dataset(both[1]))
    monkeypatch.undo()
    assert_same(samples(one), expected)
    assert kept(stage) == path


def test_what_means_something_else_stays(both: tuple[Path, Path], stage: Path) -> None:
    foreign = {"type": "LoadImageFromFile", "_scope_": "mmengine"}
    loader = ConfigDict(
        dataset={
            "type": "BaseSegDataset",
            "data_root": str(both[1] / ROOT_OF_VOC),
            "metainfo": {"info": {"type": ["a", "b"]}},
            "pipeline": [foreign, {"type": "LoadImageFromFile"}],
        }
    )
    packed.read_packed(loader.dataset)
    assert decoded.decode_once([loader], cores=1) == 1
    assert [step.type for step in loader.dataset.pipeline] == ["LoadImageFromFile", "LoadImageFromFileOnce"]
    assert kept(stage).exists()


def test_a_config_asks_for_it(
    both: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    for data, asked in ((both[1], False), (both[1], True), (both[0], True)):
        here = session(tmp_path / "run")
        (tmp_path / "data").unlink(missing_ok=True)
        (tmp_path / "data").symlink_to(data)
        resolved = config.resolve(here)
        resolved.baton = {"stage_decoded": asked}
        resolved.val_dataloader.num_workers = resolved.train_dataloader.num_workers
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})  # one CPU
        capsys.readouterr()
        prepared = config.prepare(resolved, here, 8)
        swapped = asked and data == both[1]
        for loader in (prepared.train_dataloader, prepared.val_dataloader):
            first = loader.dataset.dataset.pipeline[0]
            assert first["type"] == ("LoadImageFromFileOnce" if swapped else "LoadImageFromFile")
            assert loader.num_workers == (1 if swapped else resolved.train_dataloader.num_workers)
        said = capsys.readouterr().out
        assert ("nothing is loaded from a packed dataset here" in said) == (asked and not swapped)


@pytest.mark.slow
def test_a_training_with_it_ends_as_one_without(
    both: tuple[Path, Path], voc_small: Path, stage: Path, tmp_path: Path
) -> None:
    """Two ranks, each with two workers; every image is read again in each of its epochs."""
    loaders = {"train_dataloader__batch_size": 2, "train_dataloader__num_workers": 2}
    whole = tiny.make_run(tmp_path / "whole", voc_small, **loaders)
    assert tiny.start(whole, 2) == [0, 0]
    fits = {"custom_imports": {"imports": ["tests.support.full_disk"], "allow_failed_imports": False}}
    run = tiny.make_run(tmp_path / "run", both[1], baton__stage_decoded=True, **fits, **loaders)
    request = run.request()
    request.cluster.stage = str(stage)
    run.write_request(request)
    assert end_of(start_ranks(run, 2, real=True, OMP_NUM_THREADS="1"), 120) == [0, 0]
    assert tiny.differences(tiny.final_state(run), tiny.final_state(whole)) == []
    assert kept(stage).stat().st_size > slots(both[1] / FOLDER)
