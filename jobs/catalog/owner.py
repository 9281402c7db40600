"""Who is preparing a data root: the owner recorded in its lock (jobs/prepare/lock.py)."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jobs.run import place
from jobs.run.errors import MALFORMED

NAME = ".prepare.lock"


@dataclass(frozen=True)
class Owner:
    host: str
    pid: int
    process_start: int
    """From /proc, to recognise a reused process id."""
    namespace: str
    """The boot and pid namespace, outside of which process ids mean nothing."""
    job: str
    """Slurm job id, or empty."""
    restart: int
    token: str
    folder: str = ""
    """What it prepares; "" if unknown."""

    def __str__(self) -> str:
        return f"{f'job {self.job}' if self.job else f'process {self.pid}'} on {self.host}"


def myself(folder: str = "") -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=place.process_start(os.getpid()) or 0,
        namespace=namespace(),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        token=uuid.uuid4().hex,
        folder=folder,
    )


def namespace() -> str:
    try:
        here = place.here()
        return f"{here['boot']} {here['pids']}"
    except OSError:
        return ""


def read(data_root: Path) -> tuple[Owner, float] | None:
    """(owner, time of the last heartbeat) from the lock; None if nobody holds it.

    A lock that was just created may still be empty, and a colleague's may be unreadable: its owner is then
    unknown (`token` is empty).
    """
    content = b""
    try:
        # Opened, not stat'ed: then NFS asks the server again.
        with open(data_root / NAME, "rb") as file:
            beat = os.fstat(file.fileno()).st_mtime
            content = file.read()
    except FileNotFoundError:
        return None
    except PermissionError:
        try:
            beat = os.stat(data_root / NAME).st_mtime
        except FileNotFoundError:
            return None
    try:
        return msgspec.json.decode(content, type=Owner), beat
    except (msgspec.MsgspecError, *MALFORMED):
        return Owner("an unknown host", 0, 0, "", "", 0, ""), beat


def is_dead(owner: Owner) -> bool:
    """Whether the owner has certainly exited. False if it is alive, or not visible from here."""
    same_job = owner.job != "" and owner.job == os.environ.get("SLURM_JOB_ID")
    if same_job and owner.restart < int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        # Slurm restarts a job only after its earlier start has ended.
        return True
    return is_here(owner) and place.process_start(owner.pid) != owner.process_start


def is_alive(owner: Owner) -> bool:
    """Whether the owner is visibly alive. False if it has exited, or is not visible from here."""
    return is_here(owner) and place.process_start(owner.pid) == owner.process_start


def is_here(owner: Owner) -> bool:
    return bool(owner.namespace) and owner.namespace == namespace() and owner.host == socket.gethostname()
