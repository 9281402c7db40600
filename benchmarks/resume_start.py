"""From the command to the end of the first step of a resumed run, against mmengine, with the recipe's network
and its checkpoint of 532 MB; and what the iterations done before add to that.

Ours is the whole command of a job's task, `python -m jobs.train RUN`: supervisor, rendezvous, the digest of
the checkpoint. mmengine's is as tools/train.py runs it. By epoch mmengine resumes at the beginning of an
epoch only; by iteration it loads all data once more that it has been through. Runs after 200,000 iterations
have what comes with them: histories of logged values, and (ours) the events of 75 epochs and 100
interruptions.

examples:
  python benchmarks/resume_start.py
  python benchmarks/resume_start.py --rounds 1     a quick look
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import repository

from benchmarks import harness, pipeline
from benchmarks.trainings import past, start
from jobs.engine import checkpoints
from jobs.mmseg import compat
from jobs.run.directory import Run

ROOT: Path = repository.ROOT

PICTURES, BATCH, LENGTH = 64, 4, 10_582
PER_EPOCH = -(-LENGTH // BATCH)
FAR = 200_000
INTERRUPTIONS = 100
REPLAYED = (200, 1000)
BY_ITERATION = {
    "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 2 * FAR},
    "train_dataloader__sampler": {"_delete_": True, "type": "InfiniteSampler", "shuffle": True},
    "log_processor__by_epoch": False,
}


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    harness.restart_with(OMP_NUM_THREADS="1")
    compat.prepare()
    with tempfile.TemporaryDirectory(prefix="resume-start-", dir=ROOT / "logs") as name:
        folder = Path(name)
        data = make_data(folder / "data")
        made = {side: first_checkpoint(side, folder, data) for side in ("ours", "peer")}
        far = ours_after(made["ours"], folder / "far", data, FAR, INTERRUPTIONS)
        near = ours_after(made["ours"], folder / "near", data, 1, 0)
        peer = peer_after(made["peer"], folder / "peer", data, epoch=-(-FAR // PER_EPOCH))
        sides = {
            "ours": lambda: first_step("ours", far),
            "peer": lambda: first_step("peer", peer),
            "near": lambda: first_step("ours", near),
        }
        harness.alternate(sides, 1)  # files come into memory, whichever side reads them first
        figures = harness.alternate(sides, arguments.rounds)
        replay = {}
        for iterations in REPLAYED:
            run = peer_after(made["peer"], folder / f"replay-{iterations}", data, iteration=iterations)
            replay[iterations] = first_step("peer", run)
            start.delete(run)

    raw: dict[str, Any] = {key: figures[key] for key in ("ours", "peer")}
    raw["spread"] = {side: harness.spread(values) for side, values in raw.items()}
    seconds = {key: statistics.median(values) for key, values in figures.items()}
    harness.record(
        "resume_start",
        "start to the first step of a resumed run, checkpoint of 532 MB",
        seconds["ours"] / seconds["peer"],
        against="mmengine, by epoch",
        goal=0.65,
        unit="ratio",
        better="lower",
        raw=raw,
        note=f"{seconds['ours']:.1f} s and {seconds['peer']:.1f} s",
    )
    harness.record(
        "resume_flat",
        f"start to the first step after {FAR:,} iterations",
        seconds["ours"] / seconds["near"],
        against="the same after one",
        goal=1.05,
        better="lower",
        raw={"far": figures["ours"], "near": figures["near"]},
    )
    few, many = REPLAYED
    grown = (replay[many] - replay[few]) / (many - few)
    ours = max(0.0, seconds["ours"] - seconds["near"]) / (FAR - 1)
    harness.record(
        "resume_replay",
        "what each iteration done adds to a resumed start",
        ours / grown,
        against="mmengine, by iteration",
        goal=0.001,
        better="lower",
        raw={"peer_seconds_to_first_step": replay, "seconds_an_iteration": {"ours": ours, "peer": grown}},
        note=f"mmengine: {1000 * grown:.0f} ms, it replays the data; ours is within the noise of a start",
    )
    return 0


def make_data(root: Path) -> Path:
    """Pictures of VOC's size, in its layout, with a training list of the recipe's length."""
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    for number in range(PICTURES):
        sample = pipeline.make_sample(root, number)
        for key, target in (("img_path", "JPEGImages"), ("seg_map_path", "SegmentationClassAug")):
            path = Path(sample[key])
            path.rename(base / target / path.name)
    names = "".join(f"{number}\n" for number in range(PICTURES))
    (base / "ImageSets/Segmentation/trainaug.txt").write_text(names)
    return start.endless_list(root, LENGTH)


def first_checkpoint(side: str, folder: Path, data: Path) -> Path:
    """Trains one epoch of one iteration; the checkpoint that it leaves."""
    path = folder / f"made-{side}"
    hook = {"type": "Steps", "result": str(path / "result.json")}
    settings = epochs(1) | {"train_dataloader__dataset__indices": BATCH}
    run = start.make_run(path, data, start.RECIPE, hook, **settings)
    start.result(side, run)
    return (run.checkpoints if side == "ours" else run.path / "mmengine") / "epoch_1.pth"


def epochs(number: int) -> dict[str, Any]:
    scheduler = {"type": "PolyLR", "eta_min": 1e-4, "begin": 0, "end": number, "by_epoch": True}
    return {"train_cfg__max_epochs": number, "param_scheduler": [scheduler]}


def resumable(path: Path, data: Path, **settings: Any) -> Run:
    hook = {"type": "FirstStep", "result": str(path / "result.json")}
    return start.make_run(path, data, start.RECIPE, hook, **epochs(2 * FAR // PER_EPOCH), **settings)


def ours_after(made: Path, path: Path, data: Path, iteration: int, interruptions: int) -> Run:
    """A run of ours, `iteration` iterations done; events.jsonl is kept beside it (`first_step`)."""
    run = resumable(path, data)
    epoch = iteration // PER_EPOCH
    content = compat.load(made)
    place = {"epoch": epoch, "step": iteration, "position": iteration % PER_EPOCH * BATCH}
    content["meta"] |= {"epoch": epoch, "iter": iteration}
    content["baton"] |= place
    content["baton"]["history"] = history(content["baton"]["history"], min(iteration, 1000))
    for scheduler in content["param_schedulers"]:
        scheduler["last_step"] = epoch
    manifest = checkpoints.listed(made.parent)[-1].manifest | place
    checkpoints.write(run.checkpoints / f"iter_{iteration}.pth", content, manifest, run.job, 1)
    starts = past.write(path / "events-before.jsonl", epoch, interruptions, per_epoch=PER_EPOCH)
    for number in range(1, starts + 1):
        (run.job / f"start-{number}").touch()
    return run


def history(logged: dict[str, Any], length: int) -> dict[str, Any]:
    return {key: [part[-1:].repeat(length) for part in parts] for key, parts in logged.items()}


def peer_after(made: Path, path: Path, data: Path, *, epoch: int = 0, iteration: int = 0) -> Run:
    """A run of mmengine's that has done so many epochs, or iterations."""
    import torch
    from mmengine.logging import HistoryBuffer

    run = resumable(path, data, **({} if epoch else BY_ITERATION))
    done = epoch * PER_EPOCH or iteration
    content = compat.load(made)
    content["meta"] |= {"epoch": epoch, "iter": done}
    scalars = content["message_hub"]["log_scalars"]
    for key, buffer in scalars.items():
        values, counts = buffer.data
        scalars[key] = HistoryBuffer(values[-1:].repeat(done), counts[-1:].repeat(done))
    for scheduler in content["param_schedulers"]:
        scheduler["last_step"] = epoch
    (path / "mmengine").mkdir()
    target = path / "mmengine" / (f"epoch_{epoch}.pth" if epoch else f"iter_{iteration}.pth")
    torch.save(content, target)
    (path / "mmengine" / "last_checkpoint").write_text(str(target))
    return run


def first_step(side: str, run: Run) -> float:
    """Seconds to the first step of one resumed start, from the state in which the run was made."""
    before = run.path / "events-before.jsonl"
    if before.exists():
        shutil.copy(before, run.events)
    found = start.result(side, run)
    done = {"far": FAR, "near": 1}.get(run.name)
    assert done is None or found["step"] == done + 1, f"{run.name} began with step {found['step']}"
    return float(found["seconds"])


if __name__ == "__main__":
    sys.exit(main())
