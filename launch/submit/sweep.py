"""`train.py --sweep KEY=A,B,C --seeds 0,1,2`: one run for each combination, as one job array, each with its
own evaluation. Of several axes every combination, or with `--zip` the first values together, then the second.

The runs are NAME-0, NAME-1, …, so that an element's number finds its run directory. Element i of the
evaluation's array waits for element i of the training's (aftercorr).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import re
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

SEED = "randomness.seed"
MOST = 1000
"""Runs of a sweep; by default Slurm takes no larger array (MaxArraySize)."""


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


def add_options(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--sweep",
        action="append",
        metavar="KEY=A,B,C",
        help="one run for each value, as one job array; given again, for each combination",
    )
    to.add_argument("--seeds", metavar="0,1,2", help="one run for each seed (of each combination of --sweep)")
    to.add_argument("--zip", action="store_true", help="first values together, then second, not all with all")


def as_given(arguments: argparse.Namespace) -> list[str]:
    """The options as they would be typed again elsewhere."""
    words = [f"--sweep={text}" for text in arguments.sweep or []]
    return [
        *words,
        *([f"--seeds={arguments.seeds}"] if arguments.seeds is not None else []),
        *["--zip"] * arguments.zip,
    ]


def elements(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What sets each run apart: overrides, dotted key -> value; a seed as SEED. Raises UserError."""
    axes = [parse(text) for text in arguments.sweep or []]
    if arguments.seeds is not None:
        if arguments.seed is not None:
            raise UserError("--seeds and --seed: say which seeds once")
        axes.append((SEED, seeds(arguments.seeds)))
    keys = [key for key, _ in axes]
    for number, key in enumerate(keys):
        if key in keys[:number] or key in {pair.partition("=")[0] for pair in arguments.set}:
            raise UserError(f"--sweep {key}: its values are given twice (--sweep, --set)")
        for value in axes[number][1] if key == SEED else []:
            check_seed(value, "--sweep")
    if arguments.zip and len({len(values) for _, values in axes}) > 1:
        counts = ", ".join(f"{len(values)} of {key}" for key, values in axes)
        raise UserError(f"--zip takes as many values of each: there are {counts}")
    # The last axis, the seeds', changes fastest.
    columns = [values for _, values in axes]
    count = len(columns[0]) if arguments.zip else math.prod(map(len, columns))
    if count > MOST:
        raise UserError(f"--sweep: {count} runs are more than {MOST}: divide it")
    combined = zip(*columns, strict=True) if arguments.zip else itertools.product(*columns)
    return [dict(zip(keys, values, strict=True)) for values in combined]


def seeds(text: str) -> list[int]:
    """The seeds of `--seeds 0,1,2` or `--seeds 0-4`. Raises UserError."""
    found: list[int] = []
    for part in text.split(","):
        one = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        if not one or int(one[2] or one[1]) - int(one[1]) not in range(MOST):
            raise UserError(f"--seeds {text!r}: write whole numbers, as 0,1,2 or 0-4")
        found += range(int(one[1]), int(one[2] or one[1]) + 1)
    if len(set(found)) < len(found):
        raise UserError(f"--seeds {text!r}: a seed is there twice")
    for seed in found:
        check_seed(seed, "--seeds")
    return found


def of_element(wish: requests.Wish, name: str, element: dict[str, Any]) -> requests.Wish:
    """The wish of one run of the sweep `name`. The seed is an override, too: a config may have its own."""
    seed = element.get(SEED, wish.seed)
    overrides = {**wish.overrides, **element}
    return msgspec.structs.replace(wish, overrides=overrides, seed=seed, sweep=name)


def main(arguments: argparse.Namespace, wish: requests.Wish) -> int:
    from launch import train

    values = elements(arguments)
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
        requests.fill(place, f"{name}-{number}", of_element(wish, name, values[number]), versions)
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
    return _tell(arguments, made, values, jobs, processes)


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

    both = [train.submit_locally(run, wish, ahead, evaluate, number) for number, run in enumerate(made)]
    return [jobs for jobs, _ in both], [process for _, process in both]


def _tell(
    arguments: argparse.Namespace,
    made: list[Run],
    values: list[dict[str, Any]],
    jobs: list[dict[str, str]],
    processes: list[Any],
) -> int:
    if arguments.json:
        told = [
            {"run": run.name, "path": str(run.path), "jobs": ids, **value}
            for run, ids, value in zip(made, jobs, values, strict=True)
        ]
        print(json.dumps(told), flush=True)
    else:
        for run, ids, value in zip(made, jobs, values, strict=True):
            what = " ".join(f"{key}={one}" for key, one in value.items())
            print(f"{run.name}  {what}  {'  '.join(f'{stage} {id}' for stage, id in ids.items())}")
        sweep = made[0].name.rpartition("-")[0]
        print(f"status   python launch/status.py {sweep}")
        print(f"compare  python launch/report.py --compare {sweep}", flush=True)
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
