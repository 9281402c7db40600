"""Submission through submitit's executors, which run our own commands instead of a pickled function.

Slurm: the batch script (launch/submit/batch_script.py) is submitted as it is, so that plain `sbatch` of the
same file does the same; submitit provides the job object and the file layout. Local: one task of submitit's
LocalExecutor runs the chain of stages (jobs/supervise/local.py) in its own session, so that launcher and
terminal may end.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import submitit

from jobs.run import files, story
from jobs.run.directory import Run
from jobs.run.settings import Settings
from jobs.run.stages import Stage
from jobs.slurm import commands
from jobs.slurm import login as slurm
from launch.submit import profiles, programs, runs

LATE_SECONDS = 2.0
"""How long a job is looked for in the queue when sbatch's answer got lost."""
ENDING_SECONDS = 30.0
"""How long a local chain that has only just begun may take to end."""
GPUS = "; --gres says how GPUs are asked for (none: not at all), launch/doctor.py what this cluster has"
YEARS = 60 * 24 * 365 * 10  # minutes; submitit's local executor requires a time limit


class SlurmExecutor(submitit.SlurmExecutor):
    """Submits an existing batch script, under its own name in the run's `job/`."""

    def __init__(self, script: Path, options: tuple[str, ...] = ()) -> None:
        """Raises SlurmError if Slurm could not run the job."""
        slurm.require()
        super().__init__(script.parent)
        self.script = script
        self.options = options

    def submit_script(self) -> submitit.SlurmJob[Any]:
        """Calls sbatch once: submitit's own `submit` would write another script, around a pickled function.

        Raises SlurmError with Slurm's own message; then nothing was submitted, unless the error is
        `unanswered`."""
        hidden = overridden(self.script.read_text(encoding="utf-8"))
        command = ("sbatch", *self.options, "--", str(self.script))
        try:
            answer = slurm.call(*command, changes=True, without=hidden)
        except slurm.SlurmError as error:
            if not error.unanswered:
                hint = GPUS if "gres" in str(error) else ""
                raise slurm.SlurmError(f"sbatch refused {self.script.name}: {error}{hint}") from None
            id = arrived(self.script, str(error))
        except KeyboardInterrupt:
            # The request may be on its way, and the run directory is about to be deleted.
            withdraw(*_queued(self.script))
            raise
        else:
            # A site's own sbatch may print more, before or after it.
            named = re.search(r"^Submitted batch job (\d+)", answer, re.M) or re.search(r"job (\d+)", answer)
            id = named[1] if named else arrived(self.script, commands.nameless(answer))
        return submitit.SlurmJob(folder=self.folder, job_id=id)


def submit_script(script: Path, *, after: str = "", how: str = "afterok") -> str:
    """Submits a batch script, dependent on job `after` if given, and returns the job id. Raises SlurmError.

    Slurm cancels the job if its dependency can never be satisfied, instead of letting it wait for ever.
    """
    options = (f"--dependency={how}:{after}", "--kill-on-invalid-dep=yes") if after else ()
    return SlurmExecutor(script, options).submit_script().job_id


def overridden(script: str) -> set[str]:
    """The environment variables with which sbatch would override options that the script sets.

    sbatch prefers the command line to SBATCH_… variables, and these to the script. But the script has the
    launcher's settings, which must win over what a shell's start-up file may export.
    """
    # Variables whose name differs from that of the option, or which contradict it.
    more = {
        "array": ("SBATCH_ARRAY_INX",),
        "time": ("SBATCH_TIMELIMIT",),
        "requeue": ("SBATCH_NO_REQUEUE",),
        "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
        "gpus-per-node": ("SBATCH_GPUS", "SBATCH_GPUS_PER_TASK"),
        "cpus-per-task": ("SBATCH_CPUS_PER_GPU",),
    }
    written = set(re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE))
    # For options that may be left to Slurm, the environment counts unless the script sets them.
    options = written | (profiles.OWN_OPTIONS.keys() - Settings.__struct_fields__ - {"mem"})
    plain = {f"SBATCH_{option.upper().replace('-', '_')}" for option in options}
    return plain | {name for option in options for name in more.get(option, ())}


def arrived(script: Path, problem: str) -> str:
    """The id of a job whose submission succeeded although sbatch's answer got lost.

    Raises SlurmError (`unanswered`) if it is not in the queue, or the queue cannot be seen: the job may still
    come, so its run directory must stay.
    """
    deadline = time.monotonic() + LATE_SECONDS
    try:
        while not (found := _queued(script)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)  # only squeue tells when it arrives
    except slurm.SlurmError as error:
        problem += f"; squeue: {error}"
    else:
        if found:
            return max(found, key=int)
    raise slurm.SlurmError(
        f"whether {script} was submitted is not known ({problem}), so its run is kept; `squeue --me` shows "
        f"whether it is there; if not: sbatch {shlex.quote(str(script))}",
        unanswered=True,
    )


