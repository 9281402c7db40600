"""`train.py --worker FILE -- ARGUMENTS`: what is refused, and what a run takes along."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.run.directory import Run
from jobs.run.exit_codes import FINISHED, RESUME, SUPERSEDED, USER_ERROR
from jobs.supervise.supervisor import _Supervisor
from jobs.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


def launch(runs: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        cwd=ROOT, env=kept | {"BATON_RUNS": str(runs)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker", "nowhere.py"], "there is no program 'nowhere.py' for --worker"),
        (["--worker", "examples/plain_pytorc.py"], "did you mean examples/plain_pytorch.py?"),
        (["--worker", "README.md"], "README.md, line"),
        (["--worker", "examples/plain_pytorch.py", "--set", "a=1"], "takes no --set"),
        (["--worker", "examples/plain_pytorch.py", "--config", "x.py"], "takes no --config"),
        (["--worker", "examples/plain_pytorch.py", "--sweep", "lr=1,2"], "takes no --sweep"),
        (["--worker", "examples/plain_pytorch.py", "--dry-run=evaluate"], "nothing is evaluated after"),
        (["--no-evaluation", "--dry-run=evaluate"], "nothing is evaluated after"),
        (["--worker", "examples/plain_pytorch.py", "--track", "tensorboard"], "has no TensorBoard files"),
        (["--worker", "examples/plain_pytorch.py", "--stage", "/tmp"], "a --worker reads data/ itself"),
        (["--worker", "examples/plain_pytorch.py", "--", "--api-key=x"], "--api-key: a secret does not"),
        (["--worker", "examples/plain_pytorch.py", "--", "--hf-token", "abc"], "--hf-token: a secret"),
        (["--config", "configs/demo.py", "--", "--steps", "5"], "only a --worker takes arguments"),
        (["--resume", "mine", "--", "--steps", "5"], "--resume continues a run as it is"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_run(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = launch(tmp_path / "runs", "train", "--cluster", "local", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_takes_the_program_and_its_modules_along(tmp_path: Path) -> None:
    home, runs = tmp_path / "home", tmp_path / "runs"
    (home / "parts").mkdir(parents=True)
    (home / "mine.py").write_text("import parts.net\nimport helper\nfrom jobs.worker import Worker\n")
    (home / "parts/__init__.py").write_text("")
    (home / "parts/net.py").write_text("import more\n")
    (home / "helper.py").write_text("")
    (home / "more.py").write_text("")
    (home / "unused.py").write_text("")
    words = ["--cluster", "local", "--worker", home / "mine.py", "--run", "own", "--no-submit"]
    done = launch(runs, "train", *words, "--", "--wait", "a b", "--max-token", "77")
    assert done.returncode == 0, done.stderr
    run = Run(runs / "own")
    request = run.request()
    assert (request.config, request.worker) == (
        "",
        ["config_files/mine.py", "--wait", "a b", "--max-token", "77"],
    )
    for name in ("config_files/mine.py", "helper.py", "parts/net.py", "more.py", "jobs/worker/__init__.py"):
        assert (run.code / name).is_file(), name
    assert not list(run.code.rglob("unused.py"))

    # It has no MMSegmentation model, which the commands for one say.
    for script, *rest in (("evaluate",), ("export",), ("infer", home / "mine.py")):
        done = launch(runs, script, "own", *rest)
        assert done.returncode == 2
        assert "own was trained by config_files/mine.py" in done.stderr
    assert launch(runs, "train", "--resume", "own", "--worker", "x.py").returncode == 2
    done = launch(runs, "train", "--resume", "own", "--track", "wandb,tensorboard")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--track tensorboard: a --worker has no TensorBoard files" in done.stderr
    for given, message in (
        ("--stage=/tmp", "a --worker reads data/ itself"),
        ("--dry-run=evaluate", "nothing is evaluated after"),
    ):
        done = launch(runs, "train", "--resume", "own", given)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr

    # Shown again, what is its own stays its own.
    done = launch(runs, "report", "own")
    assert done.returncode == 0, done.stderr
    assert "-- --wait &#x27;a b&#x27;" in run.report.read_text()


def test_a_dry_run_makes_the_same_run_by_plain_sbatch(tmp_path: Path) -> None:
    done = launch(
        tmp_path, "train", "--cluster", "slurm", "--worker", "examples/plain_pytorch.py", "--run", "own",
        "--dry-run", "--", "--steps", "7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (make,) = [line for line in done.stdout.splitlines() if "--no-submit" in line]
    assert f"--worker={ROOT}/examples/plain_pytorch.py" in make
    assert make.rstrip().endswith("-- --steps 7) || exit")
    assert "--config" not in make
    assert "--checkpoint" not in make
    assert done.stderr.strip().endswith("By hand: … --run own --dry-run | sbatch")


def test_the_example_says_how_it_is_started() -> None:
    done = subprocess.run(
        [sys.executable, "examples/plain_pytorch.py"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "python launch/train.py --worker examples/plain_pytorch.py starts one" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_page_names_every_variable_and_every_call() -> None:
    page = (ROOT / "docs/worker-protocol.md").read_text()
    meeting = SimpleNamespace(
        master_address="", master_port=1, store_key="", start=1, interface="lo", hosts=["a", "a"]
    )
    task = SimpleNamespace(rank=0, world_size=1, local_rank=0, local_world_size=1, job="1")
    copies = SimpleNamespace(environment={})  # Baton's own loader reads staged copies, and no other
    supervisor: Any = SimpleNamespace(task=task, meeting=meeting, run=Run("run"), copies=copies)
    told = _Supervisor.worker_environment(supervisor, {}).keys() | {"BATON_HEARTBEAT_FD", "BATON_STORE_FD"}
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([A-Z][A-Z_]+)`", row)} == told
    calls = {name for row in rows for name in re.findall(r"`worker\.(\w+)", row)}
    left_to_end_step = {"save", "preempted", "check_fence", "report", "asked"}
    assert calls == {name for name in vars(Worker) if not name.startswith("_")} - left_to_end_step
    codes = {int(row.strip()) for row in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert codes == {FINISHED, USER_ERROR, RESUME, SUPERSEDED}


def test_the_library_loads_no_torch() -> None:
    code = "import sys, jobs.worker; print({'torch', 'mmengine', 'mmseg'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"
