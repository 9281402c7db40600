"""`python -m jobs.infer RUN --out DIR -- IMAGE…`: segments images with a run's model.

For each image NAME it writes DIR/NAME.png, a mask in the image's size whose pixel values are the class
numbers (with the dataset's colours as palette), and DIR/NAME_overlay.jpg. An image that cannot be read is
named, the others are done all the same, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jobs import compat, events
from jobs import model as models
from jobs.errors import UserError, run_command
from jobs.infer import images
from jobs.prepare import progress
from jobs.run_directory import Run
from jobs.train.task import job_id


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.infer", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a path")
    parser.add_argument("--out", type=Path, help="output folder (default RUN/infer)")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, globs")
    arguments = parser.parse_args()
    run = Run(arguments.run.resolve())
    out = (arguments.out or run.path / "infer").resolve()
    found = images.find(arguments.images)

    checkpoint = models.chosen_checkpoint(run, arguments.checkpoint)

    # Only now what takes seconds to import.
    compat.prepare()
    cfg = models.config(run)
    model = models.load(cfg, checkpoint, device())
    pipeline = build_pipeline(cfg)
    unreadable = []
    with progress.task(f"segmenting with {checkpoint.name}", len(found)) as advance:
        for path, name in zip(found, images.names(found), strict=True):
            try:
                image = images.read(path)
            except UserError as error:
                unreadable.append(error)
            else:
                write(out / name, image, segment(model, pipeline, image), model.dataset_meta["palette"])
            advance(1)
    for problem in unreadable:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(found) - len(unreadable)} of {len(found)} images segmented: masks and overlays in {out}")
    if run.events.exists() and not unreadable:
        events.append(run.events, "finished", stage="infer", job=job_id())
    return 2 if unreadable else 0


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_pipeline(cfg: Any) -> Any:
    """The config's test transforms, for an image in memory that has no annotation."""
    from mmengine.dataset import Compose

    steps = [dict(step) for step in cfg.test_pipeline if step["type"] != "LoadAnnotations"]
    steps[0]["type"] = "LoadImageFromNDArray"
    return Compose(steps)


def segment(model: Any, pipeline: Any, image: np.ndarray) -> np.ndarray:
    """Class numbers (H × W, uint8) of an RGB image (H × W × 3, uint8), in its own size."""
    import torch

    prepared = pipeline({"img": np.ascontiguousarray(image[..., ::-1])})  # mmseg's images are BGR
    with torch.no_grad():
        (result,) = model.test_step(
            {"inputs": [prepared["inputs"]], "data_samples": [prepared["data_samples"]]}
        )
    labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
    return labels.astype(np.uint8)


def write(target: Path, image: np.ndarray, labels: np.ndarray, palette: Any) -> None:
    from jobs import pictures

    target.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(pictures.mask(labels, palette), target.with_name(f"{target.name}.png"))
    pictures.save(pictures.overlay(image, labels, palette), target.with_name(f"{target.name}_overlay.jpg"))


if __name__ == "__main__":
    run_command(main)
