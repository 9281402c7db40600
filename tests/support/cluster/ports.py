"""Free TCP ports for a cluster, so that several start side by side without meeting.

slurm.conf names the ports before any daemon listens, so a check by binding is not enough: two clusters that
start at once would both find the same ports free. Each therefore claims a block of ports first, by a file
that says which state directory has it, and gives it back when it goes down.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.run import private
from jobs.run.errors import UserError
from tests.support.cluster.config import Layout, Ports

BLOCK = 80
# Below Linux' ephemeral range (32768..), whose ports any outgoing connection may take.
FIRST, LAST = 12000, 32000
LOCK_SECONDS = 60.0


def claim(state: Path, nodes: int) -> Ports:
    """Claims a block of free ports for the cluster in `state`. Raises UserError if there is none."""
    release(state)
    with _registry() as registry:
        blocks = list(range(FIRST, LAST, BLOCK))
        random.shuffle(blocks)
        for base in blocks:
            if _taken(registry / str(base)):
                continue
            ports = Ports(ctld=base, dbd=base + 1, first_node=base + 2)
            if all(_free(port) for port in range(base, base + 2 + nodes)):
                (registry / str(base)).write_text(str(state))
                return ports
    raise UserError(f"no block of {2 + nodes} free ports between {FIRST} and {LAST}")


def release(state: Path) -> None:
    with _registry() as registry:
        for file in registry.iterdir():
            if file.name != "lock" and file.read_text() == str(state):
                file.unlink()


def _taken(file: Path) -> bool:
    """Whether a claim stands: its state directory is still there (a wiped one never releases)."""
    try:
        state = file.read_text()
    except FileNotFoundError:
        return False
    return Layout(state).lock.exists()


def _free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")):
        with socket.socket(family) as probe:
            # As the daemons do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


@contextmanager
def locked(path: Path, what: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Holds a lock on a file of this user's own, waiting at most so long for it.

    `what`: who we are, for whoever waits. Raises UserError, naming the holder, if it is not to be had.
    """
    fd = private.open_own(path)
    try:
        deadline = time.monotonic() + seconds
        while not private.try_lock(fd, what):
            if time.monotonic() > deadline:
                raise UserError(f"{path} is held by {private.holder(path)}, for more than {seconds:.0f} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


@contextmanager
def _registry() -> Iterator[Path]:
    """The folder of claims, one a user, locked. Clusters of different users meet only by bad luck, and then
    a daemon finds its port taken and the start is tried again with others."""
    registry = private.folder("slurm-test-clusters")
    with locked(registry / "lock", "a test cluster that claims its ports"):
        yield registry
