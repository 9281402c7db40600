"""One process's part of an evaluation: the model, the images, and the counts of each."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.engine import ranks
from jobs.evaluate import asked, augmentation, per_image
from jobs.evaluate.batches import batch_of, first_of, of_one_size
from jobs.evaluate.drawing import Pictures, path_of
from jobs.evaluate.others import Others
from jobs.mmseg import data, figures, labels, sampling
from jobs.mmseg import model as models
from jobs.prepare import progress
from jobs.run.counts import KINDS
from jobs.run.directory import Run
from jobs.run.errors import UserError


@dataclass
class Gathered:
    """The counts of all processes, on rank 0."""

    matrix: np.ndarray
    counts: np.ndarray
    """As from per_image.joined."""
    order: list[int]
    """The images' numbers, worst first."""
    scores: list[tuple[float, float]]
    """per_image.score of each image, by number."""
    figures: dict[str, Any]


class Test:
    def __init__(
        self,
        run: Run,
        checkpoint: Path,
        us: ranks.Ranks,
        where: Path,
        tta: bool,
        pictures: list[str],
        batch: int = 1,
    ) -> None:
        """`batch`: the most images of the same size per model call. Raises UserError for whatever does not
        fit: the checkpoint, the dataset, what is to be drawn."""
        cfg = models.config(run)
        self.us, self.cfg, self.where, self.batch = us, cfg, where, batch
        self.asked, others, self.beta = asked.wanted(cfg)
        self.ignore = asked.ignored(cfg)
        self.seed = int((cfg.get("randomness") or {}).get("seed") or 0)
        sampling.seed_everything(self.seed)
        repeatable()
        model = models.load(cfg, checkpoint, us.device)
        self.augmented = augmentation.use(cfg) if tta else None
        self.model = augmentation.wrapped(cfg, model) if tta else model
        self.dataset = test_dataset(cfg)
        self.names = model.dataset_meta["classes"]
        self.others = Others(others, self.dataset.metainfo)
        if not tta and not self.others:  # both may use the scores
            labels.use_fast_labels(model)
        self.pictures = Pictures(
            where, self.dataset, pictures, model.dataset_meta["palette"], models.turns(cfg)
        )
        self.matrix = np.zeros((len(self.names), len(self.names)), np.int64)
        self.each = per_image.PerImage()
        self.spent = {"loading": 0.0, "model": 0.0, "counting": 0.0, "pictures": 0.0}

    def count(self, told: str) -> None:
        mine = list(range(self.us.rank, len(self.dataset), self.us.size))
        seeds = [sampling.mix(self.seed, sampling.EVALUATION, index) for index in mine]
        samples = [sampling.Sample(index, seed) for index, seed in zip(mine, seeds, strict=True)]
        with progress.task(told, len(mine)) as advance:
            ready = loaded(self.cfg, self.dataset, samples, self.spent)
            before: list[tuple[sampling.Sample, Any, Any, np.ndarray]] = []
            for alike in of_one_size(zip(samples, ready, strict=True), self.batch):
                outputs = timed(self.spent, "model", lambda alike=alike: self.predicted(alike))
                # While a GPU is still computing: its labels are needed only after this.
                self.take(before, advance)
                found = timed(self.spent, "model", lambda outputs=outputs: [*map(labels_of, outputs)])
                before = [
                    (index, sample, output if self.others else None, labels)
                    for (index, sample), output, labels in zip(alike, outputs, found, strict=True)
                ]
            self.take(before, advance)

    def predicted(self, alike: list[tuple[sampling.Sample, Any]]) -> list[Any]:
        # Seeded by image, so that it does not matter which process has it, or in which order.
        sampling.seed_everything(alike[0][0].seed)
        return predict(self.model, batch_of([sample for _, sample in alike]))

    def take(self, images: list[tuple[sampling.Sample, Any, Any, np.ndarray]], advance: Any) -> None:
        for one in images:
            self.one(*one)
            advance(1)

    def one(self, index: sampling.Sample, sample: Any, output: Any, prediction: np.ndarray) -> None:
        first = first_of(sample)
        truth = truth_of(first)
        matrix, boundary = timed(
            self.spent, "counting", lambda: counted(first, truth, prediction, len(self.names), self.ignore)
        )
        self.matrix += matrix
        score, _ = per_image.score(self.each.add(int(index), matrix, boundary))
        if self.others:
            batch = batch_of([sample])
            sampling.seed_everything(index.seed)
            timed(self.spent, "counting", lambda: self.others.process(int(index), batch, [output]))
        timed(
            self.spent,
            "pictures",
            lambda: self.pictures.seen(int(index), score, first.img_path, truth, prediction),
        )

    def gathered(self) -> Gathered | None:
        """The counts of all, on rank 0; None on the others."""
        parts = ranks.gather(self.us, self.matrix.tobytes() + self.each.tobytes())
        if parts is None:
            return None
        size, shape = self.matrix.nbytes, self.matrix.shape
        matrix = np.sum([np.frombuffer(part[:size], np.int64).reshape(shape) for part in parts], axis=0)
        counts = per_image.joined([part[size:] for part in parts], len(self.dataset), len(self.names))
        boundary = counts[:, len(KINDS) :].sum(0, dtype=np.int64)
        found = figures.figures(matrix, self.names, self.beta, boundary)
        found["boundary"] = {"width_of_diagonal": figures.BOUNDARY_WIDTH}
        order, scores = per_image.worst_first(counts)
        return Gathered(matrix, counts, order, scores, per_image.completed(found, counts, self.beta))

    def draw(self, order: list[int]) -> list[tuple[int, str]]:
        """Draws this process's pictures. Returns `order`, which rank 0 knows, with the name of each image's
        picture, "" without one."""
        shared = ranks.share(self.us, np.array(order, np.int64).tobytes())
        order = np.frombuffer(shared, np.int64).tolist()
        drawn = timed(self.spent, "pictures", lambda: self.pictures.finish(order))
        ranks.gather(self.us, b"")  # all pictures exist before the result says so
        return [(index, drawn.get(index, "")) for index in order]

    def paths(self) -> list[str]:
        return [str(path_of(self.dataset, index)) for index in range(len(self.dataset))]


