"""Images a second that one core makes ready for training, by the recipe's transforms: ours against mmseg's.

The pipeline is the recipe's, from the file to the packed sample, on generated JPEGs with the size of VOC's
(500 × 375, some 100 kB) and masks with one to five objects and 255 borders, about three quarters background
as in VOC. Both pipelines take the same images with the same seeds, in turn. Both are timed by the CPU time of
their one thread, which other work on the machine does not lengthen.

Before that, both must make the same of 1,000 samples, bit for bit: of these images, and of others with odd
sizes, with nothing but void in the mask, and smaller than the crop.

Then the same (ours) from a packed dataset against the files on the local disk: the same samples first.

Then a pipeline of Cityscapes' from a packed dataset, its images and masks decoded once a node
(jobs/mmseg/decoded.py) against each time: the same samples first.

Last, an epoch of them through the recipe's 4 workers, whose batches come through buffers that are used again
(jobs/engine/delivery.py), against torch's own way of bringing them.

examples:
  python benchmarks/pipeline.py
  python benchmarks/pipeline.py --rounds 1 --images 20     a quick look
"""

import copy
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repository

import cv2
import numpy as np
from PIL import Image

from benchmarks import harness
from jobs.mmseg import compat

RECIPE = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--equal", type=int, default=1000, help="samples that must be equal bit for bit")
    arguments = parser.parse_args()
    harness.restart_with(OMP_NUM_THREADS="1")

    compat.prepare()
    import torch
    from mmengine.config import Config

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    steps = Config.fromfile(str(repository.ROOT / RECIPE)).train_dataloader.dataset.pipeline
    stock, fast = pipelines(steps)
    with tempfile.TemporaryDirectory() as folder:
        samples = [make_sample(Path(folder), number) for number in range(arguments.images)]
        compare_samples(stock, fast, samples + odd_samples(Path(folder) / "odd"), arguments.equal)
        shares = {"ours": step_times(fast, samples), "peer": step_times(stock, samples)}
        harness.compare(
            "pipeline",
            "training input pipeline of the recipe, one core",
            lambda: images_a_second(fast, samples),
            lambda: images_a_second(stock, samples),
            against="mmseg's transforms",
            goal=2.5,
            unit="images/s",
            better="higher",
            rounds=arguments.rounds,
            note=f"generated JPEGs of VOC's size; {arguments.equal:,} samples equal bit for bit",
            details={"milliseconds_a_step": shares},
        )
        reading, packed_samples = as_packed(steps, samples, Path(folder))
        for seed, (a, b) in enumerate(zip(samples, packed_samples, strict=True)):
            same_sample(run(fast, a, seed), run(reading, b, seed), seed)
        harness.compare(
            "pipeline_packed",
            "the same from a packed dataset, one core",
            lambda: images_a_second(reading, packed_samples),
            lambda: images_a_second(fast, samples),
            against="from files on a local disk",
            goal=0.99,
            unit="images/s",
            better="higher",
            rounds=3 * arguments.rounds,  # what is to be told apart is a hundredth
            note="same samples; the files are in the page cache on both sides",
        )
        once, each = large(Path(folder))
        harness.compare(
            "pipeline_decoded",
            "input pipeline of Cityscapes (2048 × 1024, PNG), one core, each decoded once a node",
            once,
            each,
            against="decoded each time",
            goal=2,
            unit="images/s",
            better="higher",
            rounds=arguments.rounds,
            note="baton.stage_decoded; same samples",
        )
        delivered, own = epochs(fast, samples)
        harness.compare(
            "pipeline_delivery",
            "an epoch of it through 4 workers, batches brought through buffers that are used again",
            delivered,
            own,
            against="torch's own delivery",
            goal=1,
            unit="images/s",
            better="higher",
            rounds=arguments.rounds,
            note="same samples",
        )
    for side, times in shares.items():
        print(side, "  ".join(f"{name} {value:.2f} ms" for name, value in times.items()))


