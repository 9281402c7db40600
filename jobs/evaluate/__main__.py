"""`python -m jobs.evaluate RUN`: mIoU, mAcc, aAcc, the per-class table and pictures of a run's checkpoint.

One process a rank; each takes every N-th image. Results go to RUN/eval/CHECKPOINT-DIGEST/. A checkpoint that
has been evaluated is not evaluated again, unless asked to: a job that is requeued after its end does nothing.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.catalog import supported
from jobs.catalog.supported import name_of
from jobs.engine import checkpoints
from jobs.evaluate import per_image, ranks, report, results
from jobs.mmseg import compat, data, figures, images
from jobs.mmseg import model as models
from jobs.prepare import progress, weights
from jobs.run import events, failure, notify, output, story
from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.run.task import read as read_task
from jobs.supervise import tracking

BASE = ("mIoU", "mAcc", "aAcc")
"""Always told."""


def main() -> int:
    arguments = parse()
    run = Run(arguments.run.resolve())
    with failure.told(run, "evaluate", read_task().rank), notify.failures_of(run, "evaluate"):
        return evaluate(run, arguments)


def evaluate(run: Run, arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    if "://" in arguments.checkpoint:
        arguments.checkpoint = str(weights.fetch(arguments.checkpoint, run.code / "data"))
    checkpoint = models.chosen_checkpoint(run, arguments.checkpoint)
    digest = checkpoints.digest(checkpoint)
    where = arguments.out.resolve() if arguments.out else results.folder(run, checkpoint, digest)
    if arguments.out:
        output.claim(where, "--out")
    done = None if arguments.again else results.finished(where)

    # Only now what takes seconds to import.
    compat.prepare()
    from jobs.mmseg import labels

    us = ranks.join(run)
    if done is not None:
        # Every rank has seen the same folder, so all of them end here.
        if us.rank == 0:
            print(f"{checkpoint.name} has been evaluated already (--again does it once more): {where}")
            results.show(done)
            say_once(run, us.job, checkpoint.name, done, where)
        ranks.gather(us, b"")
        return 0
    cfg = models.config(run)
    model = models.load(cfg, checkpoint, us.device)
    labels.use_fast_labels(model)
    dataset = test_dataset(cfg)
    names, ignore = model.dataset_meta["classes"], ignored(cfg)
    pictured = pictures_of(dataset, arguments.pictures)
    turned = models.turns(cfg)
    mine = list(range(us.rank, len(dataset), us.size))

    matrix = np.zeros((len(names), len(names)), np.int64)
    each = per_image.PerImage()
    spent = {"loading": 0.0, "model": 0.0, "counting": 0.0, "pictures": 0.0}
    with progress.task(f"evaluating {checkpoint.name}", len(mine)) as advance:
        for index, sample in zip(mine, loaded(cfg, dataset, mine, spent), strict=True):
            prediction = timed(spent, "model", lambda sample=sample: predict(model, sample))
            truth = truth_of(sample)
            one = timed(
                spent,
                "counting",
                lambda sample=sample, truth=truth, p=prediction: counted(
                    sample, truth, p, len(names), ignore
                ),
            )
            matrix += one
            each.add(one)
            if index in pictured:
                timed(
                    spent,
                    "pictures",
                    lambda i=index, s=sample, t=truth, p=prediction: draw(
                        where, pictured[i], s, t, p, model.dataset_meta["palette"], turned
                    ),
                )
            advance(1)

    parts = ranks.gather(us, matrix.tobytes() + each.tobytes())
    if parts is None:
        return 0
    size = matrix.nbytes
    matrix = np.sum([np.frombuffer(part[:size], np.int64).reshape(matrix.shape) for part in parts], axis=0)
    seconds = round(time.monotonic() - began, 3)
    asked, others, beta = wanted(cfg)
    found = figures.figures(matrix, names, beta) | {
        "asked": asked,
        "not_computed": others,
        "checkpoint": checkpoint.name,
        "digest": digest,
        "images": len(dataset),
        "processes": us.size,
        "seconds": seconds,
        "seconds_rank_0": {key: round(value, 3) for key, value in spent.items()},
    }
    counts = per_image.joined([part[size:] for part in parts], len(dataset), len(names))
    per_image.write(where, [str(path_of(dataset, index)) for index in range(len(dataset))], counts)
    results.write(where, found, matrix)
    results.show(found)
    print(f"figures and pictures: {where}", flush=True)
    events.append(
        run.events, "evaluated", stage="evaluate", job=us.job, checkpoint=checkpoint.name, seconds=seconds,
        metrics={key: found[key] for key in asked}, path=str(where),
    )  # fmt: skip
    report.write(run)
    tracking.once(run)
    notify.about(run, "evaluated", f"mIoU {results.percent(found['mIoU'])} of {checkpoint.name}")
    return 0


def say_once(run: Run, job: str | None, checkpoint: str, done: dict[str, Any], where: Path) -> None:
    """A job that was killed between its result and the event of it has left that to the next."""
    if not story.read(run.events).evaluated(str(where)):
        events.append(
            run.events, "evaluated", stage="evaluate", job=job, checkpoint=checkpoint,
            seconds=done.get("seconds"), metrics={key: done[key] for key in done.get("asked", BASE)},
            path=str(where),
        )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument(
        "--checkpoint", default="best", help="best by mIoU (default), last, a path, or an address"
    )
    parser.add_argument(
        "--pictures",
        nargs="+",
        default=["20"],
        metavar="WHICH",
        help="all, a number of them spread over the dataset (default 20), or image ids",
    )
    parser.add_argument("--out", type=Path, help="result folder (default RUN/eval/CHECKPOINT-DIGEST)")
    parser.add_argument("--again", action="store_true", help="also if there is a result for this checkpoint")
    return parser.parse_args()


def test_dataset(cfg: Any) -> Any:
    """The config's test dataset (for VOC: its val list). Raises UserError if its files are missing."""
    from jobs.mmseg import packed
    from jobs.mmseg.sampling import SeededDataset
    from jobs.mmseg.transforms import use_fast_transforms

    description = copy.deepcopy(dict(cfg.test_dataloader.dataset))
    use_fast_transforms(description)
    packed.read_packed(description)
    try:
        return SeededDataset(description)
    except (FileNotFoundError, AssertionError) as error:
        # mmseg asserts that the lists and folders of some data sets are there.
        where = f"{description.get('data_root', '')} {description.get('ann_file', '')}".strip()
        raise UserError(f"the dataset to evaluate on is not there: {error or where}") from None