def _queued(script: Path) -> list[str]:
    """Ids of the jobs in the queue that were submitted from this script and are not in the run's events yet.

    Found by the script's path: names repeat, in another checkout and among the jobs of another run.
    """
    known = story.read(Run(script.parent.parent).events).job_numbers()
    known |= {
        path.read_text().partition("_")[0].strip() for path in script.parent.glob(files.PRESUBMITTED(JOB="*"))
    }
    listed = slurm.call("squeue", "--me", "--noheader", "--states=all", "--format=%F|%o")
    rows = [line.partition("|") for line in listed.splitlines()]
    return sorted({id for id, _, command in rows if command == str(script) and id not in known})


def withdraw(*jobs: str) -> None:
    """Cancels jobs that were only just submitted, because what should have followed could not be.

    Raises SlurmError (`unanswered`, because their run directory must stay) if Slurm fails to.
    """
    try:
        if jobs:
            slurm.call("scancel", *jobs)
    except slurm.SlurmError as error:
        raise slurm.SlurmError(
            f"job {' '.join(jobs)} was submitted and could not be cancelled ({error}); "
            f"to do that: scancel {' '.join(jobs)}",
            unanswered=True,
        ) from None


@contextmanager
def withdrawn_on_error(job: str) -> Iterator[None]:
    """Cancels `job` if the body raises. A SlurmError then says so, or what else failed if that fails, too."""
    try:
        yield
    except BaseException as error:
        try:
            withdraw(job)
        except slurm.SlurmError as left:
            raise slurm.SlurmError(f"{error or 'interrupted'}; and {left}", unanswered=True) from None
        if isinstance(error, slurm.SlurmError):
            raise slurm.SlurmError(
                f"{error}; job {job}, submitted before it, is cancelled", error.unanswered
            ) from None
        raise


STARTED: list[subprocess.Popen[bytes]] = []
"""The controllers of this command's local chains."""


@contextmanager
def ended_on_error() -> Iterator[None]:
    """Ends this command's local chains if the body raises: their run directories are about to be deleted."""
    try:
        yield
    except BaseException:
        for process in STARTED:
            process.terminate()  # the controller tells its chain
        for process in STARTED:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_SECONDS)
        raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Has Ctrl-C (and what runs.named treats alike) take effect after the body: in the middle of Popen, it
    leaves a process that nobody knows. (Blocked instead, the signal would stay so in the process.)"""
    came: list[int] = []
    handled = [one for one in runs.ENDING if signal.getsignal(one) is signal.default_int_handler]
    for one in handled:
        signal.signal(one, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for one in handled:
            signal.signal(one, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


class LocalExecutor(submitit.LocalExecutor):
    """submitit's, but its controller gets its own session, environment, working directory and log, for which
    submitit has no option. See submitit's `start_controller` for how it starts `submitit.local._local`."""

    process: subprocess.Popen[bytes]
    """The controller, once a job has been submitted."""

    def __init__(self, folder: Path, directory: Path, environment: dict[str, str]) -> None:
        super().__init__(folder)
        self.directory = directory
        self.environment = environment

    def _submit_command(self, command: str) -> submitit.LocalJob[Any]:
        environment = slurm.clean_environment() | {
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * YEARS),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            environment["BATON_VISIBLE_GPUS"] = visible
        with (self.folder / files.CONTROLLER()).open("ab") as log, _uninterrupted():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "submitit.local._local", str(self.folder)],
                env=environment | self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            STARTED.append(self.process)
        id = str(self.process.pid)
        return submitit.LocalJob(folder=self.folder, job_id=id, process=self.process, tasks=[0])


def submit_chain(
    run: Path, stages: list[Stage], environment: dict[str, str]
) -> tuple[str, subprocess.Popen[bytes]]:
    """Starts a chain that runs the stages one after the other on this machine.

    Returns the job id used in events, and the controller's process.
    """
    executor = LocalExecutor(run / files.JOB(), run / files.CODE(), environment)
    # By value: the job imports only the run's code, which may be older than this checkout.
    cloudpickle.register_pickle_by_value(programs)
    job = executor.submit(
        programs.run_chain,
        programs.module(run / files.CODE(), programs.CHAIN),
        str(run),
        [dataclasses.asdict(stage) for stage in stages],
    )
    return f"local-{job.job_id}", executor.process


def shown(stages: list[Stage]) -> str:
    """The stages as commands, for --dry-run."""
    return "\n".join(
        f"# {stage.name}, {stage.tasks} task(s)\n{shlex.join(stage.command)}" for stage in stages
    )
