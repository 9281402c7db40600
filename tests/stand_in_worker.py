"""A worker without torch for the tests of what is around it: does as told, and else behaves as rank.py.

    python stand_in_worker.py PLAN

PLAN is a JSON file (or a run directory with plan.json in it)
{"steps": 30, "seconds": 0.05, "save_every": 10, "faults": [...]}; a fault is
{"start": 1, "rank": 2, "step": 5, "do": "raise" | "exit N" | "kill" | "segv" | "hang" | "fork" | "deaf" |
"slow"} (slow: its saves never end).
It "trains" by counting, saves RUN/checkpoints/count on rank 0 (unless fenced off), and on USR2 or TERM saves
and leaves with 85.
With `finish_when_asked` it finishes then instead, whatever is left to do.
With several ranks they agree through files on whether to leave, as the real ones do by a reduction.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.run import events
from jobs.run.directory import Run, newest_start, write_atomically
from jobs.run.exit_codes import SUPERSEDED

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
start = int(os.environ["BATON_START"])
run = Run(os.environ["BATON_RUN"])
given = Path(sys.argv[1])
plan = json.loads((given / "plan.json" if given.is_dir() else given).read_text())
asked: list[int] = []
slow: list[bool] = []


def beat(phase: str, step: int) -> None:
    line = json.dumps({"phase": phase, "step": step, "at": time.monotonic()}) + "\n"
    os.write(int(os.environ["BATON_HEARTBEAT_FD"]), line.encode())


story = events.Writer(run.events, stage="train", job=os.environ["BATON_JOB"], start=start)


def event(name: str, **fields: object) -> None:
    if rank == 0:
        story.append(name, **fields)


def count_file() -> Path:
    return run.checkpoints / "count"


def save(step: int, why: str) -> None:
    if rank == 0:
        if newest_start(run.job) > start:
            sys.exit(SUPERSEDED)
        beat("save", step)
        while slow:
            time.sleep(1)
        try:
            write_atomically(count_file(), str(step).encode())
        except OSError as error:  # a full disk costs a checkpoint
            event("checkpoint_failed", step=step, reason=str(error))
            return
        event("checkpoint", step=step, epoch=0, path="checkpoints/count", bytes=1, seconds=0.0, why=why)


def all_agree(step: int) -> bool:
    """Whether any rank was asked to leave; every rank gives the same answer. A lost peer raises."""
    if world == 1:
        return bool(asked)
    mine = run.job / f"vote-{start}-{step}-{rank}"
    write_atomically(mine, str(len(asked)).encode())
    votes = []
    deadline = time.monotonic() + 60
    for other in range(world):
        path = run.job / f"vote-{start}-{step}-{other}"
        while not path.exists():
            if time.monotonic() > deadline:
                raise ConnectionError(f"gloo: rank {other} did not vote: Connection closed by peer")
            time.sleep(0.005)
        votes.append(int(path.read_text()))
    return any(votes)


def misbehave(what: str) -> None:
    (run.job / f"died-{start}-{rank}").touch()
    if what == "raise":
        raise ValueError(f"a bad batch in rank {rank}")
    if what.startswith("exit"):
        sys.exit(int(what.split()[1]))
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
        (run.job / f"child-{start}-{rank}").write_text(str(child.pid))
    if what == "slow":
        slow.append(True)
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda n, _: asked.append(n))
    stacks = (run.job / f"stacks-{start}-{rank}.txt").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    beat("start", 0)
    # What an earlier start has left running, on whichever node.
    pids = [file.read_text() for file in run.job.glob("child-*") if int(file.name.split("-")[1]) < start]
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    write_atomically(run.job / f"left-{start}-{rank}", " ".join(left).encode())
    time.sleep(plan.get("start_seconds", 0))
    run.checkpoints.mkdir(exist_ok=True)
    step = int(count_file().read_text()) if count_file().exists() else 0
    if step:
        event("resumed", step=step, epoch=0, checkpoint="checkpoints/count")
    faults = [f for f in plan.get("faults", []) if f["start"] in (start, "*") and f["rank"] in (rank, "*")]
    while step < plan["steps"]:
        for fault in faults:
            if fault["step"] == step:
                misbehave(fault["do"])
        time.sleep(plan["seconds"])
        step += 1
        beat("train", step)
        if all_agree(step):
            if plan.get("finish_when_asked"):
                break
            save(step, "preempted")
            event("preempted", step=step, epoch=0)
            # At its end Python takes the handlers away, and a second signal would kill.
            os._exit(85)
        if step % plan["save_every"] == 0:
            save(step, "interval")
    event("finished", step=step, epoch=0)
    beat("end", step)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        record = {"error": f"{type(error).__name__}: {error}", "traceback": ""}
        write_atomically(run.job / f"error-{start}-{rank}.json", json.dumps(record).encode())
        raise
