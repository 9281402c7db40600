"""The past of a long run, made: its events, as supervisors, trainings and the batch script write them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

BEGAN = 1.75e9
"""When the made runs begin, seconds since 1970."""


def write(path: Path, epochs: int, interruptions: int, *, per_epoch: int = 1323, validate: int = 10) -> int:
    """Writes the events of a training of `epochs` epochs with `interruptions` preemptions spread over them,
    each with a save and a start of its own; a save after each epoch, too. Returns the number of starts.

    `per_epoch`: iterations an epoch; `validate`: epochs between validations.
    """
    clock = BEGAN
    lines: list[str] = []
    start = 1

    def add(event: str, after: float, /, **fields: Any) -> None:
        nonlocal clock
        clock += after
        moment = datetime.fromtimestamp(clock, timezone.utc).isoformat(timespec="milliseconds")
        common = {"time": moment.replace("+00:00", "Z"), "event": event, "stage": "train", "job": "4242"}
        if event not in ("submitted", "requeued"):
            fields = {"start": start} | fields
        lines.append(json.dumps(common | fields, separators=(",", ":")) + "\n")

    def saved(step: int, epoch: int, name: str, why: str) -> None:
        add(
            "checkpoint", 2.0, step=step, epoch=epoch, path=name, bytes=532_000_000, seconds=2.1, why=why,
            stall_seconds=0.2,
        )  # fmt: skip

    def begun(step: int, epoch: int, name: str) -> None:
        add("started", 30.0, restart=start - 1, hosts=["n1"], world_size=2, pid=4711, ranks_per_node=2)
        if step:
            add("resumed", 5.0, step=step, epoch=epoch, checkpoint=name)
        add("first_step", 5.0, step=step + 1, seconds=10.0)

    add("submitted", 0.0, executor="slurm", nodes=1, ranks=2)
    begun(0, 0, "")
    done = 0
    for epoch in range(1, epochs + 1):
        while done < interruptions and (done + 1) * epochs <= epoch * interruptions:
            done += 1
            step = (epoch - 1) * per_epoch + done % per_epoch + 1
            add("signal", 100.0, signal="SIGUSR2", rank=0, host="n1")
            saved(step, epoch - 1, f"iter_{step}.pth", "preemption")
            add("preempted", 0.1, step=step, epoch=epoch - 1)
            add("requeued", 0.1, how="slurm")
            start += 1
            begun(step, epoch - 1, f"iter_{step}.pth")
        add("epoch", 300.0, epoch=epoch, step=epoch * per_epoch, seconds=300.0, loss=0.61234, lr=0.00912)
        saved(epoch * per_epoch, epoch, f"epoch_{epoch}.pth", "interval")
        if epoch % validate == 0:
            metrics = {"aAcc": 93.1, "mIoU": 70.1, "mAcc": 80.2}
            add("validated", 60.0, epoch=epoch, step=epoch * per_epoch, seconds=60.0, metrics=metrics)
    path.write_text("".join(lines))
    return start
