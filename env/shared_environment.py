"""This checkout's environment, lent to a bare root so that it need not make its own."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from jobs.run.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]


def environment() -> tuple[str, list[Path]]:
    """(a shell command that sets it up in the clone, this machine's folders that the root needs for that).

    Debian's Python differs between releases: if `.venv` was made with it, the root makes its own environment
    and needs no folders. Raises UserError if there is no environment.
    """
    venv = (CHECKOUT / ".venv").resolve()
    if not (venv / "bin/python").exists():
        raise UserError(f"{CHECKOUT} has no environment yet; make one: env/setup.sh")
    asked = [str(venv / "bin/python"), "-c", "import sys; print(sys.base_prefix)"]
    prefix = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    if prefix in (Path("/usr"), Path("/")):
        return "env/setup.sh a", []
    return f"ln -sfn {shlex.quote(str(venv))} .venv", [venv, prefix]
