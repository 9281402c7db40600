"""A login node whose Slurm is made of scripts, for what no real Slurm can be made to answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from jobs.run import files

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = re.compile(
    r"s(acct|acctmgr|alloc|attach|batch|bcast|cancel|control|crontab|crun|diag|gather|h5util|info|prio|queue"
    r"|report|run|share|stat|trigger|view)|slurm\w+"
)
VARIABLES = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "BATON_")


def path_without_slurm(path: str, folder: Path) -> str:
    """`path` (as in $PATH) without Slurm's commands: a folder that holds some is replaced by links, made in
    `folder`, to all else in it."""
    kept = []
    for number, place in enumerate(path.split(os.pathsep)):
        names = os.listdir(place) if os.path.isdir(place) else []
        others = [name for name in names if not COMMANDS.fullmatch(name)]
        if others != names:
            links = folder / str(number)
            links.mkdir()
            for name in others:
                (links / name).symlink_to(Path(place, name).absolute())
            place = str(links)
        kept.append(place)
    return os.pathsep.join(kept)


class Site:
    """A login node whose Slurm commands are shell scripts of ours; `calls` is what was asked of them."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.runs = folder / "runs"
        self.log = folder / "calls"
        self.data = data
        for name in ("sacct", "scancel", "scontrol", "squeue", "srun"):
            self.command(name, "exit 0")

    def command(self, name: str, body: str) -> None:
        file = self.bin / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> "{self.log}"\n{body}\n')
        file.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.split()[0] == name]

    def __call__(
        self, script: str, *arguments: str, redirected: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`redirected`: as the shell has it after a command, such as `>&-`."""
        environment = os.environ | variables
        environment |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "BATON_RUNS": str(self.runs)}
        environment |= {"SLURM_CONF": "x"}  # which stands for a configuration that this machine lacks
        return subprocess.run(
            ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, f"launch/{script}.py", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def train(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        common = ["--config", "tests/support/configs/tiny.py", "--data-root", str(self.data), "--run", "mine"]
        return self("train", *common, *arguments, **variables)

    def contents(self) -> dict[str, bytes]:
        """Of all files but the one that a command locks, which is empty."""
        found = (path for path in self.runs.rglob("*") if path.is_file() and path.name != files.TURN())
        return {str(path): path.read_bytes() for path in found}


def one_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for words in said:
        assert words in done.stderr
