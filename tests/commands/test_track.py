"""--track and track.py, as typed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.made_runs import made_run

ROOT = Path(__file__).resolve().parents[2]


NO_MLFLOW = (
    "--track mlflow: mlflow is not installed: env/setup.sh --with track installs"
    if importlib.util.find_spec("mlflow") is None
    else "--track mlflow: MLFLOW_TRACKING_URI, the server's address, is not set"
)


def call(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "BATON"))}
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--track", "wandbb"], "`track` names no service that is known: 'wandbb'; did you mean 'wandb'?"),
        (["--track", "mlflow"], NO_MLFLOW),
        (["--track", "tensorboard,clearml,"], "names no service that is known: ''"),
    ],
)
def test_a_service_that_jobs_could_not_tell_is_refused(given: list[str], words: str, tmp_path: Path) -> None:
    arguments = ["--config", "tests/support/configs/tiny.py", "--cluster", "local", "--no-submit", *given]
    done = call("train", *arguments, BATON_RUNS=str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert done.stderr.count("\n") <= 2
    assert not list(tmp_path.iterdir())


def test_a_package_is_found_wherever_python_finds_it(tmp_path: Path) -> None:
    """As with `pip install --target`; a folder of its name, as W&B makes them, is not the package."""
    arguments = ["--config", "tests/support/configs/tiny.py", "--cluster", "local", "--dry-run", "--track"]
    (tmp_path / "here" / "clearml").mkdir(parents=True)
    with_it = {"BATON_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(tmp_path / "here")}
    if importlib.util.find_spec("clearml") is None:
        done = call("train", *arguments, "clearml", **with_it)
        assert "--track clearml: clearml is not installed" in done.stderr
    (tmp_path / "here" / "clearml" / "__init__.py").touch()
    done = call("train", *arguments, "clearml", **with_it)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_keeps_what_is_tracked(tmp_path: Path) -> None:
    arguments = [
        "--config",
        "tests/support/configs/tiny.py",
        "--cluster",
        "slurm",
        "--dry-run",
        "--track",
        "tensorboard",
    ]
    done = call("train", *arguments, BATON_RUNS=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "--track=tensorboard" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="it is about one that is missing")
def test_one_service_does_not_cost_another(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    request = run.request()
    request.cluster.track = ["wandb", "clearml"]
    run.write_request(request)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "clearml.py").touch()
    done = call("track", "mine", BATON_RUNS=str(tmp_path), PYTHONPATH=str(tmp_path / "here"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: wandb is not installed")
    assert done.stdout == "mine has nothing to send yet: a step is sent when it is saved in a checkpoint\n"


def test_a_run_that_names_no_service(tmp_path: Path) -> None:
    made_run(tmp_path / "mine")
    done = call("track", "mine", BATON_RUNS=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: mine names no service: give --to wandb or mlflow or clearml\n"


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="it is about what comes after")
def test_a_directory_that_takes_no_notes(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    (run.path / "track").touch()
    done = call("track", "mine", "--to", "mlflow", BATON_RUNS=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: {run.path}/track: cannot record there what is sent: File exists\n"
