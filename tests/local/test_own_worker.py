"""examples/plain_pytorch.py, a training without MMSegmentation, as a run on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events
from tests import plain
from tests.stages import ROOT, wait_until


class Launcher:
    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
        self.environment = kept | {"BATON_RUNS": str(self.runs), "OMP_NUM_THREADS": "1"}
        self.data = folder / "data"
        self.data.mkdir()

    def __call__(self, script: str, *arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, f"launch/{script}.py", *map(str, arguments)],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def train(self, name: str, ranks: int, *own: object, wait: bool = True) -> None:
        options = ["--cluster", "local", "--data-root", self.data, "--gpus", ranks, "--run", name]
        options += ["--wait"] if wait else []
        self("train", "--worker", plain.EXAMPLE, *options, "--", *own)

    def events(self, run: str, name: str) -> list[dict[str, Any]]:
        return [one for one in events.iterate(self.runs / run / "events.jsonl") if one["event"] == name]


@pytest.mark.parametrize("ranks", [1, 2])
def test_interrupted_it_ends_with_the_same_bits(tmp_path: Path, ranks: int) -> None:
    """By a preemption that it is warned of, and by a cancellation."""
    launch = Launcher(tmp_path)
    own = ("--steps", 400, "--save-every", 50)
    launch.train("alone", ranks, *own)
    launch.train("often", ranks, *own, wait=False)
    wait_until(lambda: launch.events("often", "checkpoint"), 180)
    controller = json.loads((launch.runs / "often/job/local.json").read_text())["pid"]
    os.kill(controller, signal.SIGUSR2)
    wait_until(lambda: launch.events("often", "resumed"), 180)
    (left,) = launch.events("often", "preempted")
    assert [one["step"] for one in launch.events("often", "resumed")] == [left["step"]]
    assert 50 <= left["step"] < 400

    launch("cancel", "often")
    assert "python launch/train.py --resume often" in launch("status", "often")
    launch("train", "--resume", "often", "--wait")
    assert [one["step"] for one in launch.events("often", "finished")] == [400]
    assert not launch.events("often", "failed")
    plain.assert_same(plain.final_state(launch.runs / "alone"), plain.final_state(launch.runs / "often"))

    shown = launch("status", "often")
    assert "step 400/400" in shown
    assert "best accuracy" in shown
    assert "evaluate.py" not in shown
    assert (
        "examples/plain_pytorch.py"
        in launch("report", "often") + (launch.runs / "often/report.html").read_text()
    )
    assert f"{ranks} process" in launch("logs", "often")
    assert "is finished: python launch/report.py often" in launch("train", "--resume", "often", code=2)


def test_its_error_is_the_runs_and_its_users_mistake_is_not_tried_again(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    options = ["--cluster", "local", "--data-root", launch.data, "--gpus", 1, "--wait"]
    program = tmp_path / "wrong.py"
    program.write_text(
        "import sys\nfrom jobs.worker import UserError, Worker\n"
        "with Worker():\n"
        "    if sys.argv[1] == 'mistake':\n        raise UserError('no such thing as that')\n"
        "    raise ValueError('a bad batch')\n"
    )
    launch("train", "--worker", program, *options, "--run", "mistake", "--", "mistake", code=2)
    (failed,) = launch.events("mistake", "failed")
    assert (failed["error"], failed["exit_code"]) == ("no such thing as that", 2)
    assert len(launch.events("mistake", "started")) == 1

    launch("train", "--worker", program, *options, "--run", "defect", "--", "defect", code=1)
    assert {one["error"] for one in launch.events("defect", "failed")} == {
        "ValueError: a bad batch (wrong.py:6)"
    }
    assert len(launch.events("defect", "started")) > 1
    assert launch.events("defect", "stopped")


BEFORE = "import argparse\nfrom jobs.worker import Worker\nargparse.ArgumentParser().parse_args()\n"


@pytest.mark.parametrize("inside", [True, False])
def test_wrong_arguments_are_its_users_mistake(inside: bool, tmp_path: Path) -> None:
    """Whether it reads them before it is a Worker or after."""
    launch = Launcher(tmp_path)
    program = ROOT / plain.EXAMPLE
    if not inside:
        program = tmp_path / "before.py"
        program.write_text(BEFORE)
    options = ["--cluster", "local", "--data-root", launch.data, "--gpus", 2, "--wait"]
    said = launch("train", "--worker", program, *options, "--run", "own", "--", "--stepz", "20", code=2)
    reason = f"{program.name}: error: unrecognized arguments: --stepz 20"
    (failed,) = launch.events("own", "failed")
    assert (failed["error"], failed["exit_code"]) == (reason, 2)
    assert [one["reason"] for one in launch.events("own", "stopped")] == [reason]
    assert len(launch.events("own", "started")) == 1
    assert "Traceback" not in said + launch("logs", "own")
    assert reason in launch("status", "own")
