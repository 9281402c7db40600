"""`python -m jobs.train RUN`: one task of a training job. It supervises; its worker trains (rank.py).

Started N times by srun or by the local chain. Read downwards; then supervise.py, coordinate.py, and what the
batch script does afterwards: afterwards.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from jobs import events, exit_codes
from jobs.errors import UserError, run_command
from jobs.run_directory import Run
from jobs.train import budget, processes, rendezvous
from jobs.train.supervise import supervise
from jobs.train.task import Task, read

RENDEZVOUS_SECONDS = 300.0
HANG_MINUTES = 10.0


def main() -> int:
    arguments = _arguments()
    # First of all, so that a preemption is not missed: it is passed on when the worker can hear it.
    signals: list[signal.Signals] = []
    wakeup = processes.wake_on_signals(signals.append, *processes.CATCHABLE)
    processes.adopt_orphans()
    task = read()
    run = Run(Path(arguments.run).resolve())
    if not run.path.is_dir():
        raise UserError(f"there is no run directory {run.path}")
    run.job.mkdir(exist_ok=True)
    start = claim_start(run, task) if task.rank == 0 else None
    stop = budget.verdict(budget.read(run.events)).stop if task.rank == 0 else None
    try:
        meeting = rendezvous.meet(task, rendezvous.secret(run.job), rendezvous_seconds(), start, stop)
    except rendezvous.RendezvousError as error:
        print(f"error: {error}", file=sys.stderr)
        if task.rank == 0:
            events.append(
                run.events, "failed", stage="train", job=task.job, start=start, reason=str(error), rank=0,
                host=task.host, error=str(error),
            )  # fmt: skip
        return exit_codes.FAILED
    if meeting.stop is not None:
        if task.rank == 0:
            print(f"error: {meeting.stop}", file=sys.stderr)
            events.append(
                run.events, "stopped", stage="train", job=task.job, start=start, reason=meeting.stop
            )
        return exit_codes.FAILED
    if task.rank == 0:
        events.append(
            run.events, "started", stage="train", job=task.job, start=start, restart=task.restart,
            hosts=list(dict.fromkeys(meeting.hosts)), world_size=task.world_size, pid=os.getpid(),
            ranks_per_node=max(meeting.hosts.count(host) for host in meeting.hosts),
        )  # fmt: skip
    command = arguments.worker or [sys.executable, "-u", "-m", "jobs.train.rank", str(run.path)]
    return supervise(
        run, task, meeting, command, hang_seconds=hang_seconds(run), environ=os.environ, wakeup=wakeup,
        signals=signals,
    )  # fmt: skip


def claim_start(run: Run, task: Task) -> int:
    """The next number of a start of this run. The file that claims it also says who: an older start that
    finds a newer one here knows that it is no longer the one (fencing)."""
    taken = [int(path.name.removeprefix("start-")) for path in run.job.glob("start-*")]
    number = max(taken, default=0) + 1
    owner = {
        "job": task.job,
        "restart": task.restart,
        "step": task.step,
        "host": task.host,
        "pid": os.getpid(),
    }
    while True:
        try:
            with (run.job / f"start-{number}").open("x") as file:
                json.dump(owner | {"time": events.now()}, file)
            return number
        except FileExistsError:
            number += 1


def rendezvous_seconds() -> float:
    return float(os.environ.get("BATON_RENDEZVOUS_SECONDS", RENDEZVOUS_SECONDS))


def hang_seconds(run: Run) -> float:
    """How long a step may take before the run counts as hung: BATON_HANG_SECONDS, the cluster profile's
    `hang_minutes`, or 10 minutes."""
    if "BATON_HANG_SECONDS" in os.environ:
        return float(os.environ["BATON_HANG_SECONDS"])
    profile = run.request().cluster if run.request_file.exists() else {}
    return 60.0 * float(profile.get("hang_minutes", HANG_MINUTES))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument(
        "--worker", nargs=argparse.REMAINDER, help="run this program as the worker instead (for tests)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
