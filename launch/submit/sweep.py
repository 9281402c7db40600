"""`train.py --sweep KEY=A,B,C`: one run for each value, as one job array, each with its own evaluation.

The runs are NAME-0, NAME-1, …, so that an element's number finds its run directory. Element i of the
evaluation's array waits for element i of the training's (aftercorr).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from jobs.run import events, files
from jobs.run.directory import Run, check_seed
from jobs.run.errors import UserError
from launch.submit import creation as requests
from launch.submit import data_ready, machine, options, runs


def parse(text: str) -> tuple[str, list[Any]]:
    """KEY=A,B,C as (key, values). Commas within brackets or quotes belong to a value."""
    key, equals, values = text.partition("=")
    if not equals or not all(key.split(".")) or not values:
        raise UserError(f"--sweep {text!r}: write KEY=A,B,C, such as optim_wrapper.optimizer.lr=0.01,0.02")
    parts, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if any(not part.strip() for part in parts):
        raise UserError(f"--sweep {text!r}: a value is empty")
    return key, [options.literal(part.strip()) for part in parts]


def main(arguments: argparse.Namespace, wish: requests.Wish) -> int:
    from launch import train

    key, values = parse(arguments.sweep)
    for value in values if key == "randomness.seed" else []:
        check_seed(value, "--sweep")
    name = arguments.run or _free(wish.config.stem)
    taken = [f"{name}-{number}" for number in range(len(values)) if runs.is_taken(f"{name}-{number}")]
    if taken and arguments.element is None:
        raise UserError(f"the run name {taken[0]!r} is taken: choose another --run for the sweep")
    runs.check_name(f"{name}-{len(values) - 1}")
    prefix = runs.runs_root() / f"{name}-"
    if arguments.dry_run:
        if wish.train.executor == "local":
            raise UserError("--dry-run of a sweep shows a batch script, and this sweep is local")
        make = train.make_command(arguments, wish, name)
        train.show(arguments, *train.batches(prefix, wish, make, elements=len(values)), name)
        return 0
    both = train.batches(prefix, wish, elements=len(values))
    ahead = data_ready.Ahead() if arguments.no_submit else requests.data_ahead(wish)
    versions = requests.versions()

    def fill(place: Run, number: int) -> None:
        one = msgspec.structs.replace(wish, overrides={**wish.overrides, key: values[number]})
        requests.fill(place, f"{name}-{number}", one, versions)
        requests.write_scripts(place, *both)

    wanted = range(len(values)) if arguments.element is None else [arguments.element]
    with ExitStack() as stack:
        made = [
            stack.enter_context(runs.new_run(f"{name}-{number}", partial(fill, number=number)))
            for number in wanted
        ]
        if arguments.no_submit:
            print(
                f"made {', '.join(run.name for run in made)} in {runs.runs_root()}; to submit all: "
                f"sbatch {made[0].job / files.SCRIPT(STAGE='train')}",
                file=sys.stderr,
            )
            return 0
        jobs, processes = _submit(made, wish, ahead, not arguments.no_evaluation)
    return _tell(arguments, made, values, key, jobs, processes)


def _free(stem: str) -> str:
    stem = runs.free_name(f"{stem}-sweep").rpartition("-")[0]
    number = 1
    while runs.is_taken(f"{stem}-{number}-0"):
        number += 1
    return f"{stem}-{number}"


def _submit(
    made: list[Run],
    wish: requests.Wish,
    ahead: data_ready.Ahead,
    evaluate: bool,
) -> tuple[list[dict[str, str]], list[Any]]:
    if wish.train.executor == "local":
        return _submit_locally(made, wish, ahead, evaluate)
    from launch.submit import submission

    training = submission.submit_script(made[0].job / files.SCRIPT(STAGE="train"), after=ahead.dependency)
    arrays = {"train": training}
    if evaluate:
        with submission.withdrawn_on_error(training):
            arrays["evaluate"] = submission.submit_script(
                made[0].job / files.SCRIPT(STAGE="evaluate"), after=training, how="aftercorr"
            )
    jobs = []
    ranks = wish.train.nodes[1] * wish.train.settings.gpus
    for number, run in enumerate(made):
        ids = {stage: f"{array}_{number}" for stage, array in arrays.items()}
        for stage, id in ids.items():
            events.append(
                run.events,
                "submitted",
                stage=stage,
                job=id,
                executor="slurm",
                cluster=machine.cluster_name() or None,
                element=number,
                after=(ahead.dependency or None) if stage == "train" else ids["train"],
                ranks=ranks if stage == "train" else None,
            )
        jobs.append(ids)
    return jobs, [None] * len(made)


def _submit_locally(
    made: list[Run], wish: requests.Wish, ahead: data_ready.Ahead, evaluate: bool
) -> tuple[list[dict[str, str]], list[Any]]:
    """One chain a run. Chains on one machine share its GPUs; without GPUs they run side by side."""
    from launch import train

    both = [train.submit_locally(run, wish, ahead, evaluate) for run in made]
    return [jobs for jobs, _ in both], [process for _, process in both]


def _tell(
    arguments: argparse.Namespace,
    made: list[Run],
    values: list[Any],
    key: str,
    jobs: list[dict[str, str]],
    processes: list[Any],
) -> int:
    if arguments.json:
        told = [
            {"run": run.name, "path": str(run.path), "jobs": ids, key: value}
            for run, ids, value in zip(made, jobs, values, strict=True)
        ]
        print(json.dumps(told), flush=True)
    else:
        for run, ids, value in zip(made, jobs, values, strict=True):
            print(f"{run.name}  {key}={value}  {'  '.join(f'{stage} {id}' for stage, id in ids.items())}")
        print("status   python launch/status.py", flush=True)
    if not arguments.wait:
        return 0
    from launch.observe import waiting

    gc.enable()  # which launch/train.py has switched off
    codes = []
    for run, ids, process in zip(made, jobs, processes, strict=True):
        codes.append(waiting.wait(run, ids, process))
    if any(codes):
        print(f"{sum(map(bool, codes))} of {len(codes)} runs did not end well", file=sys.stderr)
    return max(codes)