def pipelines(steps: Any) -> tuple[list[Any], list[Any]]:
    """The transforms of a config's pipeline as mmseg builds them, and the same with ours in place."""
    from mmseg.registry import TRANSFORMS
    from mmseg.utils import register_all_modules

    from jobs.mmseg.transforms import use_fast_transforms

    register_all_modules()
    swapped = copy.deepcopy(steps)
    if use_fast_transforms(swapped) == 0:
        raise RuntimeError("the recipe has none of the transforms that there are fast ones for")
    return [TRANSFORMS.build(step) for step in steps], [TRANSFORMS.build(step) for step in swapped]


def as_packed(
    steps: Any, samples: list[dict[str, Any]], folder: Path, once: bool = False
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Our transforms as they are for a packed dataset, and the samples with their files in one; where they
    are to be decoded `once`, with a copy of it on the node's disk."""
    from mmengine.config import ConfigDict
    from mmseg.registry import TRANSFORMS

    from jobs.mmseg.decoded import decode_once
    from jobs.mmseg.packed import read_packed
    from jobs.mmseg.transforms import use_fast_transforms
    from jobs.prepare.packed.writer import Writer
    from jobs.run import packed, staged
    from jobs.supervise import copier

    place = folder / "packed"
    place.mkdir(parents=True)
    moved = []
    with Writer(place) as writer:
        placed = []
        for sample in samples:
            files = {key: Path(sample[key]) for key in ("img_path", "seg_map_path")}
            placed += [writer.put(path.name, path.read_bytes()) for path in files.values()]
            moved.append(sample | {key: str(place / path.name) for key, path in files.items()})
        writer.finish(placed)
    loader = ConfigDict(dataset={"data_root": str(place), "pipeline": copy.deepcopy(steps)})
    use_fast_transforms(loader.dataset)
    if once:
        os.environ[staged.VARIABLE] = str(folder)
        copier.copy(place / packed.NAME, folder)
    if read_packed(loader.dataset) == 0 or (once and decode_once([loader], cores=1) == 0):
        raise RuntimeError("no transform of the recipe takes a file backend")
    return [TRANSFORMS.build(step) for step in loader.dataset.pipeline], moved


def large(folder: Path, number: int = 10) -> tuple[Callable[[], float], Callable[[], float]]:
    """What measures the images a second of a pipeline as the zoo's configs for Cityscapes have it, each image
    decoded (once, each time)."""
    steps = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": (2048, 1024), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (512, 1024), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    (folder / "large").mkdir()
    samples = [make_sample(folder / "large", index, (1024, 2048), large=True) for index in range(number)]
    each, of_each = as_packed(steps, samples, folder / "each")
    once, of_once = as_packed(steps, samples, folder / "once", once=True)
    for seed in range(5 * number):
        same_sample(run(once, of_once[seed % number], seed), run(each, of_each[seed % number], seed), seed)
    measured = functools.partial(images_a_second, once, of_once)
    return measured, functools.partial(images_a_second, each, of_each)


def epochs(
    pipeline: list[Any], samples: list[dict[str, Any]]
) -> tuple[Callable[[], float], Callable[[], float]]:
    """What measures the images a second of an epoch, (delivered as by us, as by torch)."""
    from mmengine.dataset import pseudo_collate
    from torch.utils.data import DataLoader, Dataset

    from jobs.engine import delivery

    images = 400

    class Samples(Dataset[Any]):
        def __len__(self) -> int:
            return images

        def __getitem__(self, number: int) -> Any:
            return run(pipeline, samples[number % len(samples)], number)

    def images_a_second(ours: bool) -> float:
        loader = DataLoader(Samples(), 4, num_workers=4, collate_fn=pseudo_collate)
        if ours:
            delivery.through_buffers(loader)
        begin = time.perf_counter()
        for _ in loader:
            pass
        return images / (time.perf_counter() - begin)

    return functools.partial(images_a_second, True), functools.partial(images_a_second, False)


def odd_samples(folder: Path) -> list[dict[str, Any]]:
    """Samples of all sorts of sizes, up to VOC's, every fifth with a mask that is void all over."""
    folder.mkdir()
    random = np.random.RandomState(0)
    samples = []
    for index in range(100):
        small = (40, 200) if index % 4 == 0 else (200, 501)
        height, width = (int(side) for side in random.randint(*small, 2))
        samples.append(make_sample(folder, index, (height, width), void=index % 5 == 0))
    return samples


def make_sample(
    folder: Path, number: int, size: tuple[int, int] | None = None, void: bool = False, large: bool = False
) -> dict[str, Any]:
    """Writes a picture and its mask; returns what a dataset hands to the pipeline. `size`: height and width,
    by default VOC's usual ones. `void`: the whole mask is 255. `large`: a PNG of some 3 MB."""
    random = np.random.RandomState(number)
    height, width = size or ((375, 500) if number % 4 else (500, 375))
    coarse = random.randint(0, 256, (24, 32, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    strong = 8 if large else 50
    grain = random.randint(-strong, strong + 1, (height // 2, width // 2, 3)).astype(np.float32)
    image = np.clip(image + cv2.resize(grain, (width, height)), 0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.randint(1, 6)):
        centre = (int(random.randint(width)), int(random.randint(height)))
        axes = (int(random.randint(30, 150)), int(random.randint(30, 120)))
        cv2.ellipse(mask, centre, axes, int(random.randint(180)), 0, 360, int(random.randint(1, 21)), -1)
    mask[cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0] = 255
    if void:
        mask[:] = 255
    paths = folder / f"{number}{'-image.png' if large else '.jpg'}", folder / f"{number}.png"
    cv2.imwrite(str(paths[0]), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    colours = Image.fromarray(mask)
    colours.putpalette(list(range(256)) * 3)
    colours.save(paths[1])
    return {
        "img_path": str(paths[0]),
        "seg_map_path": str(paths[1]),
        "label_map": None,
        "reduce_zero_label": False,
    }


def run(pipeline: list[Callable[[Any], Any]], sample: dict[str, Any], seed: int) -> Any:
    np.random.seed(seed)
    results: Any = {**sample, "seg_fields": []}
    for transform in pipeline:
        results = transform(results)
    return results


def images_a_second(pipeline: list[Any], samples: list[dict[str, Any]]) -> float:
    begin = time.process_time()
    for seed, sample in enumerate(samples):
        run(pipeline, sample, seed)
    return len(samples) / (time.process_time() - begin)


def step_times(pipeline: list[Any], samples: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds an image that each transform takes."""
    spent = [0.0] * len(pipeline)
    for seed, sample in enumerate(samples):
        np.random.seed(seed)
        results: Any = {**sample, "seg_fields": []}
        for number, transform in enumerate(pipeline):
            begin = time.process_time()
            results = transform(results)
            spent[number] += time.process_time() - begin
    names = [type(transform).__name__ for transform in pipeline]
    return {name: 1000 * time_ / len(samples) for name, time_ in zip(names, spent, strict=True)}


def compare_samples(stock: list[Any], fast: list[Any], samples: list[dict[str, Any]], number: int) -> None:
    """Raises AssertionError unless both make the same of `number` samples, taken in turn, each with a seed of
    its own."""
    for seed in range(number):
        sample = samples[seed % len(samples)]
        a, b = run(stock, sample, seed), run(fast, sample, seed)
        same_sample(a, b, seed)
        if a["data_samples"].metainfo != b["data_samples"].metainfo:
            raise AssertionError(f"the other pipeline makes other metainfo of sample {seed}")


def same_sample(a: Any, b: Any, seed: int) -> None:
    """Raises AssertionError unless two samples are equal bit for bit; their paths may differ."""
    import torch

    same = torch.equal(a["inputs"], b["inputs"])
    same &= torch.equal(a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data)
    if not same:
        raise AssertionError(f"the other pipeline makes something else of sample {seed}")


if __name__ == "__main__":
    main()
