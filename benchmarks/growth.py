"""What grows with a run's past: reading its events, showing its status, deciding a resume, and looking after
its checkpoints, for 100 to 10,000 epochs and 10 to 1,000 interruptions.

Expected of everything that reads the past: time in proportion to its length, so that ten times the past takes
hardly more than ten times as long (1×, with room up to 1.5×; quadratic would be 10×). Expected of the
directory of checkpoints: pruning keeps as many as the config asks for, so a save meets the same few files
after 10,000 epochs as after 100; where the config keeps all, in proportion to their number. Timed is CPU
time, in one process: the start of an interpreter is left out.

examples:
  python benchmarks/growth.py
  python benchmarks/growth.py --rounds 1     a quick look
"""

import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import repository

from benchmarks import harness
from benchmarks.trainings import past
from jobs.engine import checkpoints, interval
from jobs.run import events, story
from jobs.run.directory import Request, Run
from jobs.supervise import budget
from launch import status

ROOT: Path = repository.ROOT

EPOCHS, INTERRUPTIONS = (100, 1_000, 10_000), (10, 100, 1_000)
KEPT = (100, 1_000, 10_000)
"""Checkpoints in a directory where none is deleted."""
LINEAR = 1.5
"""Times in proportion to the past, with room for what a machine adds by itself: a longer past misses caches,
and is gone through more often by Python's garbage collector."""
BYTES = 64

SACCT = """#!/bin/sh
case "$*" in *--duplicates*) cat "$BATON_ROWS" ;; *) tail -n 1 "$BATON_ROWS" ;; esac
"""


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="the fastest of so many counts")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        stand_in(folder / "bin")
        runs = {
            (epochs, interruptions): made_run(folder / f"{epochs}-{interruptions}", epochs, interruptions)
            for epochs in EPOCHS
            for interruptions in INTERRUPTIONS
        }
        sizes = {key: sum(1 for _ in run.events.open()) for key, run in runs.items()}
        grow = {
            "events": measure(runs, read_events, rounds),
            "status": measure(runs, show_status, rounds),
            "resume": measure(runs, decide_resume, rounds),
        }
        kept = {number: directory_of(folder / f"kept-{number}", number) for number in KEPT}
        listing, newest, pruning = (
            {number: fastest(partial(work, run), rounds) for number, run in kept.items()}
            for work in (list_all, find_newest, prune_none)
        )
        steady = {epochs: save_after(folder / f"steady-{epochs}", epochs, rounds) for epochs in EPOCHS}

    large, middle = (EPOCHS[-1], INTERRUPTIONS[-1]), (EPOCHS[-2], INTERRUPTIONS[-2])

    def linear(times: dict[Any, float]) -> float:
        return times[large] / times[middle] / (sizes[large] / sizes[middle])

    def raw(times: dict[Any, float]) -> dict[str, Any]:
        return {
            "cpu_seconds": {f"{e} epochs, {i} interruptions": times[e, i] for e, i in times},
            "events": {f"{e} epochs, {i} interruptions": sizes[e, i] for e, i in times},
        }

    past_of = f"{EPOCHS[-1]:,} epochs and {INTERRUPTIONS[-1]:,} interruptions"
    against = "in proportion to a tenth of it"
    harness.record(
        "growth_events", f"reading the events of {past_of}", linear(grow["events"]), against=against,
        goal=LINEAR, better="lower", raw=raw(grow["events"]),
        note=f"{grow['events'][large]:.2f} s for {sizes[large]:,}",
    )  # fmt: skip
    harness.record(
        "growth_status", f"`status.py RUN` over {past_of}", linear(grow["status"]), against=against,
        goal=LINEAR, better="lower", raw=raw(grow["status"]), note=f"{grow['status'][large]:.2f} s",
    )  # fmt: skip
    harness.record(
        "growth_resume", f"what a resume reads of {past_of}", linear(grow["resume"]), against=against,
        goal=LINEAR, better="lower", raw=raw(grow["resume"]), note=f"{grow['resume'][large]:.2f} s",
    )  # fmt: skip
    most, fewer = KEPT[-1], KEPT[-2]
    worst = max(times[most] / times[fewer] / (most / fewer) for times in (listing, newest, pruning))
    harness.record(
        "growth_checkpoints", f"listing, finding and pruning among {most:,} checkpoints that are all kept",
        worst, against=against, goal=LINEAR, better="lower",
        raw={"listed": listing, "newest": newest, "prune": pruning},
        note=f"{listing[most]:.2f}, {newest[most]:.2f} and {pruning[most]:.2f} s",
    )  # fmt: skip
    harness.record(
        "growth_save", f"files and time of a save's pruning after {EPOCHS[-1]:,} epochs, 3 kept",
        steady[EPOCHS[-1]]["seconds"] / steady[EPOCHS[0]]["seconds"], against=f"after {EPOCHS[0]}",
        goal=LINEAR, better="lower", raw={"by_epochs": steady},
        note=f"{steady[EPOCHS[-1]]['files']} files",
    )  # fmt: skip
    return 0


