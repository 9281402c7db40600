"""A run for a model from an exported folder (jobs/run/exported.py), without a training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.run import exported
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import configs, interpreters, options, runs
from launch.submit import creation as requests
from launch.submit.profiles import Resolved


def folder(given: str) -> Path | None:
    """The exported folder that a command's RUN names; None for a run's name or path, which takes precedence.

    Raises UserError for a folder that is damaged.
    """
    path = Path(given).expanduser().absolute()
    if Run(runs.runs_root() / given).request_file.is_file() or exported.read(path) is None:
        return None
    return path


@contextmanager
def new_run(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[Run, Resolved, str]]:
    """(run, settings of its inference, checkpoint); the run is deleted again if the body raises."""
    if arguments.checkpoint != "best":
        raise UserError(f"{folder} holds a single model: --checkpoint is for a run")
    if arguments.dry_run:
        raise UserError("--dry-run needs a run, and for an exported model a run is only made on submission")
    resolved = options.settings(arguments, options.profile(arguments), "infer")
    config = folder / exported.CONFIG
    runs.check_path(config, "the exported folder")
    chain = configs.check(config, evaluated=False, here=interpreters.is_this(resolved), trained=False)
    spec = requests.TrainingSpec(
        train=resolved, evaluate=resolved, infer=resolved, config=config, chain=chain,
        data_root=runs.CHECKOUT / "data",
    )  # fmt: skip
    with requests.untrained(spec, folder.name) as run:
        yield run, resolved, str(folder / exported.WEIGHTS)
