"""That the unit tests do not see a Slurm of the machine that they run on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.unit import fake_slurm


def test_no_unit_test_sees_a_slurm_of_the_machine() -> None:
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel", "sinfo"):
        assert shutil.which(name) is None
    assert not [name for name in os.environ if name.startswith(fake_slurm.VARIABLES)]


def test_a_path_loses_slurm_and_nothing_else(tmp_path: Path) -> None:
    with_slurm, without = tmp_path / "bin", tmp_path / "other"
    for folder, names in ((with_slurm, ("sbatch", "slurmctld", "sort")), (without, ("tool",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"#!/bin/sh\necho {name}\n")
            (folder / name).chmod(0o755)
    links = tmp_path / "links"
    links.mkdir()
    path = fake_slurm.path_without_slurm(f"{without}:{with_slurm}:/nonexistent", links)
    assert path.split(":")[0] == str(without)
    assert shutil.which("sbatch", path=path) is shutil.which("slurmctld", path=path) is None
    for name in ("sort", "tool"):
        program = shutil.which(name, path=path)
        assert program
        assert subprocess.run([program], capture_output=True, text=True).stdout == f"{name}\n"
