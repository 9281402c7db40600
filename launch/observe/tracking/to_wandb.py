"""To W&B. Every start resumes the same run, by its id; W&B's own step is the training's iteration.

Offline, each process writes a folder of its own, and `wandb sync` merges those with the same id in the order
in which they were started (https://docs.wandb.ai/models/ref/cli/wandb-sync). What a killed process has
written is uncertain, so the next process writes its folder anew, unless it has already been synced.
"""

from __future__ import annotations

import netrc
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from launch.observe.tracking.content import PER_CLASS, About, Content, Row
from launch.observe.tracking.sending import State

EXIT_CODES = {"finished": 0, "failed": 1, "cancelled": 255, "going": 1}


class Service:
    def open(self, about: About, state: State, folder: Path) -> int:
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "60")
        import wandb

        given = dict(about.backends.get("wandb", {}).get("init_kwargs") or {})
        mode = given.get("mode") or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        offline = mode in ("offline", "dryrun")
        if offline:
            remove_torn(folder / "wandb", state.closed)
        default: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT") or "baton",
            "name": about.name,
            "group": about.group or None,
            "tags": about.tags,
            "config": about.parameters,
            "id": about.id,
        }
        # W&B writes into `wandb` below. No code and no console output: the run's directory has those.
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, disable_job_creation=True
        )
        fixed = {"mode": mode, "resume": "allow", "dir": str(folder), "settings": settings}
        self.run = wandb.init(**(default | given | fixed))
        if self.run.disabled:  # it accepts everything and keeps nothing
            raise ValueError(
                f"W&B is switched off (mode {mode}): WANDB_MODE=offline would keep the curves here"
            )
        state.id, state.folder = self.run.id, str(Path(self.run.dir).parent)
        if offline:
            # `wandb sync` uses the summary of the last folder for the run: each needs all of it.
            self.run.summary.update(state.newest)
            state.evaluation = ""
            return state.sent
        return int(self.run.starting_step) - 1

    def rows(self, rows: list[Row]) -> None:
        import wandb

        for step, row in rows:
            shown = {key: wandb.Image(str(one)) if isinstance(one, Path) else one for key, one in row.items()}
            self.run.log(shown, step=step)

    def facts(self, facts: dict[str, float], step: int) -> None:  # noqa: ARG002
        self.run.summary.update({f"run/{key}": value for key, value in facts.items()})

    def evaluation(self, found: Content, step: int) -> None:  # noqa: ARG002
        import wandb

        self.run.summary.update({f"{found.named}/{key}": value for key, value in found.scores.items()})
        per_class = {
            f"{found.named}/{key}/{one['name']}": one[key]
            for one in found.classes
            for key in PER_CLASS
            if one.get(key) is not None
        }
        table = wandb.Table(columns=["class", *PER_CLASS])
        for one in found.classes:
            table.add_data(one["name"], *(one.get(key) for key in PER_CLASS))
        self.run.summary.update({**per_class, f"{found.named}/classes": table})  # in no step: more may follow

    def close(self, state: str) -> None:
        if state == "going":
            self.run.mark_preempting()
        self.run.finish(exit_code=EXIT_CODES[state])


def has_key() -> bool:
    """Whether W&B can log in from this job without a prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def remove_torn(folder: Path, closed: list[str]) -> None:
    """Removes what killed processes have left, even if nothing was written yet: `wandb sync` gives up at an
    incomplete file, and then does not send the run's other ones either."""
    for left in folder.glob("offline-run-*"):
        if left.name not in closed and not synced(left):
            shutil.rmtree(left, ignore_errors=True)


def synced(folder: Path) -> bool:
    """Whether `wandb sync` has sent an offline folder: it leaves a marker file in it."""
    return any(folder.glob("*.synced"))
