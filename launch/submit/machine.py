"""What this machine has: its GPUs, and whether Slurm can be reached from it. No driver library is loaded."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import shutil
from pathlib import Path

from jobs.run import cuda
from jobs.slurm import commands

SLURM_CONFIGS = (
    "/etc/slurm/slurm.conf",
    "/etc/slurm-llnl/slurm.conf",
    "/run/slurm/conf/slurm.conf",
    "/usr/local/etc/slurm.conf",
)


def user() -> str:
    """The user's login name; the user id if this machine has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError: since Python 3.13
        return str(os.getuid())


def local_gpus(dev: Path = Path("/dev"), amd: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> int:
    """The number of GPUs that a process started here would see: NVIDIA's device files, or the nodes of AMD's
    kernel driver that have a `gpu_id` (CPUs have 0), within CUDA_VISIBLE_DEVICES and AMD's counterparts."""
    present = sum(1 for entry in os.listdir(dev) if re.fullmatch(r"nvidia\d+", entry))
    for node in amd.glob("*/gpu_id"):
        with contextlib.suppress(OSError):  # the GPU may belong to another container
            present += node.read_text().strip() not in ("", "0")
    allowed = cuda.visible_count(os.environ)
    return present if allowed is None else min(present, allowed)


@functools.cache
def cluster_name() -> str:
    """The name of the cluster that Slurm's commands here use; "" if no file tells it. Read from slurm.conf:
    asking the controller takes as long as a submission."""
    if chosen := commands.chosen_cluster():
        return "" if "," in chosen else chosen
    for path in filter(None, (os.environ.get("SLURM_CONF"), *SLURM_CONFIGS)):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        found = re.search(r"^\s*ClusterName\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
        return found[1].lower() if found else ""
    return ""


def has_slurm() -> bool:
    """Whether `sbatch` is on PATH and has a cluster.

    Debian's slurm-client without a cluster counts as no Slurm. A "configless" site has no slurm.conf; there
    Slurm itself is asked, which needs no controller.
    """
    if shutil.which("sbatch") is None:
        return False
    if os.environ.get("SLURM_CONF") or any(os.path.exists(path) for path in SLURM_CONFIGS):
        return True
    asked = commands.once(["scontrol", "ping"], None, 30)
    return "configuration source" not in (asked.errors if asked.ok else asked.text)
