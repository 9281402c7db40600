"""The programs a cluster is made of, and what to do where they are missing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess

from jobs.run.errors import UserError

PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "munged": "munge",
    "unshare": "util-linux",
}
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}

# Debian keeps daemons out of an ordinary user's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])


def program(name: str) -> str:
    """Absolute path of a program. Raises UserError with the fix if it is not installed."""
    path = shutil.which(name, path=PATH)
    if path is None:
        package = (PROGRAMS | ACCOUNTING_PROGRAMS).get(name, name)
        raise UserError(
            f"{name} is missing (Debian package {package}); as root: sh tests/support/cluster/install.sh"
        )
    return path


def missing(accounting: bool) -> list[str]:
    """Debian packages that a cluster needs and this machine lacks."""
    wanted = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    return sorted({package for name, package in wanted.items() if shutil.which(name, path=PATH) is None})


def require(accounting: bool = True) -> None:
    if lacking := missing(accounting):
        raise UserError(
            f"Debian packages {' '.join(lacking)} are missing; as root: sh tests/support/cluster/install.sh"
        )


@functools.cache
def slurm_version() -> tuple[int, int]:
    """(major, minor) of the installed Slurm, as (22, 5)."""
    text = subprocess.run([program("slurmctld"), "-V"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None:
        raise UserError(f"slurmctld -V says {text.strip()!r}, which is no version")
    return int(match[1]), int(match[2])
