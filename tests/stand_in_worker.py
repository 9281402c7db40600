"""A worker without torch, on jobs/worker, for the tests of what is around it: it does as it is told.

    python stand_in_worker.py PLAN

PLAN is a JSON file (or a run directory with plan.json in it)
{"steps": 30, "seconds": 0.05, "save_every": 10, "faults": [...]}; a fault is
{"start": 1, "rank": 2, "step": 5, "do": "raise" | "exit N" | "kill" | "segv" | "hang" | "fork" | "deaf" |
"assert" | "abort" | "cublas" | "slow" | "babble"} (abort, cublas: what HIP and CUDA make of a wrong label;
slow: its saves never end; babble: what is no sign of life, where those go)
It "trains" by counting, saves RUN/checkpoints/count on rank 0 (unless fenced off), and on USR2 or TERM saves
and leaves with 85.
With `finish_when_asked` it finishes then instead, whatever is left to do.
With several ranks they agree through files on whether to leave, as the real ones do by a reduction.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs.run import files
from jobs.run.directory import write_atomically
from jobs.supervise import heartbeat
from jobs.worker import Worker

heartbeat.INTERVAL = 0.0
"""Its steps take milliseconds, and who stands still at which is what tests ask: each is told."""

slow: list[bool] = []

BABBLE = (
    *(b"[" * 100_000, b"[]", b"null", b"\xff", b'{"phase": "train", "at": 1e999}', b'{"at": ' + b"9" * 400),
    *(b'{"phase": "train", "step": "\\ud800"}', b'{"phase": "train", "step": ' + b"9" * 30 + b"}"),
    b'{"phase": "train", "step": {"a": 1}}',
)


def count_file(worker: Worker) -> Path:
    return worker.run.checkpoints / "count"


def save(worker: Worker, step: int, why: str) -> None:
    if not worker.main:
        return
    worker.check_fence()
    worker.beat("save", step)
    while slow:
        time.sleep(1)
    try:
        write_atomically(count_file(worker), str(step).encode())
    except OSError as error:  # a full disk costs a checkpoint
        worker.report("checkpoint_failed", step=step, reason=str(error))
        return
    worker.report(
        "checkpoint", step=step, epoch=0, path="checkpoints/count", bytes=1, seconds=0.0, why=why
    )  # fmt: skip


def all_agree(worker: Worker, step: int) -> bool:
    """Whether any rank was asked to leave; every rank gives the same answer. A lost peer raises."""
    if worker.ranks == 1:
        return worker.asked
    job, start = worker.run.job, worker.start
    write_atomically(job / f"vote-{start}-{step}-{worker.rank}", str(int(worker.asked)).encode())
    votes = []
    deadline = time.monotonic() + 60
    for other in range(worker.ranks):
        path = job / f"vote-{start}-{step}-{other}"
        while not path.exists():
            if time.monotonic() > deadline:
                raise ConnectionError(f"gloo: rank {other} did not vote: Connection closed by peer")
            time.sleep(0.005)
        votes.append(int(path.read_text()))
    return any(votes)


def misbehave(worker: Worker, what: str) -> None:
    job, mark = worker.run.job, f"{worker.start}-{worker.rank}"
    (job / f"died-{mark}").touch()
    if what == "raise":
        raise ValueError(f"a bad batch in rank {worker.rank}")
    if what == "assert":
        raise RuntimeError("CUDA error: device-side assert triggered")
    if what == "nccl":  # as torch tells it
        raise RuntimeError(
            "NCCL error in: NCCLUtils.cpp:93, invalid usage, NCCL version 2.28.9\n"
            "Last error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 60"
        )
    if what == "abort":  # as HIP does it
        print(
            "Loss.hip:104: Device-side assertion `t >= 0 && t < n_classes' failed.",
            file=sys.stderr,
            flush=True,
        )
        os.abort()
    if what == "cublas":  # as CUDA may: thousands of lines of the kernel, and what failed after it
        for thread in range(2000):
            where = f"Loss.cu:104: nll_loss2d: block: [0,0,0], thread: [{thread},0,0]"
            print(f"{where} Assertion `t < n_classes` failed.", file=sys.stderr)
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`")
    if what.startswith("exit"):  # as native code may: nothing of Python's hears of it
        os._exit(int(what.split()[1]))
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "segv":
        ctypes.string_at(0)
    if what == "hang":
        while True:
            time.sleep(1)
    if what == "fork":
        # A child and a grandchild that hear no signal and have left the session, as bad as it gets.
        sleep = "[sys.executable, '-c', 'import time; time.sleep(600)']"
        code = f"import subprocess as s, sys, time; s.Popen({sleep}, start_new_session=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        (job / f"child-{mark}").write_text(str(child.pid))
    if what == "slow":
        slow.append(True)
    if what == "babble":
        fd = int(os.environ["BATON_HEARTBEAT_FD"])
        os.set_blocking(fd, True)
        for line in BABBLE:
            os.write(fd, line + b"\n")
        os.set_blocking(fd, False)
        error = worker.run.job / files.ERROR(START=worker.start, RANK=worker.rank)
        error.write_bytes(b"[" * 100_000)
        os._exit(3)
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def lives(pid: str) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
    except (FileNotFoundError, ProcessLookupError):
        return False


def train(worker: Worker, plan: dict[str, Any]) -> None:
    start, job = worker.start, worker.run.job
    # What an earlier start has left running, on whichever node.
    pids = [file.read_text() for file in job.glob("child-*") if int(file.name.split("-")[1]) < start]
    left = [pid for pid in pids if lives(pid)]
    write_atomically(job / f"left-{start}-{worker.rank}", " ".join(left).encode())
    time.sleep(plan.get("start_seconds", 0))
    worker.run.checkpoints.mkdir(exist_ok=True)
    step = int(count_file(worker).read_text()) if count_file(worker).exists() else 0
    if step:
        worker.report("resumed", step=step, epoch=0, checkpoint="checkpoints/count")
    mine = ((start, "*"), (worker.rank, "*"))
    faults = [one for one in plan.get("faults", []) if one["start"] in mine[0] and one["rank"] in mine[1]]
    while step < plan["steps"]:
        for fault in faults:
            if fault["step"] == step:
                misbehave(worker, fault["do"])
        time.sleep(plan["seconds"])
        step += 1
        worker.beat("train", step)
        if all_agree(worker, step):
            if plan.get("finish_when_asked"):
                break
            save(worker, step, "preempted")
            worker.preempted(step)
        if step % plan["save_every"] == 0:
            save(worker, step, "interval")
    worker.finish(step)
    for fault in faults:
        if fault["step"] == plan["steps"]:  # on the way out
            misbehave(worker, fault["do"])


if __name__ == "__main__":
    given = Path(sys.argv[1])
    with Worker() as worker_:
        train(worker_, json.loads((given / "plan.json" if given.is_dir() else given).read_text()))
