"""The services that can show a run's curves, and those that a run is sent to.

TensorBoard files are written by the training itself. `launch/track.py`, a process beside the training that
reads the run's files, sends to the others: whatever such a service does, no step waits for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re

from jobs.run.directory import Run

SENT = ("wandb", "mlflow", "clearml")
"""Services that launch/track.py sends to, by the names of their packages."""

NAMES = (*SENT, "tensorboard")

BACKENDS = {"WandbVisBackend": "wandb", "MLflowVisBackend": "mlflow", "ClearMLVisBackend": "clearml"}
"""Their names in a config's `visualizer.vis_backends`."""


def wanted(run: Run) -> list[str]:
    """The services that the run's curves are sent to: those of `--track` or the profile, and those in its
    resolved config. Raises UserError if run.yaml cannot be read."""
    asked: set[str] = set(run.request().cluster.track)
    try:
        text = run.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not written yet
        text = ""
    asked |= {name for backend, name in BACKENDS.items() if backend in text}
    return [name for name in SENT if name in asked]


def is_installed(name: str) -> bool:
    """Whether the service's package can be imported; not a mere folder of its name, such as W&B makes."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def id_of(name: str, created: str) -> str:
    """The run's id in every service: the same at each of its starts, and different for any other run, even
    one of the same name in another checkout. At most 64 letters, digits, - and _ (W&B's limit)."""
    digest = hashlib.blake2b(f"{name}\n{created}".encode(), digest_size=5).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]+', '-', name)[:50]}-{digest}"
