"""`python -m jobs.infer RUN --out DIR -- IMAGE…`: segments images with a run's model.

Each is read and made ready by the steps of the config's test pipeline, whatever they are (16 bits, one
channel, many bands). For each image NAME it writes DIR/NAME.png, a mask in the image's size whose pixel
values are the class numbers (with the dataset's colours as palette; 16-bit grey with more than 256 classes),
and DIR/NAME_overlay.jpg, if people can look at the image at all. An image that cannot be read or segmented
is named, the others are done all the same, and the exit code is 2. Nothing that is there already is
overwritten, but for what an inference wrote.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jobs.mmseg import compat, images
from jobs.mmseg import model as models
from jobs.prepare import progress
from jobs.run import events, failure, files, output, story
from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.run.exit_codes import USER_ERROR
from jobs.run.task import job_id


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.infer", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a path")
    parser.add_argument("--out", type=Path, help="output folder (default RUN/infer)")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, globs")
    arguments = parser.parse_args()
    run = Run(arguments.run.resolve())
    if has_done(run, job_id()):
        print("this job has segmented its images already", flush=True)
        return 0
    with failure.reported(run, "infer"):
        return infer(run, arguments)


def has_done(run: Run, job: str | None) -> bool:
    """Whether this very job has come to its end before: Slurm may requeue one that ends well within the grace
    time of a preemption."""
    return job is not None and bool(story.read(run.events).finishes_of("infer", job))


def infer(run: Run, arguments: argparse.Namespace) -> int:
    out = (arguments.out or run.path / files.INFER()).resolve()
    found = images.find(arguments.images)
    names = images.names(found)
    output.claim(out, "--out", run.path / files.INFER())
    output.check_apart(found, [file for name in names for file in targets(out / name)])

    checkpoint = models.chosen_checkpoint(run, arguments.checkpoint)

    # Only now what takes seconds to import.
    compat.prepare()
    from jobs.mmseg import labels

    cfg = models.config(run)
    model = models.load(cfg, checkpoint, device())
    load, prepare = build_pipeline(cfg)
    turned = models.turns(cfg)
    images.start_no_ghostscript()
    labels.use_fast_labels(model)
    unreadable: list[UserError] = []
    defect: Exception | None = None
    with progress.task(f"segmenting with {checkpoint.name}", len(found)) as advance:
        for path, name in zip(found, names, strict=True):
            try:
                images.check(path)
                segmented = segment(model, prepare, loaded(load, path))
            except UserError as error:
                unreadable.append(error)
            except Exception as error:  # one that is too large, or so narrow that nothing of it is left
                defect = error
                unreadable.append(UserError(f"{path} cannot be segmented: {in_a_line(error)}"))
            else:
                write(out / name, path, segmented, model.dataset_meta["palette"], turned)
            advance(1)
    if defect and len(unreadable) == len(found):
        raise defect  # not this image's, but ours or the model's
    done = len(found) - len(unreadable)
    print(f"{done} of {len(found)} images segmented: masks and overlays in {out}", flush=True)
    if unreadable:
        for problem in unreadable:
            print(f"error: {problem}", file=sys.stderr)
        others = f" ({len(unreadable) - 1} more like this)" if len(unreadable) > 1 else ""
        failure.tell(run, "infer", f"{unreadable[0]}{others}", USER_ERROR)
        return USER_ERROR
    if run.events.exists():
        events.append(run.events, "finished", stage="infer", job=job_id())
    return 0


def device() -> str:
    from jobs.engine import devices

    return devices.of_rank(0, os.environ)


def build_pipeline(cfg: Any) -> tuple[Any, Any]:
    """The transforms of the config's test dataset, for an image that has no annotation: the one that reads
    the file, and the others.

    Raises UserError if the config has none, or begins with something that reads no file.
    """
    from mmengine.dataset import Compose

    steps = models.test_pipeline(cfg)
    steps = [step for step in steps if not models.loads_annotations(step)]
    if not steps or models.name_of(steps[0]["type"]) == "LoadImageFromNDArray":
        raise UserError("the config's test pipeline does not begin with reading an image from its file")
    return Compose(steps[:1]), Compose(steps[1:])


def loaded(load: Any, path: Path) -> Any:
    """What the config's first step makes of an image's path. Raises UserError for what it cannot read."""
    try:
        found = load({"img_path": str(path), "seg_fields": []})
    except Exception as error:  # a decoder raises anything for a broken file
        raise images.unreadable(path, error) from None
    if found is None:  # LoadImageFromFile(ignore_empty=True)
        raise UserError(f"{path} cannot be read as an image")
    return found


def segment(model: Any, prepare: Any, image: Any) -> np.ndarray:
    """Class numbers (H × W, uint8; uint16 with more than 256 classes) of a `loaded` image, in its own
    size."""
    import torch

    prepared = prepare(image)
    with torch.no_grad():
        (result,) = model.test_step(
            {"inputs": [prepared["inputs"]], "data_samples": [prepared["data_samples"]]}
        )
    labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
    return np.asarray(labels.astype(np.min_scalar_type(len(model.dataset_meta["classes"]) - 1)))


def in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def targets(name: Path) -> tuple[Path, Path]:
    """The files of an image's mask and of its overlay."""
    return name.with_name(f"{name.name}.png"), name.with_name(f"{name.name}_overlay.jpg")


def write(name: Path, path: Path, labels: np.ndarray, palette: Any, turned: bool) -> None:
    """The mask, and the overlay on what people see of the image; of one that they cannot see it is said."""
    from jobs.mmseg import pictures

    name.parent.mkdir(parents=True, exist_ok=True)
    mask, overlay = targets(name)
    pictures.save(pictures.mask(labels, palette), mask)
    try:
        shown = images.read(path, turned)
        pictures.save(pictures.overlay(shown, labels, palette), overlay)
    except (UserError, ValueError) as error:  # the mask is there
        print(f"no overlay: {in_a_line(error)}", flush=True)


if __name__ == "__main__":
    run_command(main)
