"""From the options of launch/train.py to a queued training, and the evaluation that depends on it."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.catalog import sanity
from jobs.run import files
from jobs.run.directory import Run, check_seed
from jobs.run.errors import UserError
from launch.observe import ending, sweeps
from launch.submit import batch_script as script
from launch.submit import (
    configs,
    creation,
    data_ready,
    executors,
    interpreters,
    options,
    own_worker,
    runs,
    sweep_options,
    tracking,
)
from launch.submit.profiles import Profile

DEFAULT_CONFIG = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"


def check_evaluated(arguments: argparse.Namespace, by_worker: bool) -> None:
    """Sets --no-evaluation for a program of the user's own. Raises UserError if the script of an evaluation
    is asked for although there is none."""
    arguments.no_evaluation |= by_worker
    if arguments.no_evaluation and arguments.dry_run == "evaluate":
        raise UserError("--dry-run=evaluate: nothing is evaluated after a --worker, or with --no-evaluation")


def read_spec(
    arguments: argparse.Namespace, profile: Profile, arguments_of_worker: list[str]
) -> creation.TrainingSpec:
    """The training asked for, with everything checked that can be before it is made. Raises UserError."""
    seed = arguments.seed or 0
    overrides = options.overrides(arguments.set)
    if arguments.seed is not None and sweep_options.SEED in overrides:
        raise UserError(f"--seed and --set {sweep_options.SEED}: give the seed only once")
    train = options.settings(arguments, profile, "train")
    own_worker.check_stage(arguments, train.settings, bool(arguments.worker))
    if arguments.worker:
        chain = own_worker.read(arguments.worker)
        config = chain.files[0]
    else:
        config = configs.locate(arguments.config or DEFAULT_CONFIG)
        asked = [("--set", key) for key in overrides]
        asked += [("--sweep", sweep_options.parse(text)[0]) for text in arguments.sweep or []]
        evaluated = not arguments.no_evaluation
        chain = configs.check(config, overrides, evaluated, interpreters.is_this(train), asked)
    randomness = chain.values.get("randomness")
    if isinstance(randomness, dict) and randomness.get("seed") is not None:
        check_seed(randomness["seed"], str(config))
        if arguments.seed is not None:  # even 0 takes precedence over the config's
            overrides[sweep_options.SEED] = arguments.seed
    spec = creation.TrainingSpec(
        train=train,
        evaluate=options.settings(arguments, profile, "evaluate", first=False),
        infer=options.settings(arguments, profile, "infer", first=False),
        config=config,
        chain=chain,
        data_root=options.data_root(arguments),
        seed=seed,
        checkpoint=options.checkpoint(arguments.checkpoint or "best"),
        overrides=overrides,
        worker=arguments_of_worker if arguments.worker else None,
    )
    interpreters.check(spec.train, spec.evaluate)
    tracking.check(spec.train, arguments.track if spec.worker is not None else None)
    for hint in [*spec.train.hints, *sanity.hints(chain.values)]:
        print(hint, file=sys.stderr)
    return spec


def batches(
    run: Path, spec: creation.TrainingSpec, make: list[str] | None = None, elements: int = 0
) -> tuple[script.Batch, script.Batch]:
    """The two batch scripts of a run: training and evaluation. `make`: see script.Batch."""
    name = run.name.rstrip("-") if elements else run.name
    common: dict[str, Any] = {
        "run": run,
        "checkout": runs.CHECKOUT,
        "elements": elements,
        "made": make is None,
    }
    return (
        script.Batch(resolved=spec.train, name=name, make=make or [], **common),
        script.Batch(
            resolved=spec.evaluate,
            name=f"{name}-evaluate",
            arguments=["--checkpoint", spec.checkpoint],
            **common,
        ),
    )


def check_no_sweep(name: str) -> None:
    """Raises UserError if a sweep has the name of a new run: status.py and cancel.py would mean the run."""
    if elements := sweeps.members(name):
        raise UserError(f"--run {name} is a sweep's name, of {elements[0].name} and others: choose another")


def submit_new(arguments: argparse.Namespace, spec: creation.TrainingSpec) -> int:
    prerequisites = data_ready.Prerequisites() if arguments.no_submit else creation.data_prerequisites(spec)
    return runs.named(
        arguments.run,
        lambda: runs.free_name(spec.config.stem),
        lambda name: submit_named(arguments, spec, prerequisites, name),
    )


def submit_named(
    arguments: argparse.Namespace,
    spec: creation.TrainingSpec,
    prerequisites: data_ready.Prerequisites,
    name: str,
) -> int:
    versions = creation.versions()
    both = batches(runs.runs_root() / name, spec)

    def fill(place: Run) -> None:
        creation.fill(place, name, spec, versions)
        creation.write_scripts(place, *both)

    with runs.new_run(name, fill) as run:
        if arguments.no_submit:
            tell_made(str(run.path), "it", executors.named(spec.train.executor).by_hand([run]))
            if arguments.json:
                print(json.dumps(creation.summary(run, {})))
            return 0
        jobs, process = submit([run], both, prerequisites, not arguments.no_evaluation)[0]
    return tell(arguments, run, jobs, process)


def tell_made(what: str, whom: str, by_hand: str) -> None:
    """Says that runs were made, and how to submit them; not in a batch script, which has made its own run."""
    in_job = os.environ.get("ENVIRONMENT") == "BATCH"  # set by sbatch
    print(f"made {what}" + ("" if in_job else f"; to submit {whom}: {by_hand}"), file=sys.stderr)


def submit(
    made: Sequence[Run],
    both: tuple[script.Batch, script.Batch],
    prerequisites: data_ready.Prerequisites,
    evaluate: bool,
) -> list[executors.Submitted]:
    """Submits the training of each run and, if `evaluate`, its evaluation. Raises UserError with the
    executor's message, and then nothing is queued."""
    executor = executors.named(both[0].resolved.executor)
    submitted = executor.submit(made, both if evaluate else both[:1], prerequisites)
    for run, (ids, _) in zip(made, submitted, strict=True):
        ending.submitted(run, ids)
    return submitted


