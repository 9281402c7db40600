"""To MLflow, through its client. The server knows which steps it has, so nothing is sent twice."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.run.records import number
from launch.observe.tracking.content import PER_CLASS, About, Content, Row
from launch.observe.tracking.sending import State

ID = "baton.id"
"""The tag by which the run is found again."""
MOST_METRICS = 900
"""Metrics per request; the REST API takes 1,000 (https://mlflow.org/docs/latest/rest-api.html#log-batch)."""
MOST_PARAMETERS = 90
LONGEST = 500
"""The most characters of a parameter's value."""
STATES = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "going": "SCHEDULED"}


class Service:
    def open(self, about: About, state: State, folder: Path) -> int:  # noqa: ARG002
        # By default it retries for many minutes; here another attempt follows anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.tracking import MlflowClient

        given = about.backends.get("mlflow", {})
        address = given.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            raise ValueError("MLFLOW_TRACKING_URI, the server's address, is not set in the job")
        self.client = MlflowClient(address)
        experiment = self.experiment(
            given.get("exp_name") or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "baton"
        )
        found = self.client.search_runs([experiment], filter_string=f"tags.`{ID}` = '{about.id}'")
        new = not found
        if new:
            tags = {ID: about.id, "mlflow.note.content": "trained by Baton", **(given.get("tags") or {})}
            tags |= {"sweep": about.group} if about.group else {}
            name = given.get("run_name") or about.name
            found = [self.client.create_run(experiment, run_name=name, tags=tags)]
        state.id = self.run = found[0].info.run_id
        # A start may have ended between the two; parameters that the server has cannot be changed.
        self.describe(about, found[0].data.params)
        if not new:
            self.client.update_run(self.run, status="RUNNING")
        known = self.client.get_metric_history(self.run, "epoch")
        return max((one.step for one in known), default=-1)

    def experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self.client.create_experiment(name))

    def describe(self, about: About, known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        given = {clean(key): str(value)[:LONGEST] for key, value in about.parameters.items()}
        named = [Param(key, value) for key, value in given.items() if key not in known]
        for at in range(0, len(named), MOST_PARAMETERS):
            self.client.log_batch(self.run, params=named[at : at + MOST_PARAMETERS])

    def rows(self, rows: list[Row]) -> None:
        """Never splits a step's figures between two requests: the server has all of them or none."""
        batch: list[Any] = []
        for step, both in rows:
            row = {key: one for key, one in both.items() if not isinstance(one, Path)}
            self.pictures([one for one in both.values() if isinstance(one, Path)], step)
            if len(batch) + len(row) > MOST_METRICS:
                self.client.log_batch(self.run, metrics=batch)
                batch = []
            batch += metrics(row, step)
        if batch:
            self.client.log_batch(self.run, metrics=batch)

    def pictures(self, paths: list[Path], step: int) -> None:
        """Sends pictures; if the server has no artifact store, its curves go without."""
        try:
            for path in paths:
                self.client.log_artifact(self.run, str(path), f"pictures/{step}")
        except Exception as error:  # from any kind of artifact store
            print(f"no pictures of step {step}: {error}", flush=True)

    def facts(self, facts: dict[str, float], step: int) -> None:
        named = {f"run/{key}": value for key, value in facts.items()}
        self.client.log_batch(self.run, metrics=metrics(named, max(step, 0)))

    def evaluation(self, found: Content, step: int) -> None:
        scores = {f"{found.named}/{key}": value for key, value in found.scores.items()}
        for one in found.classes:
            told = [key for key in PER_CLASS if number(one.get(key)) is not None]
            scores |= {f"{found.named}/{key}/{one['name']}": one[key] for key in told}
        named = metrics(scores, max(step, 0))
        for at in range(0, len(named), MOST_METRICS):
            self.client.log_batch(self.run, metrics=named[at : at + MOST_METRICS])

    def close(self, state: str) -> None:
        if state == "going":
            self.client.update_run(self.run, status=STATES[state])
        else:
            self.client.set_terminated(self.run, STATES[state])


def metrics(row: dict[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(clean(key), float(value), now, step) for key, value in row.items()]


def clean(name: str) -> str:
    """A name as MLflow accepts it: letters, digits and _ - . space / (mlflow.utils.validation)."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:250]
