"""Where a process runs: its pid means nothing on another machine, after a reboot, or in another container."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def here() -> dict[str, str]:
    """The host name, the boot id (proc(5), random/boot_id) and the pid namespace of this process."""
    return {
        "host": socket.gethostname(),
        "boot": BOOT.read_text().strip(),
        "pids": os.readlink("/proc/self/ns/pid"),
    }


def elsewhere(there: Mapping[str, Any]) -> str:
    """The host where a process recorded with `there` may be alive without being visible from here; "" if its
    pid can be looked up here, or if this machine has rebooted since. No record counts as here."""
    me = here()
    if not there.get("boot"):
        return ""
    if there["boot"] == me["boot"]:
        return "" if there.get("pids") == me["pids"] else str(there.get("host") or "another container")
    restarted = there.get("host") == me["host"] and not me["host"].startswith("localhost")
    return "" if restarted else str(there.get("host") or "another host")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat (proc(5)) from the state on, after the command's name, which may contain
    anything; [] if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; together with its pid, this identifies it uniquely.
    None if there is no such live process."""
    fields = stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None
