"""`status.py` over 1,000 runs: seconds for the whole command, in a pipe and on a terminal, and how often it
calls Slurm.

The runs are as real ones: run.yaml, 200 epochs with their checkpoints and validations in events.jsonl, some
preempted; half of them running, the others evaluated, with augmentation, too. Stand-ins for squeue and sacct
answer as Slurm would, at once, and count their calls: what is measured is our own work.

examples:
  python benchmarks/status_scale.py
  python benchmarks/status_scale.py --runs 100 --rounds 1     a quick look
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import repository

from benchmarks import harness
from benchmarks.harness import record
from jobs.run.directory import Request, Run
from tests.support import terminal

ROOT: Path = repository.ROOT

STAND_IN = """#!/bin/sh
echo "$0" >> "$BATON_COUNT"
case $0 in
*squeue) i=0; while [ $i -lt {running} ]; do
  echo "$i|$i|N/A|RUNNING|gpu|10|me|2026-01-01T00:00:00|2026-01-01T00:00:00|n1|(null)|None"
  i=$((i+1)); done ;;
*sacct) echo "999999|COMPLETED|0:0|2026-01-01T00:00:00|2026-01-01T00:00:00|2026-01-01T00:00:00|0|n1|None" ;;
esac
"""


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-status-") as folder:
        place = Path(folder)
        size = make_runs(place / "runs", arguments.runs, arguments.epochs)
        running = arguments.runs // 2
        count = place / "calls"
        for name in ("squeue", "sacct"):
            program = place / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(STAND_IN.format(running=running))
            program.chmod(0o755)
        environment = os.environ | {
            "BATON_RUNS": str(place / "runs"),
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "BATON_COUNT": str(count),
        }
        command = [sys.executable, str(ROOT / "launch/status.py")]
        seconds: dict[str, list[float]] = {"pipe": [], "terminal": []}
        calls = []
        for _ in range(arguments.rounds):
            for where, figures in seconds.items():
                count.write_text("")
                began = time.perf_counter()
                if where == "pipe":
                    done = subprocess.run(
                        command, env=environment, capture_output=True, text=True, check=True
                    )
                    shown = done.stdout
                else:
                    shown = terminal.run(command, environment, columns=120)
                figures.append(time.perf_counter() - began)
                calls.append(len(count.read_text().splitlines()))
                assert shown.count("\n") >= arguments.runs, f"not every run is in the table of the {where}"
        empty = min(_timed([sys.executable, "-c", "pass"]) for _ in range(3))
    raw = {"seconds": seconds, "calls": calls, "bytes_of_events": size, "python_start": empty}
    note = f"{max(calls)} Slurm calls, {size / 1e6:.0f} MB of events"
    record(
        "status_scale", f"`status.py` over {arguments.runs:,} runs, in a pipe",
        statistics.median(seconds["pipe"]),
        against="", goal=1.0, better="lower", unit="s", raw=raw, note=note,
    )  # fmt: skip
    record(
        "status_terminal", f"`status.py` over {arguments.runs:,} runs, on a terminal",
        statistics.median(seconds["terminal"]),
        against="", goal=1.0, better="lower", unit="s", raw=raw, note=note,
    )  # fmt: skip
    record(
        "status_calls", f"Slurm calls of `status.py` over {arguments.runs:,} runs", max(calls),
        against="", goal=2, better="lower", unit="calls", raw=raw,
    )  # fmt: skip
    return 0


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def make_runs(root: Path, number: int, epochs: int) -> int:
    """Writes the run directories; returns the bytes of their events."""
    total = 0
    for index in range(number):
        run = Run(root / f"run-{index:04d}")
        run.job.mkdir(parents=True)
        run.write_request(
            Request(
                name=run.name, config="configs/demo.py", data_root="/data", created="2026-01-01T00:00:00Z"
            )
        )
        done = epochs if index % 2 else epochs * (index % 100 + 1) // 100
        lines = events_of(str(index), done, finished=bool(index % 2))
        if index % 2:
            lines += evaluations_of(run, lines[-1])
        run.events.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        total += run.events.stat().st_size
        progress = {
            "time": lines[-1]["time"],
            "start": 1 + (done - 1) // 50,
            "step": done * 660,
            "epoch": done,
            "max_epochs": epochs,
        }
        progress |= {
            "max_steps": epochs * 660,
            "seconds_per_step": 0.3,
            "loss": 0.5,
            "lr": 0.01,
            "phase": "train",
        }
        (run.path / "progress.json").write_text(json.dumps(progress))
    return total


def evaluations_of(run: Run, last: dict[str, object]) -> list[dict[str, object]]:
    """Writes the best checkpoint's manifest, and two evaluations of it; returns their events."""
    digest, name = "0123abcd" * 8, f"epoch_{last['epoch']}.pth"
    manifest = {"step": last["step"], "epoch": last["epoch"], "bytes": 532000000, "digest": digest}
    run.checkpoints.mkdir()
    (run.checkpoints / f"{name}.json").write_text(json.dumps(manifest))
    (run.checkpoints / "best.json").write_text(json.dumps({"path": name}))
    lines = []
    for ending in ("", "-tta"):
        folder = run.eval / f"{Path(name).stem}-{digest[:8]}{ending}"
        folder.mkdir(parents=True)
        scores = {"mIoU": 71.5, "mAcc": 80.2, "aAcc": 93.4}
        (folder / "metrics.json").write_text(json.dumps({**scores, "checkpoint": name, "digest": digest}))
        told = {"event": "evaluated", "stage": "evaluate", "job": f"9{last['job']}", "checkpoint": name}
        lines.append({"time": last["time"], **told, "seconds": 300.0, "metrics": scores, "path": str(folder)})
    return lines


