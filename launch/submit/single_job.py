"""Submission of a single job: a preparation, an evaluation by hand, an inference, an export."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jobs.run import files
from jobs.run.directory import Run
from launch.observe import ending
from launch.submit import batch_script as script
from launch.submit import creation as requests
from launch.submit import executors, interpreters, job_environment, programs, runs
from launch.submit.data_ready import Prerequisites
from launch.submit.profiles import Resolved


def batch(
    run: Path,
    resolved: Resolved,
    arguments: list[str],
    name: str,
    make: list[str] | None = None,
    mounts: list[Path] | None = None,
) -> script.Batch:
    """The job's batch script. `make`: it makes the run directory itself; `mounts`: for a container."""
    return script.Batch(
        resolved=resolved,
        name=name,
        run=run,
        made=make is None,
        make=make or [],
        arguments=arguments,
        mounts=mounts or [],
        checkout=runs.CHECKOUT,
    )


def show(batch: script.Batch, as_json: bool) -> int:
    """--dry-run: prints the batch script, or the command of a local job."""
    executor = executors.named(batch.resolved.executor)
    if as_json:
        print(requests.as_json(batch))
    elif executor.BATCH_SCRIPTS:
        print(script.text(batch), end="")
    else:
        print(executor.shown([batch]))
    if executor.BATCH_SCRIPTS:
        script.make_log_folder(batch)
        if batch.made and batch.run is not None:
            job_environment.write(Run(batch.run), batch.resolved)
        print("nothing submitted", file=sys.stderr)
    return 0


def submit(run: Run, batch: script.Batch) -> tuple[str, Any]:
    """Submits the job; returns its id and, if it is local, its process. If Slurm refuses it, the run's
    previous script is restored."""
    resolved = batch.resolved
    programs.check_there(run)
    if resolved.stage != "prepare":
        interpreters.check(resolved)
    executor = executors.named(resolved.executor)
    file = run.job / files.SCRIPT(STAGE=resolved.stage)
    with runs.turn(run), requests.restored_on_error(file, job_environment.place(run, resolved.stage)):
        if executor.BATCH_SCRIPTS:
            requests.write_scripts(run, batch)
        ids, process = executor.submit([run], [batch], Prerequisites())[0]
    ending.submitted(run, ids)
    return ids[resolved.stage], process


def tell(arguments: argparse.Namespace, run: Run, stage: str, job: str, process: Any) -> int:
    """Prints where the job's files are and how to watch it; with --wait follows it to its end."""
    if arguments.json:
        print(json.dumps(requests.summary(run, {stage: job})), flush=True)
    else:
        print(f"run      {run.path}")
        print(f"job      {job}")
        print(f"status   python launch/status.py {runs.typed(run)}")
        print(f"logs     python launch/logs.py {runs.typed(run)} -f", flush=True)
    if not arguments.wait:
        return 0
    from launch.observe import waiting

    return waiting.wait(run, {stage: job}, process, arguments.json)
