"""A whole run on one machine without Slurm: prepare, then train until it is finished, then evaluate.

submitit's local executor starts one task, this chain, which adds what that executor lacks. The stages depend
on each other; a training that was preempted or failed is started again, within the same budget as on a
cluster; a dead rank ends its stage; the chain has its own session, so neither Ctrl-C nor the end of the
terminal reaches it; several chains share the machine's GPUs; and however it ends, its children end with it.

Signals: TERM or INT cancels (the ranks save and exit, and the run can be resumed), a second one kills at
once; USR2 is a preemption (the ranks save, exit, and are started again). The process is recorded in
RUN/job/local.json (for an evaluation or inference by hand, in RUN/job/local-PID.json while it is alive).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from jobs.run import events, exit_codes, files, place, private, story
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UserError
from jobs.run.stages import LEAVING, Stage
from jobs.run.streams import TolerantStream
from jobs.slurm import successor
from jobs.supervise import afterwards, processes

LEAVE_SECONDS = 120.0
"""How long the tasks of a cancelled stage may take to save and exit."""
FOLLOW_SECONDS = 30.0
"""How long the other tasks of a stage may continue after one has failed."""


def chain(run_path: str, stages: Sequence[Stage]) -> int:
    """Runs the stages one after the other, each only if the one before succeeded. Returns the exit code.

    0: all done. 85: cancelled, and resumable by running the same chain again. Otherwise that of the failed
    stage. Raises UserError if a chain of this run is already running.
    """
    return _Chain(Run(Path(run_path).resolve())).run(stages)


class _Chain:
    def __init__(self, run: Run) -> None:
        self.run_directory = run
        self.signals: list[signal.Signals] = []
        self.cancelled = 0
        self.owner = False
        self.job = _job_id()
        self.writer = events.Writer(run.events, job=self.job)
        self.restart = 0

    def run(self, stages: Sequence[Stage]) -> int:
        run = self.run_directory
        sys.stdout, sys.stderr = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
        run.job.mkdir(exist_ok=True)
        if os.getsid(0) != os.getpid() and os.getpgrp() != os.getpid():
            os.setsid()
        # An evaluation or inference by hand may run beside the run's chain, which cancel must still find.
        self.owner = owner = any(stage.name in ("train", "prepare") for stage in stages)
        with ExitStack() as stack:
            if owner:
                _lock(stack, run)
            # Even in an allocation, the local chain is not a Slurm job.
            environ = successor.clean_environment(os.environ) | {"BATON_JOB": self.job}
            os.environ.clear()
            os.environ.update(environ)
            processes.adopt_orphans()
            wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
            self.wakeup = processes.wake_on_signals(self.signals.append, *wanted)
            me = {"pid": os.getpid(), "start_time": place.process_start(os.getpid()), "job": self.job}
            me |= place.here()
            name = run.job / (files.CHAIN() if owner else files.OTHER_CHAIN(LOCALJOB=self.job))
            write_atomically(name, json.dumps(me).encode())
            try:
                for stage in stages:
                    code = self.run_stage(stage)
                    if code != 0:
                        return code
                return 0
            finally:
                processes.end_all()
                if not owner:
                    name.unlink(missing_ok=True)

    def run_stage(self, stage: Stage) -> int:
        if stage.name == "train":
            return self.train(stage)
        # An evaluation by hand is done even if there is one already.
        if stage.name == "evaluate" and self.owner and story.read(self.run_directory.events).is_evaluated:
            return 0
        before = self.failures(stage)
        codes = self.run_tasks(stage)
        code = _first_failure(codes)
        while code == exit_codes.RESUME and not self.cancelled:
            self.writer.append("requeued", stage=stage.name, how="local")
            self.restart += 1
            codes = self.run_tasks(stage)
            code = _first_failure(codes)
        if self.cancelled:
            return exit_codes.RESUME
        # A job records its own reason, unless it was killed or could not start.
        if code != 0 and self.failures(stage) == before:
            rank = next(rank for rank, one in codes.items() if one != 0)
            log = f"job/{self.log_name(stage, rank)}"
            error = _last_line(self.run_directory.path / log)
            self.writer.append(
                "failed", stage=stage.name, rank=rank, exit_code=code,
                reason=f"{stage.name} failed: {error or f'exit code {code}'}", error=error, log=log,
            )  # fmt: skip
        return code

    def failures(self, stage: Stage) -> int:
        return story.read(self.run_directory.events).failures.get(stage.name, 0)

    def train(self, stage: Stage) -> int:
        while True:
            code = _first_failure(self.run_tasks(stage))
            if self.cancelled and code != exit_codes.FINISHED:
                return exit_codes.RESUME
            outcome = afterwards.after_srun(self.run_directory, code)
            print(f"baton: {outcome.message}", flush=True)
            again = outcome.code in (afterwards.AGAIN_HERE, exit_codes.RESUME) and not self.cancelled
            if not again or afterwards.cancelled_by(self.run_directory):
                return outcome.code
            if outcome.code == exit_codes.RESUME:
                self.writer.append("requeued", stage="train", how="local")
            self.restart += 1

    def run_tasks(self, stage: Stage) -> dict[int, int]:
        """Starts the stage's tasks and waits for all: rank -> exit code (128 + n if killed by signal n)."""
        codes: dict[int, int] = {}
        with ExitStack() as stack:
            gpus = stack.enter_context(_FreeGpus(stage.wanted_gpus(), self)).numbers
            if self.cancelled:
                return {0: exit_codes.RESUME}
            tasks: dict[int, int] = {}
            for rank in range(stage.tasks):
                log = stack.enter_context((self.run_directory.job / self.log_name(stage, rank)).open("ab"))
                pid = processes.start(
                    stage.command, self.environment(stage, rank, gpus), output=log,
                    cwd=self.run_directory.code, deaf=stage.name in ("train", "infer"),
                )  # fmt: skip
                tasks[pid] = rank
            deadline: float | None = None
            while tasks:
                left = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))
                self.wait(left)
                # This machine is not taken away, so a stage that USR2 would kill continues.
                if self.take_signals(list(tasks), stage.name in LEAVING):
                    deadline = time.monotonic() + LEAVE_SECONDS
                for pid, status in processes.reap().items():
                    if pid not in tasks:
                        continue
                    code = os.waitstatus_to_exitcode(status)
                    codes[tasks.pop(pid)] = code if code >= 0 else 128 - code
                    if code != 0 and deadline is None:
                        deadline = time.monotonic() + FOLLOW_SECONDS
                if self.cancelled > 1 or (deadline is not None and time.monotonic() > deadline):
                    for pid, status in processes.end_all().items():
                        if pid in tasks:
                            code = os.waitstatus_to_exitcode(status)
                            codes[tasks.pop(pid)] = code if code >= 0 else 128 - code
            processes.end_all()
        return dict(sorted(codes.items()))

    def wait(self, seconds: float) -> None:
        if select.select([self.wakeup], [], [], seconds)[0]:
            os.read(self.wakeup, 4096)

    def take_signals(self, tasks: Sequence[int], hear_usr2: bool = True) -> bool:
        """Forwards the signals received; True if the tasks have been told to exit for good."""
        asked = False
        while self.signals:
            number = self.signals.pop(0)
            if number is signal.SIGUSR2:
                for pid in tasks if hear_usr2 else ():
                    processes.send(pid, number)
                continue
            self.cancelled += 1
            asked = True
            if self.cancelled == 1:
                if not afterwards.cancelled_by(self.run_directory):
                    self.writer.append("cancelled", stage="train", by=number.name)
                for pid in tasks:
                    processes.send(pid, signal.SIGTERM)
        return asked

    def environment(self, stage: Stage, rank: int, gpus: str | None) -> dict[str, str]:
        env = dict(os.environ) | {
            "SUBMITIT_LOCAL_JOB_ID": self.job.removeprefix("local-"),
            "SUBMITIT_LOCAL_NTASKS": str(stage.tasks),
            "SUBMITIT_LOCAL_GLOBALID": str(rank),
            "SUBMITIT_LOCAL_LOCALID": str(rank),
            "SUBMITIT_LOCAL_NODEID": "0",
            "BATON_RESTART": str(self.restart),
        }
        # submitit empties it; the user's value is in BATON_VISIBLE_GPUS.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        if gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpus
        return env

    def log_name(self, stage: Stage, rank: int) -> str:
        return files.LOCAL_LOG(LOCALJOB=self.job, STAGE=stage.name, RANK=rank)


