"""`python -m jobs.train RUN`: one task of a training job. It supervises; its worker trains
(jobs/mmseg/rank.py, or the program that `train.py --worker` was given).

Started N times by srun or by the local chain. Read downwards; then supervisor.py, coordinate.py, and what the
batch script does afterwards: afterwards.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jobs.run import environment, events, exit_codes, files, image, story
from jobs.run.directory import Run, newest_start
from jobs.run.errors import UserError, run_command
from jobs.run.past import History
from jobs.run.settings import Settings
from jobs.run.streams import TolerantStream
from jobs.run.task import Task, read
from jobs.slurm import successor
from jobs.slurm.commands import SBATCH_SECONDS
from jobs.supervise import budget, processes, rendezvous
from jobs.supervise.supervisor import supervise

RENDEZVOUS_SECONDS = 300.0
LAST_WORDS_SECONDS = 2.0
"""How long to retry events that a full disk has delayed, at the end."""
CANCELLED = "the run was cancelled; python launch/train.py --resume {run} goes on with it"
"""Said if, for example, a run was cancelled while its job was being requeued: it must not train again."""
FINISHED = "the training is finished"
"""Said to all ranks by the start of a job that Slurm has requeued although it was done, or of its successor
(jobs/supervise/afterwards.py)."""
T = TypeVar("T")


def main() -> int:
    arguments = _arguments()
    sys.stdout, sys.stderr = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
    # First of all, so that no preemption is missed: it is forwarded once the worker can handle it.
    signals: list[signal.Signals] = []
    wakeup = processes.wake_on_signals(signals.append, *processes.CATCHABLE)
    processes.adopt_orphans()
    task = read()
    run = Run(Path(arguments.run).resolve())
    if not run.path.is_dir():
        raise UserError(f"there is no run directory {run.path}")
    run.job.mkdir(exist_ok=True)
    # Rank 0 decides: it reads the run's events, which start this is, and whether it may run.
    past = story.attempt(run.events) if task.rank == 0 else None
    start, stop, cancelled = None, None, False
    writer = events.Writer(run.events, stage="train", job=task.job)
    try:
        if task.rank == 0:
            start = writer.common["start"] = with_retries(lambda: claim_start(run, task))
            past = announced(run, task.job, past)
            cancelled = (run.job / files.CANCELLED()).exists()
            stop = CANCELLED.format(run=run.name) if cancelled else unfit() or budget.verdict(past).stop
            stop = FINISHED if is_finished(run, task.job, past or History()) else stop
        meeting = with_retries(lambda: rendezvous.meet(task, run.job, rendezvous_seconds(), start, stop))
    except (rendezvous.RendezvousError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if task.rank == 0:
            writer.append("failed", reason=str(error), rank=0, host=task.host, error=str(error))
        return exit_codes.FAILED
    writer.common["start"] = meeting.start
    if meeting.stop == FINISHED:
        if task.rank == 0:
            print(f"baton: {FINISHED}: there is nothing left to do", flush=True)
        return exit_codes.FINISHED
    if meeting.stop is not None:
        if task.rank == 0:
            print(f"error: {meeting.stop}", file=sys.stderr)
            if not cancelled:
                writer.append("stopped", reason=meeting.stop)
        return exit_codes.FAILED
    if task.rank == 0:
        note_predecessor(run, task, writer, past or History())
        writer.append(
            "started", restart=task.restart, hosts=list(dict.fromkeys(meeting.hosts)),
            world_size=task.world_size, pid=os.getpid(),
            ranks_per_node=max(meeting.hosts.count(host) for host in meeting.hosts),
        )  # fmt: skip
    command, folder = (arguments.worker, None) if arguments.worker else worker_command(run)
    code = supervise(
        run, task, meeting, command, folder, writer,
        hang_seconds=hang_seconds(run), environ=worker_environment(), wakeup=wakeup, signals=signals,
        last_checkpoint=(past or History()).last_checkpoint(),
    )  # fmt: skip
    writer.flush(LAST_WORDS_SECONDS)
    processes.ignore_signals()
    return code


def unfit() -> str | None:
    """Why this interpreter could not train and resume; None if it can. Checked at every start: the
    environment may have changed, and a job submitted without a launcher has not been checked."""
    wrong = environment.problems()
    return f"{sys.executable} could not train and resume a run: {', '.join(wrong)}" if wrong else None


def worker_command(run: Run) -> tuple[list[str], Path | None]:
    """The program that trains, and the folder to start it in (None: this one): what the run was submitted
    with as `--worker`, which may write where it starts, else MMSegmentation's."""
    own = run.request().worker if run.request_file.exists() else []
    if own:
        code = os.environ.get(image.VARIABLE, str(run.code))
        return [sys.executable, "-u", os.path.join(code, own[0]), *own[1:]], run.code
    return [sys.executable, "-u", "-m", "jobs.mmseg.rank", str(run.path)], None


