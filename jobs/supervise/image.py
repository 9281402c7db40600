"""`python -m jobs.supervise.image STAGE ARGUMENTS…`: runs this environment's interpreter with the arguments,
from a copy of the environment's image (jobs/run/image.py) on this node's own disk; from here where there can
be none, and says so.

The first process of a node unpacks the image, the others wait for it, and other jobs find it. The interpreter
holds a shared lock on the copy as long as it lives, so that nobody evicts it (copier.py).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from jobs.run import exit_codes, image, staged
from jobs.run.errors import UserError
from jobs.supervise import copier

IGNORING = ("sh", "-c", 'trap "" USR2 TERM; exec "$@"', "unpack")
TRAINING = "jobs.train"


def main() -> None:
    setting, arguments = sys.argv[1], sys.argv[2:]
    asked: list[int] = []
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    python = sys.executable
    try:
        python = image.interpreter(place(image.beside(Path(python)), setting))
    except (UserError, OSError) as error:
        print(f"environment: {error}; on from {python}", file=sys.stderr, flush=True)
    if TRAINING in arguments:
        # What has come, and comes from here on, waits until the supervisor's handlers stand
        # (processes.wake_on_signals): it alone knows how a start leaves.
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in asked:
            os.kill(os.getpid(), number)
    elif asked:
        sys.exit(exit_codes.RESUME)
    else:
        for number, action in zip(numbers, before, strict=True):
            signal.signal(number, action)
    os.execv(python, [python, *arguments])


def place(packed: Path, setting: str) -> Path:
    """The folder with a whole copy, which this process and what it executes hold against eviction.

    Raises UserError and OSError where there can be none, with nothing left behind.
    """
    began = time.monotonic()
    stage = staged.expand(setting, os.environ)
    try:
        source = os.open(packed, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"there is no {packed} (env/pack.sh)") from None
    with copier.closing(source):
        status = os.fstat(source)
        name = staged.name(packed, status, staged.ENVIRONMENT)
        folder = staged.folder(stage) / name
        with (
            copier.closing(copier.open_folder(stage)) as inside,
            copier.closing(copier.open_lock(inside, "lock-image")),
        ):
            copier.remove_remains(inside, staged.ENVIRONMENT)
            if not hold(inside, name):
                copier.make_room(inside, status.st_size, stage)
                unpack(packed, source, inside, name)
                if not hold(inside, name):
                    raise UserError(f"{folder} is gone")
    print(f"environment: {folder} on {socket.gethostname()}, {time.monotonic() - began:.1f} s", flush=True)
    return folder


def hold(inside: int, name: str) -> bool:
    """Takes a shared lock on the copy, if there is one, on a descriptor that the next program inherits."""
    fd = staged.open_inside(inside, name)
    if fd is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # being evicted
        os.close(fd)
        return False
    os.utime(fd)
    os.set_inheritable(fd, True)
    return True


def unpack(packed: Path, source: int, inside: int, name: str) -> None:
    """Unpacks beside, and only when all of it is on the disk, gives it its name."""
    part = Path(f"/proc/{os.getpid()}/fd/{inside}") / f"{name}.part"
    part.mkdir(mode=0o700)
    try:
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.lseek(source, 0, os.SEEK_SET)
        for command in (
            ["tar", "--extract", "--no-same-owner", "--no-same-permissions", "--directory", str(part)],
            ["sync", "--file-system", str(part)],
        ):
            done = subprocess.run([*IGNORING, *command], stdin=source, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise UserError(f"{packed} could not be unpacked on {socket.gethostname()}: {last}")
        if staged.name(packed, os.stat(packed), staged.ENVIRONMENT) != name:
            raise UserError(f"{packed} was replaced while it was copied")
        if not os.access(image.interpreter(part), os.X_OK):
            raise UserError(f"{packed} holds no bin/python")
        (part / staged.SIZE).write_text(str(os.fstat(source).st_size))
        os.rename(part, part.with_name(name))
        os.fsync(inside)
    except BaseException:
        copier.remove(inside, part.name)
        raise


if __name__ == "__main__":
    main()
