"""Run directories for the tests of the operating commands: written as jobs do, at times of our choice."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jobs.run import events
from jobs.run.directory import Request, Run

T0 = 1_790_000_000.0
"""When the made runs begin, seconds since the epoch."""


def made_run(path: Path, **request: Any) -> Run:
    run = Run(path)
    run.job.mkdir(parents=True)
    given = {"config": "configs/demo.py", "data_root": "/data", "created": "2026-09-21T13:33:20Z"} | request
    run.write_request(Request(name=path.name, **given))
    return run


def write(run: Run, at: float, event: str, **fields: Any) -> None:
    """Appends an event through the real schema, as if `at` seconds after T0."""
    moment = datetime.fromtimestamp(T0 + at, timezone.utc).isoformat(timespec="milliseconds")
    record = {"time": moment.replace("+00:00", "Z"), "event": event} | fields
    events.check(record)
    with run.events.open("a") as file:
        file.write(json.dumps(record) + "\n")


def write_progress(run: Run, at: float, **fields: Any) -> None:
    moment = datetime.fromtimestamp(T0 + at, timezone.utc).isoformat(timespec="milliseconds")
    (run.path / "progress.json").write_text(json.dumps({"time": moment.replace("+00:00", "Z")} | fields))


def submitted(run: Run, at: float = 0, job: str = "12", executor: str = "slurm") -> None:
    write(run, at, "submitted", stage="train", job=job, executor=executor, nodes=1, ranks=2)


def started(run: Run, at: float, start: int, job: str = "12", host: str = "n1", step: int = 0) -> None:
    """A start that goes on from `step`; its first step is done 10 s later."""
    common = {"stage": "train", "job": job, "start": start}
    write(run, at, "started", hosts=[host], world_size=2, restart=start - 1, **common)
    if step:
        write(run, at + 8, "resumed", step=step, epoch=step // 100, checkpoint=f"iter_{step}.pth", **common)
    write(run, at + 10, "first_step", step=step + 1, seconds=10.0, **common)


def common(start: int, job: str = "12") -> dict[str, Any]:
    return {"stage": "train", "job": job, "start": start}


def interrupted_run(path: Path) -> Run:
    """Three starts: preempted with a save at step 150, killed without a word after 250, finished at 400.

    One step a second; queue 20 s at first, then 30 s, then 40 s.
    """
    run = made_run(path)
    submitted(run)
    started(run, 20, 1)
    write(run, 129, "epoch", epoch=1, step=100, seconds=100.0, loss=1.5, **common(1))
    write(run, 179, "signal", signal="USR2", rank=0, host="n1", **common(1))
    write(
        run, 181, "checkpoint", step=150, epoch=1, path="checkpoints/iter_150.pth", bytes=9, seconds=1.0,
        why="preempted", **common(1),
    )  # fmt: skip
    write(run, 181, "preempted", step=150, epoch=1, **common(1))
    write(run, 181, "requeued", stage="train", job="12", how="slurm")
    started(run, 211, 2, step=150, host="n2")
    write(run, 270, "epoch", epoch=2, step=200, seconds=49.0, loss=1.2, **common(2))
    write(run, 280, "validated", epoch=2, step=200, seconds=10.0, metrics={"mIoU": 41.5}, **common(2))
    write(
        run, 282, "checkpoint", step=200, epoch=2, path="checkpoints/epoch_2.pth", bytes=9, seconds=2.0,
        why="epoch", **common(2),
    )  # fmt: skip
    write_progress(run, 332, start=2, step=250, epoch=2, max_steps=400, max_epochs=4, seconds_per_step=1.0)
    write(run, 332, "epoch", epoch=2, step=250, seconds=50.0, **common(2))
    started(run, 372, 3, step=200, host="n3")
    write(run, 581, "validated", epoch=4, step=400, seconds=0.0, metrics={"mIoU": 55.25}, **common(3))
    write(run, 582, "finished", step=400, epoch=4, **common(3))
    return run


def with_everything(path: Path) -> Run:
    """An interrupted, evaluated run with curves, a confusion matrix, a picture and a hostile name."""
    run = interrupted_run(path)
    with run.metrics.open("a") as file:
        for start, begin, end in ((1, 1, 150), (2, 151, 250), (3, 201, 400)):
            for step in range(begin, end + 1, 2):
                row = {"step": step, "epoch": step // 100, "start": start, "kind": "train"}
                file.write(json.dumps(row | {"loss": 3.0 / step**0.5, "lr": 0.01 * (1 - step / 500)}) + "\n")
            row = {"step": end, "epoch": end // 100, "start": start, "kind": "val", "mIoU": end / 7}
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 40')
    where = run.eval / "epoch_4-abcdef12"
    (where / "pictures").mkdir(parents=True)
    names = ["background", "<b>cat</b>", "dog"]
    classes = [{"name": name, "IoU": 50.0 + i, "Acc": 60.0, "pixels": 100} for i, name in enumerate(names)]
    metrics = {"mIoU": 51.0, "mAcc": 60.0, "aAcc": 70.0, "checkpoint": "epoch_4.pth", "images": 8}
    (where / "confusion.csv").write_text(
        "truth," + ",".join(names) + "\n" + "\n".join(f"{name},80,15,5" for name in names) + "\n"
    )
    from PIL import Image

    Image.new("RGB", (120, 40), (200, 30, 30)).save(where / "pictures" / "2007_000033.jpg")
    (where / "metrics.json").write_text(json.dumps(metrics | {"classes": classes}))
    write(
        run, 700, "evaluated", stage="evaluate", job="14", checkpoint="epoch_4.pth", metrics=metrics, path="x"
    )
    return run
