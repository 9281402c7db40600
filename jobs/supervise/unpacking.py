"""Unpacks the images of an environment and of a run's code on this node's own disk (jobs/supervise/image.py).

The first process of a node does it, the others wait for it, and other jobs find the copies. The interpreter
holds a shared lock on its copy as long as it lives, so that nobody evicts it (staging.py).
"""

from __future__ import annotations

import os
import signal
import sys
import time

from jobs.run import exit_codes, image, staged
from jobs.run.errors import UserError
from jobs.supervise import staging
from jobs.supervise.image import hold

IGNORING = ("sh", "-c", 'trap "" USR2 TERM; exec "$@"', "unpack")
GROWTH = 8
"""How many times its size what is compressed takes, at most."""


def places(setting: str, python: str, code: str, training: bool) -> tuple[str, str]:
    """The folders with the copies of both images, held; "" where there can be none, which is said, and for
    the code where there is no image of it. What is signalled meanwhile is heard by the `training` that
    follows; it ends any other task."""
    asked: list[int] = []
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    own = here = ""
    try:
        stage = staged.expanded(setting, os.environ)
        own = place(python, stage, staged.ENVIRONMENT)
    except (UserError, OSError) as error:
        print(f"environment: {error}; on from {sys.executable}", file=sys.stderr, flush=True)
    try:
        here = place(code, stage, staged.CODE) if own and os.path.exists(code) else ""
    except (UserError, OSError) as error:
        print(f"code: {error}; on from {os.getcwd()}", file=sys.stderr, flush=True)
    if training:
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
    return own, here


def place(packed: str, stage: str, suffix: str) -> str:
    """The folder with a whole copy of an image, which this process and what it executes hold.

    Raises UserError and OSError where there can be none, with nothing left behind.
    """
    began = time.monotonic()
    try:
        source = os.open(packed, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"there is no {packed} (env/pack.sh)") from None
    with staging.closing(source):
        status = os.fstat(source)
        folder = staged.folder_in(stage)
        name = staged.name(packed, status, suffix, folder)
        with (
            staging.closing(staging.open_folder(stage)) as inside,
            staging.closing(staging.open_lock(inside, "lock-image")),
        ):
            staging.remove_remains(inside, folders=True)
            if not hold(inside, name):
                size = status.st_size * (GROWTH if suffix == staged.CODE else 1)
                staging.make_room(inside, size, stage)
                unpack(packed, source, inside, folder, name, size)
                if not hold(inside, name):
                    raise UserError(f"{folder}/{name} is gone")
    if suffix == staged.ENVIRONMENT:
        host, seconds = os.uname().nodename, time.monotonic() - began
        print(f"environment: {folder}/{name} on {host}, {seconds:.1f} s", flush=True)
    return os.path.join(folder, name)


def unpack(packed: str, source: int, inside: int, folder: str, name: str, size: int) -> None:
    """Unpacks beside, and only when all of it is on the disk, gives it its name."""
    part = f"/proc/{os.getpid()}/fd/{inside}/{name}.part"
    os.mkdir(part, 0o700)
    of_code = name.endswith(staged.CODE)
    try:
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.lseek(source, 0, os.SEEK_SET)
        extract = ["tar", "--extract", *(["--gzip"] if of_code else []), "--file", "-"]
        run(
            [*extract, "--no-same-owner", "--no-same-permissions", "--directory", part], source,
            f"{packed} could not be unpacked on {os.uname().nodename}",
        )  # fmt: skip
        if not of_code:
            if not os.access(image.interpreter(part), os.X_OK) and not _own_python(part):
                raise UserError(f"{packed} holds no bin/python")
            _take_own_python(part, os.path.join(folder, name))
        run(["sync", "--file-system", part], source, f"{folder} could not be written")
        if staged.name(packed, os.stat(packed), os.path.splitext(name)[1], folder) != name:
            raise UserError(f"{packed} was replaced while it was copied")
        with open(os.path.join(part, staged.SIZE), "w") as file:
            file.write(str(size))
        os.rename(f"{name}.part", name, src_dir_fd=inside, dst_dir_fd=inside)
        os.fsync(inside)
    except BaseException:
        staging.remove(inside, f"{name}.part")
        raise


def run(command: list[str], source: int, trouble: str) -> str:
    """What a command says that reads from `source`; it outlives a preemption's signals. Raises UserError."""
    import subprocess

    done = subprocess.run([*IGNORING, *command], stdin=source, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{trouble}: {last}")
    return done.stdout


def _own_python(part: str) -> str:
    """The interpreter of the Python that a virtual environment was made from, below `part`; "" if the image
    holds none."""
    place = os.path.join(image.OWN_PYTHON, "bin")
    try:
        (name,) = os.listdir(os.path.join(part, place))
    except (FileNotFoundError, ValueError):
        return ""
    return os.path.join(place, name)


def _take_own_python(part: str, folder: str) -> None:
    """Makes the environment in `part`, which will be `folder`, one of the Python that came with it, where
    that runs at another place than its own (https://docs.python.org/3/library/venv.html: pyvenv.cfg, `home`).
    """
    program = _own_python(part)
    config = os.path.join(part, "pyvenv.cfg")
    if not program:
        return
    own = os.path.join(part, image.OWN_PYTHON)
    ask = "import sys, _socket, zlib; print(sys.base_prefix == sys.argv[1])"
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        with staging.closing(null):
            answer = run([os.path.join(part, program), "-I", "-S", "-c", ask, own], null, "it does not start")
        moved = answer.strip() == "True"
        why = "it looks for its library elsewhere"
    except UserError as error:
        moved, why = False, str(error)
    if not moved:
        print(f"environment: on with the Python that it was made from ({why})", file=sys.stderr, flush=True)
        return
    with open(config, encoding="utf-8") as file:
        lines = file.read().splitlines()
    home = f"home = {os.path.join(folder, image.OWN_PYTHON, 'bin')}"
    lines = [home if line.partition("=")[0].strip() == "home" else line for line in lines]
    with open(config, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    place = os.path.join(part, "bin")
    for name in os.listdir(place):
        link = os.path.join(place, name)
        if name.startswith("python") and os.path.islink(link) and os.path.isabs(os.readlink(link)):
            os.unlink(link)
            os.symlink(os.path.join("..", program), link)
