"""From the command line to a run directory: the request, the code snapshot, the batch scripts."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from jobs.run import environment, events, files
from jobs.run.directory import Request, Run, write_atomically
from jobs.run.settings import JobSettings, RunSettings
from jobs.slurm.login import SlurmError
from launch.submit import batch_script as script
from launch.submit import code_image, data_ready, executors, job_environment, profiles, runs, snapshot
from launch.submit.configs import Chain
from launch.submit.runs import CHECKOUT

PACKAGES = (
    *("torch", "mmsegmentation", "mmengine", "mmcv-lite", "mmcv"),
    *("onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv", "numpy", "submitit"),
)


class TrainingSpec(msgspec.Struct, kw_only=True):
    """What a training command asks for, checked; nothing of it is on disk yet."""

    train: profiles.Resolved
    evaluate: profiles.Resolved
    infer: profiles.Resolved
    """Only recorded, for a later launch/infer.py."""
    config: Path
    chain: Chain
    data_root: Path
    seed: int = 0
    checkpoint: str = "best"
    overrides: dict[str, Any] = {}
    worker: list[str] | None = None
    """For a training without MMSegmentation: the arguments of the program, which `config` then is."""
    sweep: str = ""


def request(spec: TrainingSpec, name: str, config: str, versions: dict[str, str]) -> Request:
    settings = spec.train.settings
    return Request(
        name=name,
        config="" if spec.worker is not None else config,
        source="" if spec.worker is not None else str(spec.config),
        worker=[] if spec.worker is None else [config, *spec.worker],
        data_root=str(spec.data_root),
        created=events.now(),
        set=spec.overrides,
        seed=spec.seed,
        nodes=spec.train.nodes[1],
        gpus=settings.gpus,
        executor=spec.train.executor,
        checkpoint=spec.checkpoint,
        cluster=cluster(spec.train, spec.evaluate, spec.infer),
        python=settings.python or sys.executable,
        command=sys.argv,
        versions=versions,
        sweep=spec.sweep,
    )


def data_prerequisites(spec: TrainingSpec) -> data_ready.Prerequisites:
    """The preparations that this training waits for. Raises UserError if there is neither data nor one."""
    prerequisites = data_ready.wait_for(spec.data_root, spec.train.executor, spec.chain)
    coming = prerequisites.jobs or prerequisites.stages
    stage = spec.train.settings.stage
    if stage and not coming and (packing := data_ready.to_pack(spec.data_root, spec.chain)):
        print(
            f"{spec.train.sources['stage']}: `stage` copies packed datasets, and this config reads none: "
            f"{packing}",
            file=sys.stderr,
        )
    return prerequisites


def cluster(resolved: profiles.Resolved, *others: profiles.Resolved) -> RunSettings:
    """The resolved profile, for run.yaml: the settings of the command's own job, and those of the run's other
    jobs by stage. `options.profile_of` reads it back."""
    behind: dict[str, Any] = {
        other.stage: JobSettings(**msgspec.structs.asdict(other.settings), sources=other.sources)
        for other in others
    }
    own = msgspec.structs.asdict(resolved.settings)
    return RunSettings(profile=resolved.profile, **own, sources=resolved.sources, **behind)


def versions() -> dict[str, str]:
    """The versions of Python and of this environment's packages, and the checkout's commit."""
    found = {"python": platform.python_version()}
    installed = environment.installed()
    found |= {package: installed[package] for package in PACKAGES if package in installed}
    if commit := _git_state():
        found["git"] = commit
    return found


def _git_state() -> str:
    """The checkout's commit and whether files have changed since; "" without git or a repository."""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            [*command, "--dirty= with changes"], capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def fill(run: Run, name: str, spec: TrainingSpec, versions: dict[str, str]) -> None:
    """Writes code/ and run.yaml into the directory of a new run, which will be called `name`."""
    config = snapshot.take(run.code, spec.data_root, spec.chain)
    run.write_request(request(spec, name, config, versions))
    job_environment.write(run, spec.infer)  # for the script of a dry run


@contextmanager
def untrained(spec: TrainingSpec, stem: str) -> Iterator[Run]:
    """Makes a run without a training, for an evaluation or an inference; see runs.new_run."""
    runs.check_root(runs.runs_root())
    with ExitStack() as stack:

        def made(name: str) -> Run:
            return stack.enter_context(runs.new_run(name, lambda place: fill(place, name, spec, versions())))

        yield runs.named(None, lambda: runs.free_name(stem), made)


def write_scripts(run: Run, *batches: script.Batch) -> None:
    """Writes `job/STAGE.sbatch`, and the environment that it reads, for each batch; if one of them runs from
    images, also the image of the code."""
    if any(batch.resolved.settings.environment for batch in batches):
        code_image.write(run)
    run.job.mkdir(exist_ok=True)  # it may have been deleted
    for batch in batches:
        file = run.job / files.SCRIPT(STAGE=batch.resolved.stage)
        content = script.text(batch).encode()
        write_atomically(file, content, durable=False, private=True)  # Slurm keeps a copy
        job_environment.write(run, batch.resolved)


def summary(run: Run, jobs: dict[str, str]) -> dict[str, Any]:
    """What --json says of a run; `jobs`: stage -> id."""
    return {"run": run.name, "path": str(run.path), "jobs": jobs}


def as_json(*batches: script.Batch) -> str:
    """What --dry-run --json prints: the script of each stage, or its command."""
    found = {"run": str(batches[0].run)}
    for batch in batches:
        executor = executors.named(batch.resolved.executor)
        shown = script.text(batch) if executor.BATCH_SCRIPTS else executor.shown([batch])
        found[batch.resolved.stage] = shown
    return json.dumps(found)


@contextmanager
def restored_on_error(*files: Path) -> Iterator[None]:
    """Restores the files (or their absence) if the body raises, so that a refused submission changes nothing.
    Not after a submission that may have arrived: its job reads the new ones."""
    before = {file: file.read_bytes() if file.exists() else None for file in files}
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SlurmError) and error.unanswered):
            for file, content in before.items():
                with suppress(OSError):  # the first error says why
                    if content is None:
                        file.unlink(missing_ok=True)
                    else:
                        write_atomically(file, content, private=True)
        raise
