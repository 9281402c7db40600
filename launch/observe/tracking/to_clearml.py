"""To ClearML. Online, every start continues the same task. Offline there is no task to continue: the whole
session is written anew each time and replaces the one before; `Task.import_offline_session` sends it
(https://clear.ml/docs/latest/docs/references/sdk/task#taskimport_offline_session).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from launch.observe.tracking.content import PER_CLASS, About, Content, Row
from launch.observe.tracking.sending import State


class Service:
    def open(self, about: About, state: State, folder: Path) -> int:
        asked = os.environ.get("CLEARML_OFFLINE_MODE", "").lower()
        # Parsed as ClearML does, which must not be imported yet.
        offline = asked not in ("", "0", "false", "off", "no", "f", "n") or not has_key()
        if offline:
            os.environ["CLEARML_CACHE_DIR"] = str(folder / "clearml")
        from clearml import Task

        given = dict(about.backends.get("clearml", {}).get("init_kwargs") or {})
        Task.set_offline(offline)
        # By default it forks a reporting process while threads are running, which may hang at exit.
        Task._report_subprocess_enabled = False
        default: dict[str, Any] = {
            "project_name": os.environ.get("CLEARML_PROJECT") or "baton",
            "task_name": about.name,
            "tags": [*about.tags, about.id, *([about.group] if about.group else [])],
        }
        # Record nothing of this process itself: neither its output, its arguments nor its code.
        fixed: dict[str, Any] = {
            "auto_connect_arg_parser": False,
            "auto_connect_frameworks": False,
            "auto_connect_streams": False,
            "auto_resource_monitoring": False,
            "continue_last_task": state.id if state.id and not offline else False,
            "reuse_last_task_id": False,
        }
        self.task = Task.init(**(default | given | fixed))
        self.task.set_initial_iteration(0)  # otherwise it adds the last iteration to those of this process
        self.task.set_parameters(about.parameters)
        if about.config:
            self.task.set_configuration_object("config.py", config_text=about.config)
        self.logger = self.task.get_logger()
        taken_up, state.id = not offline and self.task.id == state.id, self.task.id
        state.folder = str(self.task.get_offline_mode_folder() or "")
        return state.sent if taken_up else -1

    def rows(self, rows: list[Row]) -> None:
        for step, row in rows:
            for name, value in row.items():
                kind, _, series = name.rpartition("/")
                if isinstance(value, Path):
                    self.logger.report_image(kind, series, step, local_path=str(value))
                else:
                    self.logger.report_scalar(kind or "run", series, value, step)
        self.task.flush(wait_for_uploads=True)

    def facts(self, facts: dict[str, float], step: int) -> None:  # noqa: ARG002
        for name, value in facts.items():
            self.logger.report_single_value(f"run/{name}", value)

    def evaluation(self, found: Content, step: int) -> None:
        for name, value in found.scores.items():
            self.logger.report_single_value(f"{found.named}/{name}", value)
        rows = [
            ["class", *PER_CLASS],
            *([one["name"], *(one.get(key) for key in PER_CLASS)] for one in found.classes),
        ]
        self.logger.report_table(found.named, "classes", iteration=max(step, 0), table_plot=rows)

    def close(self, state: str) -> None:  # noqa: ARG002
        mine = self.task.get_offline_mode_folder()
        self.task.close()
        for other in Path(mine).parent.glob("offline-*") if mine else ():
            if other.stem != self.task.id:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def has_key() -> bool:
    """Whether ClearML is configured with a server and a key."""
    return (
        bool(os.environ.get("CLEARML_API_ACCESS_KEY"))
        or Path("~/clearml.conf").expanduser().is_file()
        or bool(os.environ.get("CLEARML_CONFIG_FILE"))
    )
