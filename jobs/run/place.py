"""Where a process runs: a pid says nothing on another machine, after a restart, or in another container."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def here() -> dict[str, str]:
    """The host's name, its boot (proc(5), random/boot_id) and the namespace of its pids."""
    return {
        "host": socket.gethostname(),
        "boot": BOOT.read_text().strip(),
        "pids": os.readlink("/proc/self/ns/pid"),
    }


def elsewhere(there: Mapping[str, Any]) -> str:
    """The host where a process recorded with `there` may live although it cannot be seen from here; "" if its
    pid can be looked up here, or if this machine was started anew since. Without a record: here."""
    me = here()
    if not there.get("boot"):
        return ""
    if there["boot"] == me["boot"]:
        return "" if there.get("pids") == me["pids"] else str(there.get("host") or "another container")
    restarted = there.get("host") == me["host"] and not me["host"].startswith("localhost")
    return "" if restarted else str(there.get("host") or "another host")
