"""Unpacks the images of an environment and of a run's code on this node's own disk (jobs/supervise/image.py).

The first process on a node does it, the others wait for it, and later jobs find the copies. The interpreter
holds a shared lock on its copy until it exits, so that nobody evicts it (staging.py).
"""

from __future__ import annotations

import os
import sys
import time

from jobs.run import exit_codes, file_systems, image, staged
from jobs.run.errors import UserError
from jobs.supervise import staging
from jobs.supervise.image import hold, hold_one, names
from jobs.supervise.staging import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without the enums of `signal`, whose import looks up a hundred names

GROWTH = {staged.CODE: 8, image.SQUASHED: 4, ".tar": 1}
"""Suffix -> the most that an image's content takes, as a multiple of the image's size."""


def places(setting: str, python: str, code: str, training: bool) -> tuple[str, str]:
    """The folders with the copies of both images, locked; "" if there can be none, which is printed, and for
    the code if it has no image. Signals that arrive meanwhile are kept for the `training` that follows; they
    end any other task."""
    asked: list[int] = []
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    own = here = ""
    try:
        stage = staged.expanded(setting, os.environ)
        own = place(python, stage, staged.ENVIRONMENT)
    except (UserError, OSError) as error:
        print(f"environment: {error}; going on with {sys.executable}", file=sys.stderr, flush=True)
    try:
        here = place(code, stage, staged.CODE) if own and os.path.exists(code) else ""
    except (UserError, OSError) as error:
        print(f"code: {error}; going on with {os.getcwd()}", file=sys.stderr, flush=True)
    if training:
        # Signals from now on stay pending until the supervisor has installed its handlers
        # (processes.wake_on_signals): only the supervisor knows how to end a start.
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
    """The folder with a complete copy of an image, locked by this process and what it executes.

    Raises UserError and OSError if there can be none; then nothing is left behind.
    """
    began = time.monotonic()
    try:
        source = os.open(packed, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"there is no {packed} (env/pack.sh)") from None
    with staging.closing(source):
        status = os.fstat(source)
        folder = staged.folder_in(stage)
        possible = names(packed, status, suffix, folder)
        with (
            staging.closing(staging.open_folder(stage)) as inside,
            staging.closing(staging.open_lock(inside, "lock-image")),
        ):
            staging.remove_remains(inside, of_images=True)
            name = hold_one(inside, possible)
            if not name and packed.endswith(image.SQUASHED):
                name = _mounted(packed, source, inside, folder, stage, possible)
            elif not name:
                name = possible[-1]
                _unpacked(packed, source, inside, folder, stage, name)
    if suffix == staged.ENVIRONMENT:
        host, seconds = os.uname().nodename, time.monotonic() - began
        print(f"environment: {folder}/{name} on {host}, {seconds:.1f} s", flush=True)
    return os.path.join(folder, name)


def _mounted(packed: str, source: int, inside: int, folder: str, stage: str, possible: list[str]) -> str:
    """The name of the folder with the image mounted or, if it cannot be mounted, unpacked; locked."""
    from jobs.supervise import mounting

    try:
        return mounting.mount(packed, source, inside, stage, possible[0] if len(possible) > 1 else "")
    except mounting.CannotMount as error:
        trouble = str(error)
    try:
        _unpacked(packed, source, inside, folder, stage, possible[-1])
    except UserError as error:
        raise UserError(f"{trouble}, and {error}") from None
    print(f"environment: {trouble}: it is unpacked instead", file=sys.stderr, flush=True)
    return possible[-1]


def _unpacked(packed: str, source: int, inside: int, folder: str, stage: str, name: str) -> None:
    """Unpacks an image under that name, and locks it."""
    kind = staged.CODE if name.endswith(staged.CODE) else os.path.splitext(packed)[1]
    size = os.fstat(source).st_size * GROWTH[kind]
    staging.make_room(inside, size, stage)
    unpack(packed, source, inside, folder, name, size)
    if not hold(inside, name):
        raise UserError(f"{folder}/{name} is gone")


def unpack(packed: str, source: int, inside: int, folder: str, name: str, size: int) -> None:
    """Unpacks under a temporary name, and renames the folder only once all of it is on the disk."""
    part = f"/proc/{os.getpid()}/fd/{inside}/{name}.part"
    os.mkdir(part, 0o700)
    of_code = name.endswith(staged.CODE)
    try:
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.lseek(source, 0, os.SEEK_SET)
        extract = ["tar", "--extract", *(["--gzip"] if of_code else []), "--file", "-"]
        extract += ["--no-same-owner", "--no-same-permissions", "--directory", part]
        if packed.endswith(image.SQUASHED):
            extract = ["unsquashfs", "-no-progress", "-quiet", "-force", "-dest", part, "/dev/stdin"]
        run(extract, f"{packed} could not be unpacked on {os.uname().nodename}", source)
        if not of_code:
            if not os.access(image.interpreter(part), os.X_OK) and not own_python(part):
                raise UserError(f"{packed} holds no bin/python")
            take_own_python(part, os.path.join(folder, name))
        with open(os.path.join(part, staged.SIZE), "w") as file:
            file.write(str(size))
        run(["sync", "--file-system", part], f"{folder} could not be written")
        if staged.name(packed, os.stat(packed), os.path.splitext(name)[1], folder) != name:
            raise UserError(f"{packed} was replaced while it was copied")
        os.rename(f"{name}.part", name, src_dir_fd=inside, dst_dir_fd=inside)
        file_systems.sync_names(inside)
    except BaseException:
        staging.remove(inside, f"{name}.part")
        raise


def own_python(part: str) -> str:
    """The interpreter, below `part`, of the Python that a virtual environment was made from; "" if the image
    has none."""
    place = os.path.join(image.OWN_PYTHON, "bin")
    try:
        (name,) = os.listdir(os.path.join(part, place))
    except (FileNotFoundError, ValueError):
        return ""
    return os.path.join(place, name)


def take_own_python(part: str, folder: str) -> None:
    """Makes the environment in `part`, which will be renamed to `folder`, use the Python that came with it,
    if that can be relocated (https://docs.python.org/3/library/venv.html: pyvenv.cfg, `home`).
    """
    program = own_python(part)
    config = os.path.join(part, "pyvenv.cfg")
    if not program:
        return
    own = os.path.join(part, image.OWN_PYTHON)
    ask = "import sys, _socket, zlib; print(sys.base_prefix == sys.argv[1])"
    try:
        answer = run([os.path.join(part, program), "-I", "-S", "-c", ask, own], "it does not start")
        moved = answer == "True"
        why = "it looks for its library elsewhere"
    except UserError as error:
        moved, why = False, str(error)
    if not moved:
        print(
            f"environment: going on with the Python that it was made from ({why})",
            file=sys.stderr,
            flush=True,
        )
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
