"""Completion as a real zsh does it, at its prompt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launch import completion
from tests.support import terminal
from tests.unit.made_runs import made_run

ZSH = shutil.which("zsh") or ""
# As root on Debian `make local` installs it, so that there its absence is a failure.
MUST = os.geteuid() == 0 and shutil.which("apt-get") is not None


@pytest.mark.skipif(not ZSH and not MUST, reason="no zsh here; as root: sh env/test-tools.sh")
def test_zsh_completes_options_choices_and_runs(tmp_path: Path) -> None:
    assert ZSH, "no zsh: sh env/test-tools.sh installs it"
    for name in ("first", "second"):
        made_run(tmp_path / "runs" / name)
    for name in ("$(touch pwned)", "`touch pwned`", "fi$(touch pwned)"):
        made_run(tmp_path / "runs" / name)
    script = tmp_path / "completion.sh"
    script.write_text(completion.script())
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "xterm", "PS1": "> ",
        "BATON_RUNS": str(tmp_path / "runs"),
    }  # fmt: skip
    with terminal.Terminal([ZSH, "-f", "-i"], environment, columns=120) as shell:

        def typed(keys: str) -> None:
            os.write(shell.master, keys.encode())

        typed(f"autoload -Uz compinit && compinit -u -d {tmp_path}/dump; source {script}; echo re''ady\n")
        shell.until("ready")
        for begun, completed in (
            ("python launch/status.py fi", "status.py first "),
            ("python launch/logs.py first --fo", "logs.py first --follow "),
            ("python /x/launch/logs.py first --job ev", "--job evaluate "),
            ("python launch/train.py --resume sec", "--resume second "),
        ):
            typed(f"\x15{begun}\t")  # Ctrl-U, what is typed, Tab
            shell.until(completed)
    assert not list(Path.cwd().glob("pwned")) + list(tmp_path.rglob("pwned"))
