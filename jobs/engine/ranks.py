"""The processes of an evaluation or inference: which one this is, and combining the results of all."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.run.directory import Run
from jobs.run.task import Task, read
from jobs.supervise import rendezvous

SECONDS = 6 * 3600.0
"""How long a rank waits for the others: they may have larger images, or a slower node."""
RENDEZVOUS_SECONDS = 300.0


@dataclass
class Ranks:
    rank: int
    size: int
    device: str
    job: str
    hosts: list[str] = field(default_factory=list)
    peers: dict[int, rendezvous.Connection] = field(default_factory=dict)
    """On rank 0, a connection to each other rank; on the others, one to rank 0."""


def join(run: Run) -> Ranks:
    """Connects to the other processes of this job step, if there are any."""
    task = read()
    run.job.mkdir(exist_ok=True)
    meeting = rendezvous.meet(task, run.job, RENDEZVOUS_SECONDS, 1 if task.rank == 0 else None)
    if meeting.store:  # results go through the connections instead
        meeting.store.close()
    return Ranks(task.rank, task.world_size, _device(task), task.job, meeting.hosts, meeting.peers)


def _device(task: Task) -> str:
    from jobs.engine import devices

    device = devices.of_rank(task.local_rank, os.environ)
    if device == devices.CPU and task.rank == 0:
        print(f"no GPU: {task.world_size} process(es) on the CPU", flush=True)
    return device


def gather(ranks: Ranks, what: bytes, seconds: float = SECONDS) -> list[bytes] | None:
    """On rank 0, every rank's `what`, in the order of ranks; None on the others, once rank 0 has them all.

    At most 64 MiB per rank. Raises ConnectionError if a rank is lost meanwhile, TimeoutError after `seconds`.
    """
    for number, connection in ranks.peers.items():
        if ranks.rank and not connection.send_bytes(what, seconds):
            raise _lost(ranks, number)
    heard = _hear(ranks, ranks.peers, seconds)
    if ranks.rank:
        return None
    for number, connection in ranks.peers.items():
        if not connection.send_bytes(b"", rendezvous.HANDSHAKE_SECONDS):
            raise _lost(ranks, number)
    return [heard.get(rank, what) for rank in range(ranks.size)]


def share(ranks: Ranks, what: bytes) -> bytes:
    """Rank 0's `what`, on all ranks. At most 64 MiB. Raises as `gather` does."""
    if ranks.rank:
        return _hear(ranks, ranks.peers)[0]
    for number, connection in ranks.peers.items():
        if not connection.send_bytes(what, SECONDS):
            raise _lost(ranks, number)
    return what


def rank_0_ends_last(ranks: Ranks) -> None:
    """Makes rank 0 wait until the other ranks have exited, for a minute at most. All must call it.

    srun kills the others as soon as one process exits with a code other than 0, and then reports a killed
    task. So if rank 0's exit code tells the outcome, it has to exit last.
    """
    deadline = time.monotonic() + 60
    for connection in ranks.peers.values():
        if ranks.rank:
            os.dup(connection.socket.fileno())  # open until this process has exited, whatever Python closes
            continue
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                if connection.receive_bytes() is None:
                    break


def _hear(
    ranks: Ranks, peers: Mapping[int, rendezvous.Connection], seconds: float = SECONDS
) -> dict[int, bytes]:
    """One message from each peer."""
    deadline = time.monotonic() + seconds
    heard: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for number, connection in peers.items():
            selector.register(connection, selectors.EVENT_READ, number)
        while len(heard) < len(peers):
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(
                    f"waited {seconds / 3600:.0f} h for the other processes to finish counting"
                )
            for key, _ in ready:
                messages = peers[key.data].receive_bytes(one=True)
                if messages is None:
                    raise _lost(ranks, key.data)
                if messages:
                    heard[key.data] = messages[0]
                    selector.unregister(peers[key.data])
    return heard


def _lost(ranks: Ranks, number: int) -> ConnectionError:
    return ConnectionError(
        f"process {number} on {ranks.hosts[number]} ended before the counts had been added up"
    )
