"""Which processes belong to a cluster, and ending them, by pid only and never another's.

A pid alone says nothing once its process is gone and the number used again, so a process is a pid with its
start time. A cluster's processes are found three ways, each of which survives what the others do not:
daemons by the pid files written as they start and by a variable in their environment (a start that was
killed half-way); jobs by the mount that only processes of a node see, and by SLURM_CONF beside SLURM_JOB_ID
in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.cluster.config import Layout

DAEMON_VARIABLE = "SLURM_TEST_CLUSTER"


class Process(NamedTuple):
    pid: int
    start: int
    """Clock ticks since boot."""


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None if there is none, or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may hold anything, brackets included.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        _reap(pid)
        return None
    return Process(pid, int(fields[19]))


def alive(process: Process) -> bool:
    return identify(process.pid) == process


def remember(file: Path, pid: int) -> None:
    process = identify(pid)
    if process is not None:
        file.write_text(f"{process.pid} {process.start}\n")


def recall(file: Path) -> Process | None:
    """The process that a pid file of `remember` tells of, if it still lives."""
    try:
        pid, start = file.read_text().split()
        process = Process(int(pid), int(start))
    except (FileNotFoundError, ValueError):
        return None
    return process if alive(process) else None


def daemons(layout: Layout) -> list[Process]:
    """Every daemon of the cluster, recorded or not."""
    recorded = {p for file in layout.pids.glob("*.start") if (p := recall(file))}
    return sorted(recorded | {p for p in _all() if _is_ours(p, layout) and not _is_job(p)})


def jobs(layout: Layout, node: str | None = None, job_id: str | None = None) -> list[Process]:
    """Every process of the cluster's jobs: tasks, batch scripts, their children, srun and slurmstepd.

    `node` narrows it to one node (needs namespaces), `job_id` to the processes that carry SLURM_JOB_ID.
    """
    spared = {p.pid for p in daemons(layout)} | _ancestors()
    found = []
    for process in _all():
        if process.pid in spared:
            continue
        where = _node(process.pid, layout)
        if where is None and not (_is_ours(process, layout) and _is_job(process)):
            continue
        if job_id is not None and f"SLURM_JOB_ID={job_id}".encode() not in _environment(process):
            continue
        if node is None or where == node:
            found.append(process)
    return sorted(found)


def children(pid: int) -> list[Process]:
    return [process for process in _all() if _parent(process.pid) == pid]


def end(processes: Iterable[Process], patience: float = 10.0) -> None:
    """Asks processes to end (TERM), and kills those that have not after `patience` seconds."""
    waiting = [p for p in processes if _signal(p, signal.SIGTERM)]
    waiting = _wait_gone(waiting, patience)
    kill(waiting)


def kill(processes: Iterable[Process]) -> None:
    """Kills processes and waits until they are gone.

    Raises RuntimeError if the kernel will not let one go.
    """
    waiting = [p for p in processes if _signal(p, signal.SIGKILL)]
    if stuck := _wait_gone(waiting, 30.0):
        raise RuntimeError(f"processes {[p.pid for p in stuck]} survive SIGKILL")


def command(process: Process) -> str:
    return _read(process.pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _signal(process: Process, number: int) -> bool:
    if not alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _wait_gone(processes: list[Process], seconds: float) -> list[Process]:
    deadline = time.monotonic() + seconds
    while (processes := [p for p in processes if alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return processes


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # someone else's child, who will reap it
        os.waitpid(pid, os.WNOHANG)


def _all() -> list[Process]:
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for pid in pids if (process := identify(pid))]


def _ancestors() -> set[int]:
    """Ourselves and whoever started us: a cluster is not to be ended by killing the one who asks."""
    pids, pid = set(), os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        pid = _parent(pid)
    return pids


def _parent(pid: int) -> int:
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"PPid:"):
            return int(line.split()[1])
    return 0


def _node(pid: int, layout: Layout) -> str | None:
    """The node in whose mount namespace a process lives."""
    prefix = f"{layout.nodes}/".encode()
    for line in _read(pid, "mountinfo").splitlines():
        mount_point = line.split()[4]
        if mount_point.startswith(prefix):
            return mount_point[len(prefix) :].decode()
    return None


def _is_ours(process: Process, layout: Layout) -> bool:
    environment = _environment(process)
    marks = (f"{DAEMON_VARIABLE}={layout.state}", f"SLURM_CONF={layout.slurm_conf}")
    daemon, client = (mark.encode() in environment for mark in marks)
    # SLURM_CONF alone is also in the shell of whoever uses the cluster.
    return daemon or (client and _is_job(process))


def _is_job(process: Process) -> bool:
    if any(variable.startswith(b"SLURM_JOB_ID=") for variable in _environment(process)):
        return True
    return command(process).startswith("slurmstepd")  # has its slurmd's environment


def _environment(process: Process) -> list[bytes]:
    return _read(process.pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty once the process is gone or where it is another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    except OSError:
        return b""  # EINVAL: the process is on its way out
