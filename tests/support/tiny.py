"""Small data in the layout of VOC 2012, a run on it, and starts of its ranks: for tests that train."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.run.directory import Request, Run

ROOT = Path(__file__).resolve().parents[2]

# Importing torch and mmseg takes seconds; every start is forked from a server that has done so once.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "mmengine.runner", "tests.preload"])


def import_ahead() -> None:
    """Starts that server, which imports while this process goes on."""
    multiprocessing.forkserver.ensure_running()


def wait_for_imports() -> None:
    process = _context.Process(target=int)
    process.start()
    process.join()


def make_data(root: Path, train: int = 22, val: int = 6) -> Path:
    """Writes `train` + `val` pictures of coloured squares with their masks below `root`. Returns `root`."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"2008_{number:06d}" for number in range(train + val)]
    for name in names:
        image = random.integers(0, 60, (60, 80, 3)).astype(np.uint8)
        mask = np.zeros((60, 80), np.uint8)
        for label in random.integers(1, 5, 3):
            y, x = random.integers(0, 40), random.integers(0, 60)
            mask[y : y + 20, x : x + 20] = label
            image[y : y + 20, x : x + 20] = (label * 50, 255 - label * 50, label * 30)
        cv2.imwrite(str(base / "JPEGImages" / f"{name}.jpg"), image)
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            cv2.imwrite(str(base / folder / f"{name}.png"), mask)
    lists = base / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("\n".join(names[:train]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[train:]) + "\n")
    return root


def make_run(
    path: Path, data: Path, config: str = "tests/support/configs/tiny.py", /, **settings: Any
) -> Run:
    """A run directory whose code is this checkout. `settings` are overrides, with __ for dots."""
    run = Run(path)
    run.code.mkdir(parents=True)
    run.job.mkdir()
    for name in ("jobs", "configs", "tests"):
        (run.code / name).symlink_to(ROOT / name)
    (run.code / "data").symlink_to(data)
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    run.write_request(
        Request(
            name=path.name, config=config, data_root=str(data), created="2026-01-01T00:00:00Z", set=overrides
        )
    )
    return run


def start(run: Run, ranks: int = 1, plan: Any = None, timeout: float = 300) -> list[int]:
    """Starts all ranks of `run` once and waits for them. Returns their exit codes; -9 for SIGKILL.

    `plan` interrupts this start: see tests/interrupting.py. Once a rank has died of an error or a signal,
    the others are killed, as their supervisors would do.
    """
    number = claim(run)
    processes = []
    for rank, environment in enumerate(environments(ranks, number, plan)):
        log = run.job / f"{number}_{rank}_log.out"
        process = _context.Process(target=_rank, args=(str(run.path), environment, str(log)))
        process.start()
        processes.append(process)
    waiting = {process.sentinel: process for process in processes}
    try:
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), timeout)
            assert ready, f"ranks still run after {timeout} s: {log_of(run, number)}"
            for sentinel in ready:
                process = waiting.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode not in (0, 85):
                    for other in waiting.values():
                        other.kill()
    finally:
        for process in waiting.values():
            process.kill()
    return [process.exitcode for process in processes]  # type: ignore[misc]


