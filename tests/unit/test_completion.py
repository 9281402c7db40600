"""Completion as a real bash does it, and help with examples from every command."""

from __future__ import annotations

import os
import shutil
import subprocess
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


HOSTILE = (
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned;",
    "x$(touch pwned)",
    "<(touch pwned)",
    "*",
    "-rf",
    "a b",
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_folders_name_is_neither_executed_nor_offered(tmp_path: Path) -> None:
    """In a shared folder of runs, others make the names."""
    runs = tmp_path / "runs"
    for name in (*HOSTILE, "first", "$(touch ${PWD}pwned)"):
        try:
            (runs / name).mkdir(parents=True)
        except OSError:
            continue
        (runs / name / "run.yaml").touch()
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "completion.sh").write_text(completion.script())
    for begun in ("", "x", "$", "a", "*", "-"):
        for words in (f"launch/status.py '{begun}'", f"launch/train.py --resume '{begun}'"):
            program = (
                f"source {tmp_path}/completion.sh; COMP_WORDS=(python {words}); "
                'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _baton; printf "%s\\n" "${COMPREPLY[@]}"'
            )
            done = subprocess.run(
                ["bash", "--norc", "-c", program], cwd=here,
                env=os.environ | {"BATON_RUNS": str(runs)}, capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            offered = {word for word in done.stdout.split() if not word.startswith("--")}
            assert offered <= {"first", "-h", "-n"}
    assert not list(here.iterdir())