def evaluators(cfg: Any) -> list[Any]:
    given = cfg.test_evaluator
    return [one or {} for one in given] if isinstance(given, (list, tuple)) else [given or {}]


def ignored(cfg: Any) -> int:
    """The label that does not count; 255 unless the config's evaluator says otherwise."""
    return int((evaluators(cfg) or [{}])[0].get("ignore_index", 255))


def wanted(cfg: Any) -> tuple[list[str], list[str], float]:
    """What the config's evaluators ask for: the figures that are computed here, by name; the metrics that are
    not; and the weight of an F-score."""
    asked, others, beta = list(BASE), [], 1.0
    for one in evaluators(cfg):
        if (kind := name_of(one.get("type", "IoUMetric"))) not in supported.IOU_METRICS:
            others.append(kind)
            continue
        beta = float(one.get("beta", beta))
        asked += supported.figures_of(one)
    return list(dict.fromkeys(asked)), others, beta


def pictures_of(dataset: Any, asked: list[str]) -> dict[int, str]:
    """Index -> picture's name of the images to draw: an image's stem, with its folders where that is not
    enough. Raises UserError for an id that the dataset does not have."""
    count = len(dataset)
    if len(asked) == 1 and asked[0].isdecimal() and int(asked[0]) <= count:
        chosen = sorted({round(position) for position in np.linspace(0, count - 1, int(asked[0]))})
    elif asked == ["all"] or (len(asked) == 1 and asked[0].isdecimal() and len(asked[0]) < 5):
        chosen = list(range(count))
    else:
        ids: dict[str, list[int]] = {}
        for index in range(count):
            ids.setdefault(path_of(dataset, index).stem, []).append(index)
        if unknown := [name for name in asked if name not in ids]:
            raise UserError(f"--pictures: the dataset has no image {', '.join(unknown)}")
        chosen = sorted({index for name in asked for index in ids[name]})
    paths = [path_of(dataset, index) for index in chosen]
    stems = Counter(path.stem for path in paths)
    return {
        index: path.stem if stems[path.stem] == 1 else "_".join(name.parts)
        for index, path, name in zip(chosen, paths, images.names(paths), strict=True)
    }


