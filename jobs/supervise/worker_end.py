"""What a worker leaves behind: how it ended, its log, and its stacks."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from jobs.run import files
from jobs.run.directory import Run
from jobs.run.errors import is_users
from jobs.run.task import Task
from jobs.supervise import budget, processes

DUMP_TURN_SECONDS = 1.0
LAST_WORDS = 1 << 16
"""Bytes at the end of a log that are searched for the last messages of a kernel or program."""
LAST_LINES = 10
"""Lines at its end that are searched for a program's report of the user's mistake."""

DEATHS = {
    signal.SIGKILL: "killed by SIGKILL, probably for want of memory (the out-of-memory killer sends it)",
    signal.SIGSEGV: "died of a segmentation fault (SIGSEGV) in native code",
    signal.SIGBUS: "died of a bus error (SIGBUS), often a full /dev/shm (the loaders share memory there)",
    signal.SIGABRT: "was aborted (SIGABRT): native code gave up, its last words are in the log",
    signal.SIGILL: "died of an illegal instruction (SIGILL): a package built for another CPU",
    signal.SIGFPE: "died of an arithmetic error (SIGFPE) in native code",
}


FRAME = re.compile(r'  File "(.+)", line (\d+) in ')
"""A line of a stack written by faulthandler."""


def describe(status: int) -> tuple[int, str | None, str]:
    """Turns a wait status into (exit code as in a shell, signal name, description)."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code, None, f"ended with exit code {code} and left no error; its log has more"
    number = signal.Signals(-code)
    return 128 - code, number.name, DEATHS.get(number, f"was killed by {number.name}")


def explained(error: str, log: Path, begin: int) -> str:
    """`error`, with what a GPU kernel that refused its input wrote to `log` after byte `begin`, since torch
    may only report that cuBLAS or the process failed (HIP aborts it); or with the place of a native crash.
    """
    if budget.DATA.search(error):
        return error
    machine = DEATHS[signal.SIGABRT] in error or budget.is_hardware(error)
    if machine and (said := _said(log, begin, budget.DATA)):
        return f"{said} ({error})"
    return error + _place(log, begin) if error in DEATHS.values() else error


def _place(log: Path, begin: int) -> str:
    """Where native code ended a rank, from the output of Python's faulthandler: the innermost line of the
    user's own code, as for any other error; "" if there is none."""
    lines = _lines(log, begin)
    dumped = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error: ")]
    current = False
    for line in lines[dumped[-1] :] if dumped else []:
        current = line.startswith("Current thread") or (current and line.startswith("  "))
        if current and (frame := FRAME.match(line)) and is_users(frame[1]):
            return f" ({os.path.basename(frame[1])}:{frame[2]})"
    return ""


def users_mistake(log: Path, begin: int) -> str:
    """What a program that exited with the code of a user's mistake, without an error file, wrote about it to
    `log` after byte `begin`, such as argparse's last line; "" if it wrote nothing."""
    if said := _said(log, begin, re.compile(r"\berror:"), LAST_LINES):
        return said
    # After an os._exit without a message, the last line may be about anything.
    last = _said(log, begin, re.compile(r"\S"))
    return f"ended with exit code 2; the last line of its log: {last}" if last else ""


def _said(log: Path, begin: int, what: re.Pattern[str], most: int | None = None) -> str:
    """The last line that matches, among the last `most` non-blank ones; "" if there is none."""
    last = [line.strip() for line in reversed(_lines(log, begin)) if line.strip()][:most]
    return next((line[:300] for line in last if what.search(line)), "")


def _lines(log: Path, begin: int) -> list[str]:
    """The last lines of a log, after byte `begin`."""
    try:
        with log.open("rb") as file:
            file.seek(max(begin, size_of(log) - LAST_WORDS))
            return file.read(LAST_WORDS).decode(errors="replace").splitlines()
    except OSError:
        return []


def size_of(path: Path) -> int:
    """The size of a file; 0 if it is missing or cannot be read now: reporting an end must not depend on a
    file server."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def wait_written(path: Path, before: int) -> None:
    """Waits until a file has grown beyond `before` bytes and stopped growing, for at most DUMP_TURN_SECONDS
    for a process that cannot write."""
    give_up, size = time.monotonic() + DUMP_TURN_SECONDS, before
    while time.monotonic() < give_up:
        time.sleep(0.05)
        if before < size == size_of(path):
            return
        size = size_of(path)


def dump_stacks(path: Path, worker: int | None) -> None:
    """Makes the worker, and every process below it that can, write its stacks to `path`: SIGUSR1 triggers the
    worker's faulthandler, which its forked data loader workers have inherited. They write to one file, and so
    in turn: otherwise their lines would mix."""
    for pid in [worker, *processes.descendants(worker)] if worker else []:
        if processes.catches(pid, signal.SIGUSR1):
            before = size_of(path)
            if processes.send(pid, signal.SIGUSR1):
                wait_written(path, before)


def log_of(run: Run, task: Task) -> str | None:
    """This rank's log below the run directory, named by srun (%j_%t_log.out) or the local chain; or None."""
    raw = os.environ.get("SLURM_JOB_ID", "")
    for name in (f"{task.job}_{task.rank}", f"{raw}_{task.rank}", f"{task.job}-train_{task.rank}"):
        if os.path.exists(path := run.job / files.LOG(JOB=name)):
            return str(Path(files.JOB()) / path.name)
    return None
