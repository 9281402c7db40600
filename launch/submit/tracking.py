"""`--track` and the profile's `track`: checks that the jobs can send to the services named."""

from __future__ import annotations

import argparse
import os
import sys

from jobs.run import files, trackers
from jobs.run.errors import UserError
from launch.submit import interpreters
from launch.submit.profiles import Resolved

MLFLOW = "MLFLOW_TRACKING_URI"


def add_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--track",
        action="append",
        metavar="SERVICE",
        help=f"show the run's curves there, too: {', '.join(trackers.NAMES)} (can be repeated)",
    )


def check(train: Resolved, of_worker: list[str] | None) -> None:
    """Raises UserError for a service whose package the job lacks or whose server is not configured.

    `of_worker`: the values of --track, if a --worker trains. (The profile's are for every training.)"""
    if any("tensorboard" in given.split(",") for given in of_worker or []):
        raise UserError(
            "--track tensorboard: a --worker has no TensorBoard files unless it writes them itself (into "
            f"$BATON_RUN/{files.TENSORBOARD()}, say); its scalars are in metrics.jsonl, and go to "
            f"--track {', '.join(trackers.SENT)}"
        )
    settings = train.settings
    asked = [name for name in trackers.SENT if name in settings.track]
    lacking = [name for name in asked if not trackers.is_installed(name)]
    if lacking and interpreters.is_this(train):
        raise UserError(
            f"--track {lacking[0]}: {lacking[0]} is not installed: env/setup.sh --with track installs the "
            f"services' packages, or: {sys.executable} -m pip install {' '.join(lacking)}"
        )
    given = os.environ.keys() | settings.env.keys() | settings.secrets.keys()
    if "mlflow" in asked and MLFLOW not in given:
        raise UserError(
            f"--track mlflow: {MLFLOW}, the server's address, is not set: set it in your shell, or in the "
            "profile's `env`"
        )
