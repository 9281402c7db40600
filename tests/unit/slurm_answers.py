"""Slurm's commands as programs on PATH that answer what a test says, for what no real Slurm does when asked
to: a controller that is away for a moment, an answer that is lost."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest


class FakeSlurm:
    """Commands that succeed and say nothing, unless told otherwise; what they were called with is kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        self.log = folder / "log"
        self.log.touch()
        for name in ("scontrol", "sbatch", "squeue", "scancel"):
            self._write(name, "")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.rules: dict[str, list[str]] = {}

    def says(self, command: str, answer: str = "", error: str = "", times: int | None = None) -> None:
        """Calls that begin with `command` get this answer (or error), for so many `times`, else for good."""
        name, rules = command.split()[0], self.rules.setdefault(command.split()[0], [])
        count = self.folder / f"count-{name}-{len(rules)}"
        lines = [f'case "$0 $*" in */{shlex.quote(command)}*)']
        if times is not None:
            lines += [f"echo >> {count}", f'if [ "$(wc -l < {count})" -le {times} ]; then']
        lines.append(
            f"echo {shlex.quote(error)} >&2; exit 1" if error else f"echo {shlex.quote(answer)}; exit"
        )
        if times is not None:
            lines.append("fi")
        rules.append("\n".join([*lines, ";; esac"]))
        self._write(name, "\n".join(rules))

    def calls(self, command: str) -> list[str]:
        """Every call that began with `command`, in order."""
        return [line for line in self.log.read_text().splitlines() if line.startswith(command)]

    def _write(self, name: str, rules: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{rules}\n')
        path.chmod(0o755)
