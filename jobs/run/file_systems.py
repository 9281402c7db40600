"""A path's file system, the space left on it, and the memory that files there would take.

Imports little, like jobs/run/image.py.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN_MEMORY = ("tmpfs", "ramfs")
OVER_A_NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "lustre", "beegfs", "gpfs", "ceph", "panfs", "wekafs"),
    *("orangefs", "pvfs2", "glusterfs", "fuse.glusterfs", "fuse.ceph", "fuse.sshfs", "fhgfs"),
)
CGROUP = "/proc/self/cgroup"
CGROUPS = "/sys/fs/cgroup"


def kind(path: Path | int) -> str:
    """The type of the file system of a path or an open file, as named by mount(8) (ext4, nfs4, lustre, tmpfs,
    …); "" if the kernel does not tell."""
    return _mounted(path)[0]


def source(path: Path | int) -> str:
    """The device, or the server and its folder, mounted there; "" if the kernel does not tell."""
    return _mounted(path)[1]


def _mounted(path: Path | int) -> tuple[str, str]:
    """(type, source), found by the mount id, the first field of a line of mountinfo, where they follow a lone
    dash (proc(5)). st_dev would find nothing on btrfs, whose files have device numbers of their own."""
    fd = path if isinstance(path, int) else os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        told = dict(line.split(":", 1) for line in _lines(f"/proc/self/fdinfo/{fd}") if ":" in line)
    finally:
        if fd != path:
            os.close(fd)
    found = ("", "")
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        if after and before.split()[0] == told.get("mnt_id", "").strip():
            found = (after.split()[0], after.split()[1])
    return found


def room(path: Path | int) -> int:
    """Bytes that this user may still write there; on a file system in memory at most half of the memory that
    this process may still use, since the files count as the job's."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    return min(free, memory() // 2) if kind(path) in IN_MEMORY else free


def sync_names(folder: int) -> None:
    """Fsyncs an open folder, if its file system supports that: some network and FUSE file systems do not, and
    write names at once, or give no guarantee. Raises OSError."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def memory() -> int:
    """Bytes of memory that this process, with the rest of its job's control groups, may still use."""
    return min(_limits())


def _lines(path: str | Path) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


def _limits() -> Iterator[int]:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    for line in _lines(CGROUP):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, used = CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top = os.path.join(CGROUPS, "memory")
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = path.strip("/")
        while True:
            try:
                (most,) = _lines(os.path.join(top, group, limit))
                (now,) = _lines(os.path.join(top, group, used))
                yield max(0, int(most) - int(now))
            except (OSError, ValueError):
                pass  # no limit: "max", or no such file at the top
            if not group:
                break
            group = os.path.dirname(group)
