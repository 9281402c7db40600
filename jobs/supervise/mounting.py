"""Mounts a squashfs image of an environment on a node (unpacking.py), with squashfuse, which needs no root.

STAGE/baton-UID-data/
    KEY.sqfs            a complete copy of the image; whoever has it mounted holds a shared lock on it
    KEY.mnt/            the environment, for one job step: its ranks hold a shared lock on it
        root/           the mount point of the copy
        lib, …          links into it
        bin, pyvenv.cfg its own, because they say where its Python is

Slurm ends squashfuse with the job step that started it, so each step has its own. It ignores the signals that
all processes of a step get. When the last rank has ended, a process that waits for that unmounts the image;
if Slurm has ended that, too, the next start on the node does (staging.remove).
"""

from __future__ import annotations

import fcntl
import hashlib
import os

from jobs.run import image, staged
from jobs.run.errors import UserError
from jobs.supervise import staging, unpacking

DEVICE = "/dev/fuse"
PROGRAM = "squashfuse"
KEEP = 'setsid --fork flock --exclusive "${1%/*}" sh -c "$2" sh "$1" </dev/null >/dev/null 2>&1'
"""Leaves a process behind that runs `$2` once nobody holds a lock on the folder around `$1`."""


class CannotMount(UserError):
    """No image can be mounted here, but perhaps unpacked."""


def mount(packed: str, source: int, inside: int, stage: str, name: str) -> str:
    """The name of the folder with the environment, locked by this process and what it executes: `name`, or a
    new one if that is "" or taken.

    Raises CannotMount, or UserError and OSError if it cannot even be copied; no mount is left behind.
    """
    trouble = f"{packed} cannot be mounted on {os.uname().nodename}"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise CannotMount(f"{trouble}: {DEVICE} cannot be opened")
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if not any(os.access(os.path.join(place, PROGRAM), os.X_OK) for place in path):
        raise CannotMount(f"{trouble}: there is no {PROGRAM}")
    for other in os.listdir(inside):
        if other.endswith(staged.MOUNT):
            staging.evict(inside, other)
    if not name or name in os.listdir(inside):  # such as mounted in another container
        name = os.urandom(16).hex() + staged.MOUNT
    with staging.closing(_copy(packed, source, inside, stage)) as copy:
        try:
            return _mount(trouble, copy, inside, name)
        except UserError as error:
            raise CannotMount(str(error)) from None


def _copy(packed: str, source: int, inside: int, stage: str) -> int:
    """An inheritable descriptor of an image's copy, locked against eviction."""
    status = os.fstat(source)
    name = staged.name(packed, status, staged.SQUASHED)
    fd = staged.open_inside(inside, name)
    if fd is None:
        was = hashlib.blake2b()

        def verify(fd: int) -> None:
            made = hashlib.blake2b()
            os.lseek(fd, 0, os.SEEK_SET)
            while chunk := os.read(fd, staging.CHUNK):
                made.update(chunk)
            if made.digest() != was.digest():
                raise UserError(f"the copy of {packed} differs from it: this node's disk is faulty")

        staging.make_room(inside, status.st_size, stage)
        staging.copy(source, inside, name, packed, verify, was.update)
        fd = staged.open_inside(inside, name)
        if fd is None:
            raise UserError(f"the copy of {packed} is gone")
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.utime(fd)
    os.set_inheritable(fd, True)
    return fd


def _mount(trouble: str, copy: int, inside: int, name: str) -> str:
    """Mounts under a temporary name, and renames the folder only once it is complete."""
    part, folder = f"{name}.part", os.readlink(f"/proc/self/fd/{inside}")
    point = os.path.join(folder, part, staged.MOUNTED)
    os.mkdir(part, 0o700, dir_fd=inside)
    held = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        os.mkdir(staged.MOUNTED, 0o700, dir_fd=held)
        staging.run([PROGRAM, "-o", "ro", f"/proc/self/fd/{copy}", point], trouble)
        _surround(os.path.join(folder, part), os.path.join(folder, name))
        with open(os.path.join(folder, part, staged.SIZE), "w") as file:
            file.write("0")
        os.rename(part, name, src_dir_fd=inside, dst_dir_fd=inside)
        part, point = name, os.path.join(folder, name, staged.MOUNTED)
        staging.run(["sh", "-c", KEEP, "sh", point, staging.UNMOUNT], trouble)
    except BaseException:
        os.close(held)
        staging.remove(inside, part)
        raise
    os.set_inheritable(held, True)
    return name


def _surround(part: str, folder: str) -> None:
    """Makes `part`, which will be renamed to `folder`, the environment that is mounted in it."""
    root = os.path.join(part, staged.MOUNTED)
    place = os.path.join(part, "bin")
    os.mkdir(place, 0o700)
    for name in os.listdir(root):
        if name == "pyvenv.cfg":
            with open(os.path.join(root, name), "rb") as file, open(os.path.join(part, name), "wb") as mine:
                mine.write(file.read())
        elif name != "bin":
            os.symlink(os.path.join(staged.MOUNTED, name), os.path.join(part, name))
    for name in os.listdir(os.path.join(root, "bin")):
        source = os.path.join(root, "bin", name)
        link = os.readlink(source) if os.path.islink(source) else ""
        if not link or (os.path.dirname(link) and not os.path.isabs(link)):
            link = os.path.join("..", staged.MOUNTED, "bin", name)
        os.symlink(link, os.path.join(place, name))
    if not os.access(image.interpreter(part), os.X_OK) and not unpacking.own_python(part):
        raise UserError(f"{part} holds no bin/python")
    unpacking.take_own_python(part, folder)