def repeatable() -> None:
    """Makes cuDNN deterministic."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


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
        raise UserError(f"the dataset to evaluate on is missing: {error or where}") from None


def loaded(cfg: Any, dataset: Any, indices: list[sampling.Sample], spent: dict[str, float]) -> Iterator[Any]:
    """The samples, in order, loaded by the config's number of workers."""
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


def predict(model: Any, batch: dict[str, Any]) -> list[Any]:
    """The model's result for each sample of a batch."""
    import torch

    with torch.no_grad():
        return list(model.test_step(batch))


def labels_of(result: Any) -> np.ndarray:
    """Class numbers (int64, H × W) in the size of the original image."""
    # For a model with one output (`use_sigmoid`), mmseg returns floats.
    return np.asarray(result.pred_sem_seg.data.squeeze(0).cpu().numpy()).astype(np.int64, copy=False)


def truth_of(found: Any) -> np.ndarray:
    """Class numbers (H × W) of a data sample's annotation. Raises UserError for an image without one."""
    if "gt_sem_seg" not in found:
        raise UserError(
            f"{found.img_path} has no annotation in the test dataset (LoadAnnotations in its pipeline?): "
            "infer.py segments images that have none"
        )
    return np.asarray(found.gt_sem_seg.data.squeeze(0).numpy())


def counted(
    found: Any, truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int
) -> tuple[np.ndarray, np.ndarray]:
    """figures.confusion of an image, and of its pixels near boundaries. Raises UserError, naming it, for a
    label that is not a class, or an annotation of another size."""
    meta = found.metainfo
    if truth.shape != prediction.shape:
        raise UserError(data.unequal(meta, prediction.shape, truth.shape))
    try:
        matrix = figures.confusion(truth, prediction, classes, ignore)
    except ValueError as error:
        file = meta.get("seg_map_path") or meta.get("img_path")
        raise UserError(f"{file}: {error} (and {ignore} is ignored)") from None
    near = np.where(figures.near_boundaries(truth), truth, ignore)
    return matrix, figures.confusion(near, prediction, classes, ignore)


def timed(spent: dict[str, float], what: str, work: Any) -> Any:
    begin = time.perf_counter()
    try:
        return work()
    finally:
        spent[what] += time.perf_counter() - begin
