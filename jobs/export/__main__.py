"""`python -m jobs.export RUN`: a run's best weights alone, with config and digests, as a small folder that
`launch/infer.py FOLDER IMAGE…` takes anywhere; with --onnx the model as ONNX too, checked against PyTorch.

The folder's format is in jobs/run/exported.py. It goes to RUN/export/CHECKPOINT-DIGEST/.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.catalog import pretrained
from jobs.engine import checkpoints
from jobs.mmseg import compat, images
from jobs.mmseg import model as models
from jobs.run import code_files, digests, environment, events, exported, failure, files, output, story
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UserError, one_line, run_command
from jobs.run.task import job_id

CHECKED = 8
"""Number of images, spread over the test dataset, on which the two are compared."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a path")
    parser.add_argument(
        "--out", type=Path, help="a new or empty folder (default RUN/export/CHECKPOINT-DIGEST)"
    )
    parser.add_argument("--onnx", action="store_true", help="model.onnx, too")
    parser.add_argument(
        "--check", nargs="+", metavar="IMAGE",
        help=f"with --onnx: compare on these images (default: {CHECKED} of the config's test dataset)",
    )  # fmt: skip
    arguments = parser.parse_args()
    run = Run(arguments.run.resolve())
    job = job_id()
    if job is not None and story.read(run.events).finishes_of("export", job):
        print("this job has exported already", flush=True)
        return 0
    with failure.reported(run, "export"):
        export(run, arguments)
    events.append(run.events, "finished", stage="export", job=job)
    return 0


def export(run: Run, arguments: argparse.Namespace) -> None:
    if arguments.onnx and (why := exported.lacking()):
        raise UserError(why)
    checkpoint = models.chosen_checkpoint(run, arguments.checkpoint)
    digest = checkpoints.digest(checkpoint)
    own = run.path / files.EXPORT()
    folder = (arguments.out or own / f"{checkpoint.stem}-{digest[:8]}").resolve()
    output.claim(folder, own)
    for name in (exported.RECORD, exported.ONNX):  # the folder may have those of another checkpoint
        (folder / name).unlink(missing_ok=True)

    # Imported late, because it takes seconds.
    compat.prepare()
    cfg = models.config(run)
    model = models.load(cfg, checkpoint, "cpu")
    write_weights(folder / exported.WEIGHTS, checkpoint, model.dataset_meta)
    write_atomically(folder / exported.CONFIG, compat.formatted(portable(cfg, model.dataset_meta)).encode())
    modules = copy_modules(run, folder) if cfg.get("custom_imports") else []
    record = {
        "format": exported.FORMAT,
        "run": run.name,
        "checkpoint": checkpoint.name,
        "digest": digest,
        "classes": list(model.dataset_meta["classes"]),
        "versions": versions(),
        "created": events.now(),
    }
    names = [exported.WEIGHTS, exported.CONFIG, *modules]
    if arguments.onnx:
        record["onnx"] = write_onnx(folder / exported.ONNX, cfg, model, arguments.check)
        names.append(exported.ONNX)
    record["sha256"] = {name: digests.digest(folder / name, "sha256") for name in names}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / exported.RECORD, text.encode())
    print(exported.summary(folder, record), flush=True)


def write_weights(path: Path, checkpoint: Path, meta: Any) -> None:
    """Writes only the checkpoint's weights, with the classes as in mmseg's own checkpoints."""
    import torch

    weights = {name: value.detach().cpu().clone() for name, value in models.weights_of(checkpoint).items()}
    kept = {"classes": tuple(meta["classes"]), "palette": [list(map(int, one)) for one in meta["palette"]]}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": kept}}, buffer)
    write_atomically(path, buffer.getvalue())


