"""`train.py --resume RUN`: submits an existing run again, in its directory, with its code and config."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.run import files, story
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from launch.submit import batch_script as script
from launch.submit import (
    configs,
    creation,
    executors,
    interpreters,
    job_environment,
    longer,
    options,
    own_worker,
    profiles,
    programs,
    runs,
    tracking,
    training,
)


def resume(arguments: argparse.Namespace) -> int:
    """Submits an existing run again: same directory, code and config; if asked, with other resources, as a
    longer training, or with a config corrected before its first checkpoint (--set, --unset)."""
    check_unchanged(arguments)
    run = runs.find(arguments.resume)
    with runs.turn(run):
        submitted = _resume(arguments, run)
    return training.tell(arguments, run, *submitted) if submitted else 0


def _resume(arguments: argparse.Namespace, run: Run) -> executors.Submitted | None:
    """What was submitted; None for a dry run."""
    old = run.request()
    check_trains(run, old)
    programs.check_there(run)
    given = options.overrides(arguments.set)
    overrides = longer.of_resumed(run, old, given, arguments.unset)
    keep_size(arguments, old)

    def settings(stage: str) -> profiles.Resolved:
        profile = options.profile_of(arguments, run, stage)
        return options.settings(arguments, profile, stage, first=stage == "train")

    train = settings("train")
    training.check_evaluated(arguments, bool(old.worker))
    own_worker.check_stage(arguments, train.settings, bool(old.worker))
    config = run.code / (old.worker[0] if old.worker else old.config)
    evaluated, here = not arguments.no_evaluation, interpreters.is_this(train)
    asked = [("--set", key) for key in given]
    spec = creation.TrainingSpec(
        train=train,
        evaluate=settings("evaluate"),
        infer=settings("infer"),
        config=config,
        chain=(
            own_worker.read(str(config))
            if old.worker
            else configs.check(config, overrides, evaluated, here, asked, run.code)
        ),
        data_root=Path(old.data_root),
        seed=old.seed,
        checkpoint=old.checkpoint,
        overrides=overrides,
        worker=old.worker[1:] if old.worker else None,
    )
    interpreters.check(spec.train, spec.evaluate)
    tracking.check(spec.train, arguments.track if spec.worker is not None else None)
    check_resumable(run, longer.trains_on(old, overrides))
    scripts = training.batches(run.path, spec)
    if arguments.dry_run:
        show(arguments, run, scripts)
        return None
    prerequisites = creation.data_prerequisites(spec)
    old.nodes, old.gpus, old.executor = spec.train.nodes[1], spec.train.settings.gpus, spec.train.executor
    old.set = overrides
    old.cluster = creation.cluster(spec.train, spec.evaluate, spec.infer)
    mark, batch = run.job / files.CANCELLED(), run.job / files.GLOBAL_BATCH()
    written = [run.job / files.SCRIPT(STAGE=one.resolved.stage) for one in scripts]
    written += [job_environment.place(run, one.resolved.stage) for one in scripts]
    with creation.restored_on_error(run.request_file, mark, batch, *written):
        run.write_request(old)
        creation.write_scripts(run, *scripts)
        mark.unlink(missing_ok=True)
        if any(key.partition(".")[0] == "train_dataloader" for key in (*given, *arguments.unset)):
            batch.unlink(missing_ok=True)  # left by a start that came to nothing
        return training.submit([run], scripts, prerequisites, not arguments.no_evaluation)[0]


def show(arguments: argparse.Namespace, run: Run, scripts: tuple[script.Batch, script.Batch]) -> None:
    """Prints the script that --dry-run asks for."""
    training.show_script(arguments, *scripts)
    for one in scripts:
        job_environment.write(run, one.resolved)
    if arguments.set or arguments.unset:
        # The jobs read it from run.yaml, which only a submission writes.
        said = "--set" if arguments.set else "--unset"
        print(
            f"nothing submitted, and {said} appears in no script: submit without --dry-run", file=sys.stderr
        )


def check_unchanged(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that would make a resumed run a different one."""
    fixed = (
        *("run", "sweep", "seeds", "zip", "config", "worker"),
        *("seed", "data_root", "checkpoint", "no_submit"),
    )
    values = {name: getattr(arguments, name) for name in fixed}
    given = [name for name, value in values.items() if value or type(value) is int]
    if given:
        option = given[0].replace("_", "-")
        raise UserError(f"--resume continues a run as it is: it takes no --{option}")


def check_trains(run: Run, old: Request) -> None:
    """Raises UserError for a run that train.py did not make."""
    by = Path(old.command[0]).name if old.command else ""
    if by in ("prepare.py", "evaluate.py", "infer.py") or not (old.config or old.worker):
        raise UserError(
            f"--resume {run.name}: that is not a training ({by or 'prepare.py'} made it); "
            "python launch/train.py --config CONFIG begins one"
        )


def keep_size(arguments: argparse.Namespace, old: Request) -> None:
    """Keeps the size of a resumed run when another profile is used."""
    if not options.remembers(arguments, old):
        if arguments.nodes is None:
            arguments.nodes = old.cluster.nodes if old.cluster.profile else str(old.nodes)
        if arguments.gpus is None:
            arguments.gpus = old.gpus


def check_resumable(run: Run, trains_on: bool) -> None:
    """Raises UserError if the run's training is finished (unless it `trains_on` for longer), or if one of its
    jobs is alive."""
    past = story.read(run.events)
    if past.was_finished() and not trains_on:
        command = "report" if run.request().worker else "evaluate"
        raise UserError(
            f"the training of {run.name} is finished: python launch/{command}.py {runs.typed(run)}"
        )
    from launch.observe import liveness

    job = past.newest.get("train", "")
    if liveness.is_alive(run, job):
        raise UserError(
            f"{run.name} is already queued or running as job {job}: "
            f"python launch/cancel.py {runs.typed(run)} ends it"
        )