def dry_run(arguments: argparse.Namespace, spec: creation.TrainingSpec) -> int:
    """Prints what would be submitted. The script makes the run directory itself, so plain sbatch works."""
    name = arguments.run or runs.free_name(spec.config.stem)
    # By the time the script of its evaluation is asked for, the training may have made the run.
    if runs.is_taken(name) and arguments.dry_run != "evaluate":
        raise UserError(f"the run name {name!r} is taken ({runs.runs_root() / name}): choose another")
    path = runs.runs_root() / name
    executor = executors.named(spec.train.executor)
    train, evaluate = batches(path, spec, make=make_command(arguments, spec, name))
    if not executor.BATCH_SCRIPTS:
        wanted = [train] if arguments.no_evaluation else [train, evaluate]
        if arguments.json:
            print(creation.as_json(*wanted))
        else:
            print(f"# in {path / files.CODE()}, one after the other:")
            print(executor.shown(wanted))
        return 0
    show(arguments, train, evaluate, name)
    return 0


def show(arguments: argparse.Namespace, train: script.Batch, evaluate: script.Batch, name: str) -> None:
    """Prints the script that --dry-run asks for, and how to use it."""
    show_script(arguments, train, evaluate)
    script.make_log_folder(train)
    how = "aftercorr" if train.elements else "afterok"
    then = (
        f", then … --run {name} --dry-run=evaluate | sbatch --dependency={how}:JOB --kill-on-invalid-dep=yes"
    )
    by_hand = f"… --run {name} --dry-run | sbatch{'' if arguments.no_evaluation else then}"
    print(f"nothing submitted. By hand: {by_hand}", file=sys.stderr)


def show_script(arguments: argparse.Namespace, train: script.Batch, evaluate: script.Batch) -> None:
    if arguments.json:
        print(creation.as_json(*([train] if arguments.no_evaluation else [train, evaluate])))
    else:
        print(script.text(evaluate if arguments.dry_run == "evaluate" else train), end="")


def make_command(arguments: argparse.Namespace, spec: creation.TrainingSpec, name: str) -> list[str]:
    """The launcher's name and options with which the batch script of a dry run makes its run directory."""
    argv = [
        "train",
        "--no-submit",
        "--run",
        name,
        f"--{'config' if spec.worker is None else 'worker'}={spec.config}",
        f"--data-root={spec.data_root}",
    ]
    argv += [] if arguments.seed is None else [f"--seed={spec.seed}"]
    argv += options.command_line(arguments)
    if spec.worker is not None:
        return [*argv, "--", *spec.worker]
    argv.append(f"--checkpoint={spec.checkpoint}")
    pairs = (pair.partition("=") for pair in arguments.set)
    argv += [f"--set={key}={options.weights_found(key, value)}" for key, _, value in pairs]
    return [*argv, *sweep_options.command_line(arguments)]


def tell(arguments: argparse.Namespace, run: Run, jobs: dict[str, str], process: Any) -> int:
    """Prints where the run is and what to do next; with --wait follows it to its end."""
    if arguments.json:
        print(json.dumps(creation.summary(run, jobs)), flush=True)
    else:
        print(f"run      {run.path}")
        print(f"jobs     {'  '.join(f'{stage} {id}' for stage, id in jobs.items())}")
        for word, command in (("status", ""), ("logs", " -f"), ("cancel", "")):
            print(f"{word:8} python launch/{word}.py {runs.typed(run)}{command}", flush=True)
    if not arguments.wait:
        return 0
    from launch.observe import waiting

    gc.enable()
    return waiting.wait(run, jobs, process, arguments.json)