def path_of(dataset: Any, index: int) -> Path:
    return Path(dataset.get_data_info(index)["img_path"])


def loaded(cfg: Any, dataset: Any, indices: list[int], spent: dict[str, float]) -> Iterator[Any]:
    """The samples, in order, made ready by the config's number of workers."""
    from torch.utils.data import DataLoader, Subset

    workers = int(cfg.test_dataloader.get("num_workers", 0))
    workers = min(workers, len(os.sched_getaffinity(0)))
    loader = iter(
        DataLoader(Subset(dataset, indices), batch_size=None, num_workers=workers, collate_fn=as_it_is)
    )
    for _ in indices:
        yield timed(spent, "loading", lambda: next(loader))


def as_it_is(sample: Any) -> Any:
    return sample


def predict(model: Any, sample: Any) -> np.ndarray:
    """Class numbers (H × W) in the size of the original image."""
    import torch

    with torch.no_grad():
        (result,) = model.test_step({"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]})
    # Of a model with one output (`use_sigmoid`) mmseg gives them as floats.
    return np.asarray(result.pred_sem_seg.data.squeeze(0).cpu().numpy()).astype(np.int64, copy=False)


def truth_of(sample: Any) -> np.ndarray:
    """Class numbers (H × W) of the annotation. Raises UserError for an image without one."""
    found = sample["data_samples"]
    if "gt_sem_seg" not in found:
        raise UserError(
            f"{found.img_path} has no annotation in the test dataset (LoadAnnotations in its pipeline?): "
            "infer.py segments images without"
        )
    return np.asarray(found.gt_sem_seg.data.squeeze(0).numpy())


def counted(sample: Any, truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """figures.confusion of an image. Raises UserError, naming it, for a label that is no class, and for an
    annotation of another size."""
    meta = sample["data_samples"].metainfo
    if truth.shape != prediction.shape:
        raise UserError(data.unequal(meta, prediction.shape, truth.shape))
    try:
        return figures.confusion(truth, prediction, classes, ignore)
    except ValueError as error:
        file = meta.get("seg_map_path") or meta.get("img_path")
        raise UserError(f"{file}: {error} (and {ignore} is ignored)") from None


def draw(
    where: Path,
    name: str,
    sample: Any,
    truth: np.ndarray,
    prediction: np.ndarray,
    palette: Any,
    turned: bool,
) -> None:
    """A picture of the image; one that cannot be drawn is said and left out, for the figures need none."""
    from jobs.mmseg import packed

    source = sample["data_samples"].img_path
    try:
        with packed.local(source) as path:
            image = images.read(Path(path), turned)
        results.picture(where, name, image, truth, prediction, palette)
    except Exception as error:  # a decoder raises anything; and the disk may be full
        print(f"no picture of {Path(source).name}: {' '.join(str(error).split())[:200]}", flush=True)


def timed(spent: dict[str, float], what: str, work: Any) -> Any:
    begin = time.perf_counter()
    try:
        return work()
    finally:
        spent[what] += time.perf_counter() - begin


if __name__ == "__main__":
    run_command(main)