def start_commands(run: Run, ranks: int = 1, plan: Any = None) -> list[int]:
    """As `start`, with real `python -m jobs.mmseg.rank RUN` commands: slower, nothing inherited."""
    number = claim(run)
    processes = []
    for rank, environment in enumerate(environments(ranks, number, plan)):
        with (run.job / f"{number}_{rank}_log.out").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-u", "-m", "jobs.mmseg.rank", str(run.path)],
                    cwd=run.code,
                    env=os.environ | environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        return [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()


def claim(run: Run) -> int:
    """The number of the next start."""
    number = len(list(run.job.glob("start-*"))) + 1
    (run.job / f"start-{number}").touch(exist_ok=False)
    return number


def environments(ranks: int, number: int, plan: Any) -> list[dict[str, str]]:
    """What a supervisor tells each of `ranks` ranks of start `number`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "BATON_START": str(number),
            "OMP_NUM_THREADS": "1",
            "INTERRUPT": json.dumps(plan or {}),
        }
        for rank in range(ranks)
    ]


def beats_of(run: Run, number: int) -> list[tuple[str, int]]:
    """The heartbeats of rank 0 in start `number`: phase and step."""
    text = (run.job / f"{number}_0_log.beats").read_text()
    return [(beat["phase"], beat["step"]) for beat in map(json.loads, text.splitlines())]


def log_of(run: Run, number: int) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(run.job.glob(f"{number}_*_log.out")))


def run_job(run: Run, job: str, *arguments: str, timeout: float) -> None:
    """What `python -m jobs.JOB RUN …` does in RUN/code, in a process that has torch already.

    Raises AssertionError, with its output, if it does not end well.
    """
    call(run.job / f"{job}.out", _job, str(run.path), job, list(arguments), timeout=timeout)


def call(log: Path, function: Callable[..., object], *arguments: Any, timeout: float = 300) -> None:
    """Calls a module's function in a process that has torch already, its output in `log`.

    Raises AssertionError, with its output, if it does not end well.
    """
    process = _context.Process(target=_call, args=(str(log), function, *arguments))
    process.start()
    try:
        process.join(timeout)
    finally:
        process.kill()
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]


def _call(log: str, function: Callable[..., object], *arguments: Any) -> None:
    _write_to(log)
    function(*arguments)


def _write_to(log: str) -> None:
    threading.Thread(target=_end_with_tests, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _end_with_tests() -> None:
    """Their process may be killed, and a rank may wait for another for ever."""
    tests = multiprocessing.parent_process()
    assert tests
    tests.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _job(run: str, job: str, arguments: list[str]) -> None:
    _enter(run)
    sys.argv = [job, run, *arguments]
    sys.exit(importlib.import_module(f"jobs.{job}.__main__").main())


def _enter(run: str) -> None:
    """Works in RUN/code and imports from there, as `python -m` does."""
    os.chdir(Path(run) / "code")
    sys.path.insert(0, os.getcwd())


def _rank(run: str, environment: dict[str, str], log: str) -> None:
    """What `python -m jobs.mmseg.rank RUN` does in RUN/code, in a process that has torch already."""
    _write_to(log)
    os.environ.update(environment)
    # What a supervisor would read.
    beats = Path(log).with_suffix(".beats")
    os.environ["BATON_HEARTBEAT_FD"] = str(os.open(beats, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    _enter(run)
    sys.argv = ["rank", run]
    from jobs.mmseg import rank

    sys.exit(rank.main())


def final_state(run: Run) -> dict[str, Any]:
    """All of a finished run that must not depend on its interruptions: its last checkpoint without times, and
    the metrics by step."""
    from jobs.engine import checkpoints
    from jobs.mmseg import compat

    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None
    content = compat.load(newest.path)
    own = content["baton"]
    history = {key: value for key, value in own["history"].items() if not key.endswith("time")}
    state = {
        key: content[key]
        for key in ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")
        if key in content
    }
    return state | {
        "step": (own["step"], own["epoch"], own["position"]),
        "ranks": own["ranks"],
        "history": history,
        "metrics": metrics(run),
        "draws": draws(run),
        "best": json.loads((run.checkpoints / "best.json").read_text()),
    }


def metrics(run: Run) -> dict[tuple[str, int], dict[str, float]]:
    """metrics.jsonl by (kind, step), the newest start's line winning, without times."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for line in run.metrics.read_text().splitlines():
        record = json.loads(line)
        for key in ("time", "data_time", "start"):
            record.pop(key, None)
        found[record.pop("kind"), record["step"]] = record
    return found


def draws(run: Run) -> dict[tuple[str, str, int], float]:
    """What the hook RecordDraws drew, by rank, place and step, the newest start's winning."""
    found = {}
    for path in sorted(run.job.glob("draws-*.jsonl")):
        rank = path.stem.rsplit("-", 1)[1]
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found[rank, record["kind"], record["step"]] = record["draw"]
    return found


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two states differ in any bit; [] if nowhere."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        # As bytes, so that NaN equals itself and -0 does not equal 0.
        x, y = (one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b))
        same = same and torch.equal(x, y)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}.{key}: only in one" for key in a.keys() ^ b.keys()]
        return found + [
            d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}.{key}")
        ]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} long"]
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")
        ]
    return [] if repr(a) == repr(b) else [f"{where}: {a!r} != {b!r}"]
