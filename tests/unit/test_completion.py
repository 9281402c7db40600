"""Completion as a real bash does it, and help with examples from every command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import completion
from tests.unit.made_runs import made_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_options_choices_and_runs(tmp_path: Path) -> None:
    made_run(tmp_path / "first")
    made_run(tmp_path / "second")
    (tmp_path / "comparison.html").write_text("no run")
    (tmp_path / "prepare").mkdir()
    script = tmp_path / "completion.sh"
    script.write_text(completion.script())

    def complete(*words: str) -> set[str]:
        array = " ".join(f"'{word}'" for word in words)
        program = (
            f"source {script}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _baton; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", program],
            env=os.environ | {"BATON_RUNS": str(tmp_path)}, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert complete("python", "launch/status.py", "f") == {"first"}
    assert complete("python", "launch/logs.py", "") >= {"first", "second"}
    assert complete("python", "launch/logs.py", "first", "--fo") == {"--follow"}
    assert complete("python", "/x/launch/logs.py", "first", "--job", "ev") == {"evaluate"}
    assert complete("python", "launch/train.py", "--resume", "sec") == {"second"}
    for option in ("--resume", "--compare"):
        command = "train" if option == "--resume" else "report"
        assert complete("python", f"launch/{command}.py", option, "") == {"first", "second"}
    assert complete("python", "launch/report.py", "--compare", "first", "") == {"first", "second"}
    assert complete("python", "other.py", "--") == set()


@pytest.mark.parametrize("command", completion.COMMANDS)
def test_help_has_examples(command: str) -> None:
    done = subprocess.run(
        [sys.executable, f"launch/{command}.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"python launch/{command}.py" in done.stdout.partition("examples:")[2]
