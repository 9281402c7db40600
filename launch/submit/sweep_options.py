"""`--sweep KEY=A,B,C`, `--seeds` and `--zip`: what distinguishes the runs of a sweep."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from typing import Any

from jobs.run.directory import check_seed
from jobs.run.errors import UserError
from launch.submit import options

SEED = "randomness.seed"
MOST = 1000
"""The most runs of a sweep: Slurm's default limit for a job array (MaxArraySize)."""


def add(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--sweep",
        action="append",
        metavar="KEY=A,B,C",
        help="one run for each value, as one job array; if repeated, for each combination",
    )
    to.add_argument("--seeds", metavar="0,1,2", help="one run for each seed (of each combination of --sweep)")
    to.add_argument(
        "--zip",
        action="store_true",
        help="pair the first values, then the second, and so on, instead of every combination",
    )


def command_line(arguments: argparse.Namespace) -> list[str]:
    """The options as they would be typed again elsewhere."""
    argv = [f"--sweep={text}" for text in arguments.sweep or []]
    return [
        *argv,
        *([f"--seeds={arguments.seeds}"] if arguments.seeds is not None else []),
        *["--zip"] * arguments.zip,
    ]


def elements(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The overrides of each run, dotted key -> value; a seed as SEED. Raises UserError."""
    axes = [parse(text) for text in arguments.sweep or []]
    if arguments.seeds is not None:
        axes.append((SEED, seeds(arguments.seeds)))
    keys = [key for key, _ in axes]
    if arguments.seed is not None and SEED in keys:
        option = "--seeds" if arguments.seeds is not None else f"--sweep {SEED}"
        raise UserError(f"{option} and --seed: give the seeds only once")
    for number, key in enumerate(keys):
        if key in keys[:number] or key in {pair.partition("=")[0] for pair in arguments.set}:
            raise UserError(f"--sweep {key}: its values are given more than once (--sweep, --seeds, --set)")
        for value in axes[number][1] if key == SEED else []:
            check_seed(value, "--sweep")
    if arguments.zip and len({len(values) for _, values in axes}) > 1:
        counts = ", ".join(f"{len(values)} of {key}" for key, values in axes)
        raise UserError(f"--zip needs the same number of values for each: there are {counts}")
    # The last axis, the seeds, changes fastest.
    columns = [values for _, values in axes]
    count = len(columns[0]) if arguments.zip else math.prod(map(len, columns))
    if count > MOST:
        raise UserError(f"--sweep: {count} runs are more than {MOST}: divide the sweep")
    combined = zip(*columns, strict=True) if arguments.zip else itertools.product(*columns)
    found = [dict(zip(keys, values, strict=True)) for values in combined]
    seen = set()
    for element in found:
        same = tuple(map(_meant, element.values()))
        if same in seen:
            twice = " ".join(f"{key}={value}" for key, value in element.items())
            raise UserError(f"--sweep: two runs would be the same, with {twice}: name each value once")
        seen.add(same)
    return found


def _meant(value: Any) -> str:
    """Equal for values that mean the same: 0.01 and 0.010, 1 and 1.0, but not 1 and True."""
    return repr(int(value) if type(value) is float and value.is_integer() else value)


def parse(text: str) -> tuple[str, list[Any]]:
    """Parses KEY=A,B,C into (key, values); commas in brackets or quotes do not split. Raises UserError."""
    key, equals, values = text.partition("=")
    if not equals or not all(key.split(".")) or not values:
        raise UserError(f"--sweep {text!r}: write KEY=A,B,C, such as optim_wrapper.optimizer.lr=0.01,0.02")
    try:
        parts = options.parts(values)
    except ValueError as error:
        raise UserError(f"--sweep {text!r}: {error}") from None
    if any(not part.strip() for part in parts):
        raise UserError(f"--sweep {text!r}: a value is empty")
    return key, [options.literal(options.weights_found(key, part.strip())) for part in parts]


def seeds(text: str) -> list[int]:
    """The seeds of `--seeds 0,1,2` or `--seeds 0-4`. Raises UserError."""
    found: list[int] = []
    for part in text.split(","):
        one = re.fullmatch(r"\s*([0-9]{1,20})(?:-([0-9]{1,20}))?\s*", part)
        if not one or int(one[2] or one[1]) < int(one[1]):
            raise UserError(f"--seeds {text!r}: write whole numbers, as 0,1,2 or 0-4")
        first, last = int(one[1]), int(one[2] or one[1])
        check_seed(last, "--seeds")
        if len(found) + last - first >= MOST:
            raise UserError(f"--seeds {text!r}: a sweep has {MOST} runs at most: divide the sweep")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise UserError(f"--seeds {text!r}: a seed appears twice")
    return found