class _FreeGpus:
    """Reserves that many GPUs that no other process uses, for the duration of the context.

    Chains coordinate through locks, which end with their process; others show up in nvidia-smi. Waits until
    enough are free. Raises UserError if the machine has fewer.
    `numbers`: a CUDA_VISIBLE_DEVICES, or None if there is no nvidia-smi and the user has set nothing either.
    """

    def __init__(self, wanted: int, owner: _Chain) -> None:
        self.wanted, self.owner = wanted, owner
        self.numbers: str | None = None
        self.locks: list[int] = []

    def __enter__(self) -> _FreeGpus:
        if self.wanted == 0 or not visible_gpus():
            # "" hides them: from a stage that needs none, or because the user's own setting does.
            self.numbers = "" if visible_gpus() or "BATON_VISIBLE_GPUS" in os.environ else None
            return self
        said = False
        while (gpus := visible_gpus()) and not self.owner.cancelled:
            if len(gpus) < self.wanted:
                raise UserError(f"{self.wanted} GPUs are wanted, but this machine has {len(gpus)}")
            busy = busy_gpus()
            for identifier, number in gpus.items():
                if len(self.locks) < self.wanted and identifier not in busy and self.take(identifier):
                    self.numbers = number if self.numbers is None else f"{self.numbers},{number}"
            if len(self.locks) == self.wanted:
                return self
            self.release()
            if not said:
                held = [f"{number}: {self.holder(one, busy)}" for one, number in gpus.items()]
                print(f"baton: waiting for {self.wanted} free GPUs ({'; '.join(held)})", flush=True)
                said = True
            self.owner.wait(5.0)
            self.owner.take_signals([])
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, identifier: str) -> bool:
        fd = private.open_own(private.folder("gpus") / identifier)
        if not private.try_lock(fd, self.owner.run_directory.name):
            os.close(fd)
            return False
        self.locks.append(fd)
        return True

    def holder(self, identifier: str, busy: set[str]) -> str:
        """Who has a GPU, as far as is known."""
        if identifier in busy:
            return "something computes on it"
        return private.holder(private.folder("gpus") / identifier)

    def release(self) -> None:
        self.numbers = None
        while self.locks:
            os.close(self.locks.pop())