def measure(
    runs: dict[tuple[int, int], Run], work: Callable[[Run], Any], rounds: int
) -> dict[tuple[int, int], float]:
    return {key: fastest(partial(work, run), rounds) for key, run in runs.items()}


def fastest(work: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of the fastest call: what else runs on a machine only makes it slower."""
    return min(cpu_seconds(work) for _ in range(rounds))


def cpu_seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    begin = time.process_time()
    work()
    return time.process_time() - begin


# ----------------------------------------------------------------------------------------------- the past


def made_run(path: Path, epochs: int, interruptions: int) -> Run:
    run = Run(path)
    run.job.mkdir(parents=True)
    run.write_request(
        Request(name=path.name, config="configs/demo.py", data_root="/data", created="2026-01-01T00:00:00Z")
    )
    starts = past.write(run.events, epochs, interruptions)
    for number in range(1, starts + 1):
        (run.job / f"start-{number}").touch()
    (path / "sacct").write_text("".join(accounting(run)))
    return run


def accounting(run: Run) -> Iterator[str]:
    """What `sacct --duplicates` tells of the run's job: a row for each of its incarnations."""
    began: float | None = None
    for event in events.iterate(run.events):
        now = events.seconds_of(event["time"])
        if event["event"] == "started":
            began = now
        elif event["event"] == "requeued" and began is not None:
            yield row("REQUEUED", began, now)
    yield row("RUNNING", began or 0.0, None)


def row(state: str, began: float, ended: float | None) -> str:
    start = datetime.fromtimestamp(began).isoformat(timespec="seconds")
    end = datetime.fromtimestamp(ended).isoformat(timespec="seconds") if ended else "Unknown"
    return f"4242|{state}|0:0|{start}|{end}|{start}|0|n1|None\n"


def stand_in(folder: Path) -> None:
    """A squeue that knows no job, and a sacct that knows all: real programs, as PATH would have them."""
    folder.mkdir()
    for name, text in (("squeue", "#!/bin/sh\n"), ("sacct", SACCT)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def read_events(run: Run) -> None:
    assert events.read(run.events)


def show_status(run: Run) -> None:
    """`python launch/status.py RUN --json`, without the start of the interpreter."""
    os.environ["BATON_ROWS"] = str(run.path / "sacct")
    given, sys.argv = sys.argv, ["status.py", str(run.path), "--json"]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            status.main()
    finally:
        sys.argv = given
        gc.enable()
    starts = json.loads(shown.getvalue())["starts"]
    assert len(starts) == len(list(run.job.glob("start-*"))), "not every start is shown"


def decide_resume(run: Run) -> None:
    """All that a start reads of the past: whether it may go on, and how often to save."""
    assert budget.verdict(story.read(run.events)).stop is None
    interval.past(story.read(run.events), start=1)


# ----------------------------------------------------------------------------------------------- checkpoints


def directory_of(path: Path, number: int) -> Run:
    """A run's directory with so many (small) checkpoints, all of them asked for by the config."""
    run = Run(path)
    run.checkpoints.mkdir(parents=True)
    run.job.mkdir()
    for epoch in range(1, number + 1):
        save(run, epoch)
    return run


def save(run: Run, epoch: int) -> None:
    """A valid checkpoint in an instant: `checkpoints.write` without fsync and torch."""
    file = run.checkpoints / f"epoch_{epoch}.pth"
    file.write_bytes(epoch.to_bytes(BYTES, "little"))
    manifest = {
        "step": epoch * 1323, "epoch": epoch, "position": 0, "world_size": 2, "global_batch": 8,
        "config_digest": "0" * 16, "why": "interval", "asked": True, "validation_due": False,
        "bytes": BYTES, "digest": checkpoints.digest(file), "start": 1, "time": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    file.with_name(f"{file.name}.json").write_text(json.dumps(manifest))


def list_all(run: Run) -> None:
    assert checkpoints.listed(run.checkpoints)


def find_newest(run: Run) -> None:
    assert checkpoints.newest(run.checkpoints)


def prune_none(run: Run) -> None:
    assert not prune(run, -1)


def prune(run: Run, most: int) -> list[Path]:
    return checkpoints.prune(run.checkpoints, most, run.job, 1)


def save_after(path: Path, epochs: int, rounds: int) -> dict[str, float]:
    """Trains no network, but saves and prunes after each of so many epochs; then the files that are there and
    the CPU seconds of the pruning behind one save more."""
    run = directory_of(path, 0)
    for epoch in range(1, epochs + 1):
        save(run, epoch)
        prune(run, 3)
    times = []
    for more in range(1, 20 * rounds + 1):
        save(run, epochs + more)
        times.append(cpu_seconds(lambda: prune(run, 3)))
    return {"files": len(list(run.checkpoints.iterdir())), "seconds": min(times)}


if __name__ == "__main__":
    sys.exit(main())
