"""Submission through submitit's executors, which run our own command instead of a pickled function.

Slurm: the batch script (launch/script.py) is submitted as it is, so that plain `sbatch` of the same file does
the same; submitit gives the job object and the file layout. Local: one task of submitit's LocalExecutor runs
the chain of stages (jobs/local.py) in a session of its own, so that launcher and terminal may end.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.local import local
from submitit.slurm import slurm as submitit_slurm

from jobs.errors import UserError
from launch import slurm

YEARS = 60 * 24 * 365 * 10  # minutes; submitit's local executor wants a time limit


class SlurmExecutor(submitit.SlurmExecutor):
    """Submits a batch script that is there already, under its own name in the run's `job/`."""

    def __init__(self, script: Path, options: tuple[str, ...] = ()) -> None:
        super().__init__(script.parent)
        self.script = script
        self.options = options

    def submit_script(self, job_name: str) -> submitit_slurm.SlurmJob[Any]:
        """Calls sbatch once. Raises UserError with Slurm's own message; then nothing was submitted."""
        command = self._make_submission_command(self.script)
        try:
            answer = slurm.call(*command, changes=True)
        except slurm.SlurmError as error:
            # The answer got lost on the way; the job may be in the queue all the same.
            found = _queued(job_name) if error.unanswered else None
            if found is None:
                raise UserError(f"sbatch refused {self.script.name}: {error}") from None
            answer = f"Submitted batch job {found}"
        id = self._get_job_id_from_submission_command(answer)
        return submitit_slurm.SlurmJob(folder=self.folder, job_id=id)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", *self.options, "--", str(submission_file_path)]


def _queued(job_name: str) -> str | None:
    listed = slurm.call("squeue", "--me", "--noheader", "--format=%A", f"--name={job_name}")
    ids = re.findall(r"\d+", listed)
    return max(ids, key=int) if ids else None


def submit_script(script: Path, job_name: str, *, after: str = "", how: str = "afterok") -> str:
    """Submits a batch script, behind job `after` if given, and returns the job id.

    A job whose dependency can never be satisfied is cancelled by Slurm instead of waiting for ever.
    """
    options = (f"--dependency={how}:{after}", "--kill-on-invalid-dep=yes") if after else ()
    return SlurmExecutor(script, options).submit_script(job_name).job_id


class LocalExecutor(submitit.LocalExecutor):
    """submitit's, but the controller gets its own session, working directory and log."""

    def __init__(self, folder: Path, directory: Path, environment: dict[str, str]) -> None:
        super().__init__(folder)
        self.directory = directory
        self.environment = environment

    def _submit_command(self, command: str) -> local.LocalJob[Any]:
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
        with (self.folder / "controller.out").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "submitit.local._local", str(self.folder)],
                env=environment | self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return local.LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=[0])


def submit_chain(
    run: Path, stages: list[Any], environment: dict[str, str]
) -> tuple[str, subprocess.Popen[bytes]]:
    """Starts the stages (jobs.local.Stage) one after the other on this machine.

    Returns the job id that events carry, and the controller's process.
    """
    from jobs.local import chain

    executor = LocalExecutor(run / "job", run / "code", environment)
    job = executor.submit(chain, str(run), stages)
    assert isinstance(job, local.LocalJob)
    process = job._process
    assert process is not None
    return f"local-{job.job_id}", process


def shown(stages: list[Any]) -> str:
    """The stages as the commands they are, for --dry-run."""
    return "\n".join(
        f"# {stage.name}, {stage.tasks} task(s)\n{shlex.join(stage.command)}" for stage in stages
    )
