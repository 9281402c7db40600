"""The services that may show a run's curves, and which of them a run is sent to.

TensorBoard is written by the training itself. The others are told by `launch/track.py`, a process beside the
training that reads the run's files: whatever such a service does, no step waits for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re

from jobs.run.directory import Run

SENT = ("wandb", "mlflow", "clearml")
"""Told by launch/track.py; the names are those of their packages."""

NAMES = (*SENT, "tensorboard")

BACKENDS = {"WandbVisBackend": "wandb", "MLflowVisBackend": "mlflow", "ClearMLVisBackend": "clearml"}
"""What a config's `visualizer.vis_backends` calls them."""


def wanted(run: Run) -> list[str]:
    """The services that the run's curves go to: those of `--track` or of the profile, and those that its
    resolved config names. Raises UserError if run.yaml cannot be read."""
    asked: set[str] = set(run.request().cluster.track)
    try:
        text = run.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not written yet
        text = ""
    asked |= {name for backend, name in BACKENDS.items() if backend in text}
    return [name for name in SENT if name in asked]


def is_installed(name: str) -> bool:
    """Whether the service's package can be imported. A folder of its name, as W&B makes them, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def id_of(name: str, created: str) -> str:
    """What a run is called in every service: the same at each of its starts, and another run's is another,
    be it of the same name in another checkout. At most 64 letters, digits, - and _ (W&B takes no more)."""
    digest = hashlib.blake2b(f"{name}\n{created}".encode(), digest_size=5).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]+', '-', name)[:50]}-{digest}"
