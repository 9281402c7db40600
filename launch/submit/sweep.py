"""`train.py --sweep KEY=A,B,C --seeds 0,1,2`: one run for each combination, as one job array, each with its
own evaluation. With `--zip`, the first values of all axes go together, then the second ones, and so on.

The runs are NAME-0, NAME-1, …, so that an element's number leads to its run directory. Element i of the
evaluation's array waits for element i of the training's (aftercorr).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import creation, data_ready, executors, runs, sweep_options, training


def of_element(spec: creation.TrainingSpec, name: str, element: dict[str, Any]) -> creation.TrainingSpec:
    """The spec of one run of the sweep `name`. The seed is an override, too: the config may set one."""
    seed = element.get(sweep_options.SEED, spec.seed)
    overrides = {**spec.overrides, **element}
    return msgspec.structs.replace(spec, overrides=overrides, seed=seed, sweep=name)


def main(arguments: argparse.Namespace, spec: creation.TrainingSpec) -> int:
    values = sweep_options.elements(arguments)
    return runs.named(
        arguments.run,
        lambda: _free(spec.config.stem),
        lambda name: _submit(arguments, spec, values, name),
    )


def _submit(
    arguments: argparse.Namespace, spec: creation.TrainingSpec, values: list[dict[str, Any]], name: str
) -> int:
    taken = [f"{name}-{number}" for number in range(len(values)) if runs.is_taken(f"{name}-{number}")]
    if arguments.element is None and arguments.dry_run != "evaluate":
        if taken:
            raise UserError(f"the run name {taken[0]!r} is taken: choose another --run for the sweep")
        if runs.is_taken(name):
            raise UserError(f"{name!r} is the name of a run, and would mean that one: choose another --run")
    runs.check_name(f"{name}-{len(values) - 1}")
    prefix = runs.runs_root() / f"{name}-"
    if arguments.dry_run:
        if not executors.named(spec.train.executor).BATCH_SCRIPTS:
            raise UserError("--dry-run of a sweep shows a batch script, and this sweep is local")
        make = training.make_command(arguments, spec, name)
        training.show(arguments, *training.batches(prefix, spec, make, elements=len(values)), name)
        return 0
    both = training.batches(prefix, spec, elements=len(values))
    prerequisites = data_ready.Prerequisites() if arguments.no_submit else creation.data_prerequisites(spec)
    versions = creation.versions()

    def fill(place: Run, number: int) -> None:
        creation.fill(place, f"{name}-{number}", of_element(spec, name, values[number]), versions)
        creation.write_scripts(place, *both)

    wanted = range(len(values)) if arguments.element is None else [arguments.element]
    with ExitStack() as stack:
        made = [
            stack.enter_context(runs.new_run(f"{name}-{number}", partial(fill, number=number)))
            for number in wanted
        ]
        if arguments.no_submit:
            names = ", ".join(run.name for run in made)
            by_hand = executors.named(spec.train.executor).by_hand(made)
            training.tell_made(f"{names} in {runs.runs_root()}", "all", by_hand)
            if arguments.json:
                print(as_json(made, [values[number] for number in wanted], [({}, None)] * len(made)))
            return 0
        submitted = training.submit(made, both, prerequisites, not arguments.no_evaluation)
    return _tell(arguments, made, values, submitted)


def _free(stem: str) -> str:
    stem = runs.free_name(f"{stem}-sweep").rpartition("-")[0]
    number = 1
    while runs.is_taken(f"{stem}-{number}") or runs.is_taken(f"{stem}-{number}-0"):
        number += 1
    return f"{stem}-{number}"


def as_json(made: list[Run], values: list[dict[str, Any]], submitted: Sequence[executors.Submitted]) -> str:
    return json.dumps(
        [
            creation.summary(run, ids) | value
            for run, (ids, _), value in zip(made, submitted, values, strict=True)
        ]
    )


def _tell(
    arguments: argparse.Namespace,
    made: list[Run],
    values: list[dict[str, Any]],
    submitted: list[executors.Submitted],
) -> int:
    if arguments.json:
        print(as_json(made, values, submitted), flush=True)
    else:
        for run, (ids, _), value in zip(made, submitted, values, strict=True):
            what = " ".join(f"{key}={one}" for key, one in value.items())
            print(f"{run.name}  {what}  {'  '.join(f'{stage} {id}' for stage, id in ids.items())}")
        sweep = made[0].name.rpartition("-")[0]
        print(f"status   python launch/status.py {sweep}")
        print(f"compare  python launch/report.py --compare {sweep}", flush=True)
    if not arguments.wait:
        return 0
    from launch.observe import waiting

    gc.enable()  # which launch/train.py has disabled
    codes = []
    for run, (ids, process) in zip(made, submitted, strict=True):
        print(f"==> {run.name}", file=sys.stderr if arguments.json else sys.stdout, flush=True)
        codes.append(waiting.wait(run, ids, process, arguments.json))
    if any(codes):
        print(f"{sum(map(bool, codes))} of {len(codes)} runs did not finish successfully", file=sys.stderr)
    return max(codes)
