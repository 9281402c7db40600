"""`train.py --stage`, as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from jobs.run.directory import Run
from tests.stages import ROOT


def test_the_command_refuses_what_is_no_path_and_says_when_nothing_is_packed(
    voc_small: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "BATON_RUNS": str(tmp_path / "runs")}

    def train(stage: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "launch/train.py",
            "--cluster",
            "local",
            "--no-submit",
        ]
        command += ["--config", "tests/configs/tiny.py", "--data-root", str(voc_small), "--stage", stage]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    wrong = train("here")
    assert wrong.returncode == 2
    assert "`stage` must be an absolute path on the nodes" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    made = train("$TMPDIR")
    assert made.returncode == 0
    assert "this config reads none: python launch/prepare.py --pack" in made.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert Run(run).request().settings.stage == "$TMPDIR"