def events_of(job: str, epochs: int, finished: bool) -> list[dict[str, object]]:
    """A training's events: epochs, checkpoints, every tenth epoch a validation; preempted now and then."""
    clock = 1.78e9

    def line(event: str, start: int | None = None, **fields: object) -> dict[str, object]:
        nonlocal clock
        clock += 20.0
        moment = datetime.fromtimestamp(clock, timezone.utc).isoformat(timespec="milliseconds")
        common = {"time": moment.replace("+00:00", "Z"), "event": event, "stage": "train", "job": job}
        return common | ({"start": start} if start else {}) | fields

    def begin(start: int, step: int) -> list[dict[str, object]]:
        resumed = [line("resumed", start, step=step, epoch=step // 660, checkpoint="x")] if step else []
        return [
            line("started", start, hosts=["n1"], world_size=8), *resumed,
            line("first_step", start, step=step + 1, seconds=10.0),
        ]  # fmt: skip

    start = 1
    lines = [line("submitted", executor="slurm", nodes=1, ranks=8), *begin(start, 0)]
    for epoch in range(1, epochs + 1):
        step = epoch * 660
        lines.append(line("epoch", start, epoch=epoch, step=step, seconds=200.0, loss=0.61234, lr=0.00912))
        lines.append(
            line("checkpoint", start, step=step, epoch=epoch, path=f"checkpoints/epoch_{epoch}.pth",
                 bytes=532000000, seconds=4.1, why="interval", stall_seconds=0.2)
        )  # fmt: skip
        if epoch % 10 == 0:
            lines.append(
                line("validated", start, epoch=epoch, step=step, seconds=60.0, metrics={"mIoU": 70.1})
            )
        if epoch % 50 == 0 and epoch < epochs:
            lines.append(line("signal", start, signal="USR2", rank=0, host="n1"))
            lines.append(line("preempted", start, step=step, epoch=epoch))
            lines.append(line("requeued", how="slurm"))
            start += 1
            lines += begin(start, step)
    if finished:
        lines.append(line("finished", start, step=epochs * 660, epoch=epochs))
    return lines


if __name__ == "__main__":
    sys.exit(main())