def worker_environment() -> dict[str, str]:
    """This process's environment, with this folder (the run's `code/`) on PYTHONPATH."""
    more = os.environ.get("PYTHONPATH")
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *([more] if more else [])])}


def claim_start(run: Run, task: Task) -> int:
    """Claims the run's next start number with a file that also names the owner: an older start that finds a
    newer one here knows that it has been fenced off."""
    number = newest_start(run.job) + 1
    owner = {
        "job": task.job,
        "restart": task.restart,
        "step": task.step,
        "host": task.host,
        "pid": os.getpid(),
    }
    while True:
        try:
            fd = os.open(run.job / files.START(N=number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            number += 1
            continue
        # On a full disk, the file may stay empty: its existence is the claim.
        with contextlib.suppress(OSError), os.fdopen(fd, "w") as file:
            json.dump(owner | {"time": events.now()}, file)
        return number


def announced(run: Run, job: str, past: History | None) -> History | None:
    """The run's history; of one that was stopped and has been resumed, with this job's submission, which the
    launcher notes only when the evaluation is submitted, too: until then the run would still be stopped."""
    deadline = time.monotonic() + SBATCH_SECONDS
    while past and f"train {job}" not in past.jobs and os.environ.get("SLURM_JOB_ID"):
        try:
            resumed = run.request_file.stat().st_mtime > (past.stopped_at or 0.0)
        except OSError:
            break
        if not resumed or not budget.verdict(past).stop or time.monotonic() > deadline:
            break
        time.sleep(0.5)
        past = story.attempt(run.events)
    return past


def is_finished(run: Run, job: str, past: History) -> bool:
    """Whether this job, or the one that it continues, has finished the training. Any other job that starts a
    finished run was submitted to train on, for example for more epochs."""
    ours = {job, successor.predecessor(run, job)}
    return past.finished_by in (ours | past.predecessors(job)) - {None}


def note_predecessor(run: Run, task: Task, writer: events.Writer, past: History) -> None:
    """Records, on behalf of a job that was killed, that this job is its successor."""
    before = successor.predecessor(run, task.job)
    if before and not past.predecessors(task.job):
        writer.append("requeued", job=before, start=None, how="successor", successor=task.job)


def with_retries(action: Callable[[], T]) -> T:
    """The result of `action`, retried while the disk is full, for half the time in which the ranks must meet.
    Then raises its OSError."""
    deadline = time.monotonic() + rendezvous_seconds() / 2
    while True:
        try:
            return action()
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            print(f"trying again: {error}", file=sys.stderr, flush=True)
            time.sleep(1.0)


def rendezvous_seconds() -> float:
    return float(os.environ.get("BATON_RENDEZVOUS_SECONDS", RENDEZVOUS_SECONDS))


def hang_seconds(run: Run) -> float:
    """How long a step may take before the run counts as hung: BATON_HANG_SECONDS, the cluster profile's
    `hang_minutes`, or its default."""
    if "BATON_HANG_SECONDS" in os.environ:
        return float(os.environ["BATON_HANG_SECONDS"])
    settings = run.request().cluster if run.request_file.exists() else Settings()
    return 60.0 * settings.hang_minutes


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument(
        "--worker", nargs=argparse.REMAINDER, help="run this program as the worker instead (for tests)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