def portable(cfg: Any, meta: Any) -> Any:
    """The config for use on another machine: without pretrained weights, and with class names if only the
    dataset's files have them."""
    cfg = copy.deepcopy(cfg)
    pretrained.forget(cfg.model)
    for key in ("resume", "load_from", "work_dir"):
        cfg.pop(key, None)
    from mmseg.registry import DATASETS

    dataset = models.innermost(cfg.test_dataloader.dataset)
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    if not (getattr(kind, "METAINFO", None) or {}).get("classes"):
        palette = [list(map(int, colour)) for colour in meta["palette"]]
        dataset["metainfo"] = {"classes": tuple(meta["classes"]), "palette": palette}
    return cfg


def copy_modules(run: Run, folder: Path) -> list[str]:
    """Copies the user's own modules, without data folders, which a run only links; returns their file names
    below `folder`."""
    found = []
    for module in run.modules():
        for path in code_files.files(module) if module.is_dir() else [module]:
            name = path.relative_to(run.code)
            if str(name) != exported.CONFIG:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
                found.append(str(name))
    return found


def versions() -> dict[str, str]:
    installed = environment.installed()
    names = ("torch", "mmsegmentation", "mmengine", "mmcv-lite", "mmcv", "onnx", "onnxruntime")
    return {name: installed[name] for name in names if name in installed}


# ------------------------------------------------------------------------------------------------------ ONNX


def write_onnx(path: Path, cfg: Any, model: Any, given: Sequence[str] | None) -> dict[str, Any]:
    """Writes and checks model.onnx; returns what export.json says about it."""
    from jobs.export import to_onnx

    inputs = [ready(model, sample) for sample in samples(cfg, given)]
    found = to_onnx.export(model, path, inputs)
    if (mode := (cfg.model.get("test_cfg") or {}).get("mode")) == "slide":
        print(
            f"{path.name} segments each image whole; the config's test mode uses tiles ({mode})", flush=True
        )
    sizes = enumerate(inputs[0].shape)
    free_names = {axis: name for axis, name in to_onnx.AXES.items() if name in found["free"]}
    prepare = model.data_preprocessor
    swapped = getattr(prepare, "channel_conversion", False)
    return found | {
        "opset": to_onnx.OPSET,
        "input": {
            "name": "image",
            "shape": [free_names.get(axis, size) for axis, size in sizes],
            "type": "float32",
            "mean": values(prepare, "mean"),
            "std": values(prepare, "std"),
            "channels": "reversed (RGB of an image that is read as BGR)" if swapped else "as read",
        },
        "output": {
            "name": "scores",
            "classes": len(model.dataset_meta["classes"]),
            "size": "the input's",
            # For one channel: the second class is where its sigmoid exceeds this.
            "threshold": to_onnx.threshold(model),
        },
    }


def values(module: Any, name: str) -> list[float] | None:
    found = getattr(module, name, None)
    return None if found is None else [float(value) for value in found.reshape(-1)]


def ready(model: Any, sample: Any) -> Any:
    """The model's input for an image (1 × channels × H × W)."""
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    return model.data_preprocessor(batch, False)["inputs"]


def samples(cfg: Any, given: Sequence[str] | None) -> list[Any]:
    """Real images after the config's test pipeline. Raises UserError if there are none."""
    from jobs.mmseg import data, packed

    if given:
        load, prepare = models.reading(cfg)
        return [sample(load, prepare, path) for path in images.find(given)]
    description = copy.deepcopy(dict(cfg.test_dataloader.dataset))
    packed.read_packed(description)
    try:
        dataset = data.build(description)
        count = len(dataset)
        return [dataset[round(at * (count - 1) / max(1, CHECKED - 1))] for at in range(min(CHECKED, count))]
    except (FileNotFoundError, AssertionError) as error:
        raise UserError(
            f"--onnx is checked on images of the config's test dataset, which is not there ({error}): name "
            "other images with --check IMAGE…"
        ) from None


def sample(load: Any, prepare: Any, path: Path) -> Any:
    image = images.loaded(load, path)
    try:
        return prepare(image)
    except Exception as error:  # such as one so narrow that nothing of it is left
        raise UserError(f"{path} cannot be used for the check: {one_line(error, 200)}") from None


if __name__ == "__main__":
    run_command(main)