def visible_gpus() -> dict[str, str]:
    """The GPUs that this user may use: UUID -> number, in order; {} without nvidia-smi.

    BATON_VISIBLE_GPUS (the launcher's CUDA_VISIBLE_DEVICES) limits them.
    """
    found = {uuid: number for number, uuid in _nvidia_smi("--query-gpu=index,uuid")}
    if (visible := os.environ.get("BATON_VISIBLE_GPUS")) is None:
        return found
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return {uuid: number for name in names for uuid, number in found.items() if name in (uuid, number)}


def busy_gpus() -> set[str]:
    return {uuid for (uuid,) in _nvidia_smi("--query-compute-apps=gpu_uuid")}


def _nvidia_smi(query: str) -> list[tuple[str, ...]]:
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except FileNotFoundError:
        return []
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"baton: nvidia-smi fails, so no GPUs can be chosen: {error}", file=sys.stderr, flush=True)
        return []
    return [tuple(part.strip() for part in line.split(",")) for line in done.stdout.splitlines() if line]


def _first_failure(codes: Mapping[int, int]) -> int:
    """0 if all tasks succeeded, 85 if they saved and exited, else the code of the lowest rank that failed."""
    failed = [code for code in codes.values() if code not in (exit_codes.FINISHED, exit_codes.RESUME)]
    return failed[0] if failed else max(codes.values())


def _job_id() -> str:
    return f"local-{os.environ.get('SUBMITIT_LOCAL_JOB_ID') or os.getpid()}"


def _lock(stack: ExitStack, run: Run) -> None:
    """Keeps other chains of the run from starting until the stack is closed. Raises UserError if one is
    running. The file is private, since others could lock whatever they can read."""
    path = run.job / files.LOCK()
    fd = private.open_own(path)
    stack.callback(os.close, fd)
    if not private.try_lock(fd, run.name):
        raise UserError(f"{run.name} is already running on this machine: {private.holder(path)}")


def _last_line(path: Path) -> str | None:
    """The last non-blank line of a log, which is where Python puts an error; None if there is none or the log
    cannot be read."""
    try:
        lines = path.read_bytes()[-65536:].decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
