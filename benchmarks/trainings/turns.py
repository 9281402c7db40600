"""Several trainings that are up at once and take turns, so that slow changes of the machine (its clock, its
other guests) meet all of them alike: differences of a percent show within minutes."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.trainings import start
from jobs.run.directory import Run
from jobs.supervise import processes

WARM_UP, UNTIMED = 16, 4


class Training(NamedTuple):
    side: str
    run: Run
    """With the hook of `hook`, and as many steps as `steps_for` says."""
    ranks: int


def hook(run: Path, timed: int) -> dict[str, Any]:
    address = str(run / "turns")
    return {"type": "Turns", "address": address, "warm_up": WARM_UP, "untimed": UNTIMED, "timed": timed}


def steps_for(blocks: int, timed: int) -> int:
    return WARM_UP + blocks * (UNTIMED + timed) + 1


class Taken(NamedTuple):
    """By name of the training, a figure for each block; those of the same index were measured next to each
    other."""

    seconds: dict[str, list[float]]
    """Wall clock, a step."""
    cpu: dict[str, list[float]]
    """CPU time of all the training's processes together, a block."""


def take(trainings: dict[str, Training], blocks: int) -> Taken:
    """Lets the trainings take their turns, and runs them to their end. Raises RuntimeError if one fails."""
    figures: dict[str, list[float]] = {name: [] for name in trainings}
    cpu: dict[str, list[float]] = {name: [] for name in trainings}
    started, lines = {}, {}
    try:
        # One after the other: no import is slowed down by a neighbour's.
        for name, training in trainings.items():
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(training.run.path / "turns"))
                listener.listen()
                started[name] = start.start(*training)
                lines[name] = _accept(listener, started[name], training.run)
            _turn_ends(lines[name], started[name], training.run)  # its warm-up
        for number in range(blocks):
            names = list(trainings)
            for name in names if number % 2 == 0 else reversed(names):
                before = _cpu_seconds(started[name])
                _go(lines[name])
                figures[name].append(_turn_ends(lines[name], started[name], trainings[name].run))
                cpu[name].append(_cpu_seconds(started[name]) - before)
        for name, training in trainings.items():
            _go(lines[name])  # the last step, and the end
            start.wait(training.run, started[name])
    finally:
        for process in [process for ranks in started.values() for process in ranks]:
            process.kill()
    return Taken(figures, cpu)


def ratios(ours: list[float], peer: list[float]) -> list[float]:
    """Of each block to the other's next to it."""
    return [a / b for a, b in zip(ours, peer, strict=True)]


def uncertainty(figures: list[float]) -> float:
    """The standard error of the median of these, if they are normally distributed."""
    return 1.2533 * statistics.stdev(figures) / len(figures) ** 0.5


def _cpu_seconds(started: list[subprocess.Popen[bytes]]) -> float:
    """Of these processes and all that they have started and that live."""
    pids = [pid for process in started for pid in (process.pid, *processes.descendants(process.pid))]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _accept(listener: socket.socket, started: list[subprocess.Popen[bytes]], run: Run) -> Any:
    listener.settimeout(0.5)
    while True:
        with contextlib.suppress(TimeoutError):
            return listener.accept()[0].makefile("rw")
        if any(process.poll() is not None for process in started):
            start.wait(run, started)
            raise RuntimeError(f"{run.path} ended before its first step")


def _go(line: Any) -> None:
    line.write("go\n")
    line.flush()


def _turn_ends(line: Any, started: list[subprocess.Popen[bytes]], run: Run) -> float:
    received = line.readline()
    if not received:
        start.wait(run, started)
        raise RuntimeError(f"{run.path} ended before its last step")
    return float(received)
