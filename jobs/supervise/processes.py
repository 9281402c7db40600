"""Starts processes that cannot outlive their parent, and ends them with everything they have started.

Linux only (prctl, /proc), like Slurm. No torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

from jobs.run import place

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded before any fork: loading a library between fork and exec is not safe.
_libc = ctypes.CDLL(None, use_errno=True)

# Signals that every process of a job step gets; processes without handlers yet must not die of them.
CATCHABLE = (signal.SIGTERM, signal.SIGUSR2)


def adopt_orphans() -> None:
    """Makes this process the new parent of descendants whose own parent dies, so that it can end them.

    Raises OSError if the kernel refuses.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    pass_fds: Sequence[int] = (),
    output: IO[bytes] | None = None,
    cwd: Path | None = None,
    deaf: bool = True,
) -> int:
    """Starts `command` in a process group of its own and returns its pid.

    It is killed when this process dies, however that happens. If `deaf`, it starts with SIGTERM and SIGUSR2
    ignored: a preemption before its handlers are installed must not kill it. The caller reaps it (`reap`).

    Raises OSError if the program cannot be started.
    """
    parent = os.getpid()

    def in_child() -> None:
        os.setpgid(0, 0)
        for number in CATCHABLE:
            signal.signal(number, signal.SIG_IGN if deaf else signal.SIG_DFL)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    process = subprocess.Popen(
        list(command),
        env=dict(env),
        pass_fds=tuple(pass_fds),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        preexec_fn=in_child,
        cwd=cwd,
    )
    # `reap` waits for all children, so Popen must not wait for this one (nor warn when garbage-collected).
    process.returncode = 0
    return process.pid


def reap() -> dict[int, int]:
    """Reaps all children that have ended, without blocking: pid -> wait status."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def descendants(root: int) -> list[int]:
    """Pids of all live (not zombie) processes below `root`, parents before children."""
    return [pid for pid, state in _below(root) if state != "Z"]


def _below(root: int) -> list[tuple[int, str]]:
    """(pid, state) of all processes below `root`, parents before children.

    Includes zombies: one whose main thread has ended before other threads may still have children.
    """
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        state, parent = _state_and_parent(int(entry))
        if state not in ("X", ""):
            children.setdefault(parent, []).append((int(entry), state))
    found: list[tuple[int, str]] = []
    front = children.get(root, [])
    while front:
        found += front
        front = [child for pid, _ in front for child in children.get(pid, [])]
    return found


def end_all(spare: Collection[int] = ()) -> dict[int, int]:
    """Kills and reaps every descendant of this process, however deep: pid -> wait status.

    `spare` and their descendants are left alone.
    Needs `adopt_orphans`: a child of a killed process becomes ours, and is found in the next round. Gives up
    after 10 s (a process in uninterruptible sleep on a dead file system cannot be killed).
    """
    ended: dict[int, int] = {}
    deadline = time.monotonic() + 10
    while True:
        spared = {pid for one in spare for pid in (one, *(below for below, _ in _below(one)))}
        left = [pid for pid, _ in _below(os.getpid()) if pid not in spared]
        for pid in left:
            send(pid, signal.SIGKILL)
        ended |= reap()
        if not left or time.monotonic() > deadline:
            return ended
        time.sleep(0.005)


def send(pid: int, number: signal.Signals) -> bool:
    """Sends a signal to a process; False if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for this signal, so that sending it does not kill."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def ignore_signals() -> None:
    """For the last moments of a process whose exit code matters: Python removes its handlers before it exits,
    and the exit codes of other tasks make srun send SIGTERM to those that are still running."""
    for number in CATCHABLE:
        signal.signal(number, signal.SIG_IGN)


def wake_on_signals(handle: Callable[[signal.Signals], None], *numbers: signal.Signals) -> int:
    """Calls `handle` for each of these signals, which also make the returned descriptor readable, so that a
    `select` returns. SIGCHLD only does the latter."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in numbers:
        signal.signal(number, lambda n, _frame: handle(signal.Signals(n)))
    # The program that executed this one may have blocked them meanwhile (unpacking.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    return read_end


def _state_and_parent(pid: int) -> tuple[str, int]:
    fields = place.stat(pid)
    return (fields[0], int(fields[1])) if fields else ("", 0)
