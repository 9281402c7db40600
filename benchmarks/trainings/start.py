"""Runs of either side, and their starts."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.run.directory import Run
from jobs.run.exit_codes import FINISHED, RESUME
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "benchmarks/trainings/recipe.py"
SIDES = {
    # The whole command of a job's task: supervisor, rendezvous, and the worker that trains.
    "ours": [sys.executable, "-u", "-m", "jobs.train"],
    "peer": [sys.executable, "-u", "-m", "benchmarks.trainings.peer"],
}


def make_run(path: Path, data: Path, config: str, hook: dict[str, Any], **settings: Any) -> Run:
    """A run directory for either side; `hook` (hooks.py) measures it. `settings`: overrides, __ for dots."""
    run = tiny.make_run(path, data, config, custom_hooks=[hook], **settings)
    (run.code / "benchmarks").symlink_to(ROOT / "benchmarks")
    request = run.request()
    request.set["custom_imports"] = {"imports": ["benchmarks.trainings.hooks"], "allow_failed_imports": False}
    request.set.setdefault("baton.save_seconds", 0)
    run.write_request(request)
    return run


def endless_list(data: Path, length: int = 10_582) -> Path:
    """Makes the training list of `data` as long as the recipe's, from the pictures there are. Returns it."""
    path = data / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"
    names = path.read_text().split()
    path.write_text("".join(f"{names[number % len(names)]}\n" for number in range(length)))
    return data


def environment() -> dict[str, str]:
    """What either side's processes are started with. BEGAN is the time."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "BEGAN": repr(time.time())}


def start(side: str, run: Run, ranks: int = 1, command: Sequence[str] = ()) -> list[subprocess.Popen[bytes]]:
    """Starts all ranks of one side, or a command of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    number = len(list(run.path.glob("log-*-0.out")))
    base = environment()
    started = []
    for rank in range(ranks):
        ours = {"JOB_ID": f"{os.getpid()}-{number}", "NTASKS": ranks, "GLOBALID": rank, "LOCALID": rank}
        peer = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        peer |= {"MASTER_ADDR": "127.0.0.1"}
        place = {f"SUBMITIT_LOCAL_{key}": value for key, value in ours.items()} if side == "ours" else peer
        with (run.path / f"log-{number}-{rank}.out").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [*(command or SIDES[side]), str(run.path)],
                    cwd=run.code,
                    env=base | {key: str(value) for key, value in place.items()},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def wait(run: Run, started: list[subprocess.Popen[bytes]]) -> None:
    """Waits for all ranks. Raises RuntimeError with the end of their logs if one fails."""
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
    if any(code not in (FINISHED, RESUME) for code in codes):
        logs = sorted(run.path.glob("log-*.out"), key=lambda path: path.stat().st_mtime)[-len(started) :]
        text = "\n".join(path.read_text()[-3000:] for path in logs)
        raise RuntimeError(f"{run.path} ended with {codes}: {text}")


def result(side: str, run: Run, ranks: int = 1, command: Sequence[str] = ()) -> Any:
    """Trains one side to its end; what its hook has written to RUN/result.json."""
    path = run.path / "result.json"
    path.unlink(missing_ok=True)
    wait(run, start(side, run, ranks, command))
    return json.loads(path.read_text())


class Peers:
    """The peer's command for several trainings of one rank, one after another (peer.py); a context."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __enter__(self) -> Peers:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                SIDES["peer"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def train(self, run: Run) -> None:
        """The first run's BEGAN is the time at which the command was started; the others have none.

        Raises RuntimeError, with the end of the log, if the training fails.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{run.path}\n")
        self.process.stdin.flush()
        if (answer := self.process.stdout.readline()) != "0\n":
            raise RuntimeError(f"{run.path} ended with {answer.strip()}: {self.log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def delete(run: Run) -> None:
    shutil.rmtree(run.path)
