"""The processes of an evaluation: who this one is, and adding up what all have counted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jobs.errors import UserError
from jobs.run_directory import Run
from jobs.train import rendezvous
from jobs.train.task import Task, read

TIMEOUT = timedelta(hours=6)
"""How long a rank waits for the others to count: they may have the larger images, or the slower node."""
RENDEZVOUS_SECONDS = 300.0


@dataclass
class Ranks:
    rank: int
    size: int
    device: str
    job: str
    store: Any = None


def join(run: Run) -> Ranks:
    """Meets the other processes of this job step; alone, there is nobody to meet."""
    task = read()
    ranks = Ranks(task.rank, task.world_size, _device(task), task.job)
    if ranks.size > 1:
        import torch.distributed as dist

        run.job.mkdir(exist_ok=True)
        start = 1 if task.rank == 0 else None
        meeting = rendezvous.meet(task, rendezvous.secret(run.job), RENDEZVOUS_SECONDS, start)
        ranks.store = dist.TCPStore(
            meeting.master_address, meeting.master_port, ranks.size, task.rank == 0, timeout=TIMEOUT
        )
    return ranks


def _device(task: Task) -> str:
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        if task.rank == 0:
            print(f"no GPU: {task.world_size} process(es) on the CPU", flush=True)
        return "cpu"
    index = task.local_rank if gpus > 1 else 0
    if index >= gpus:
        raise UserError(f"local rank {task.local_rank} has no GPU of its own: this machine has {gpus}")
    return f"cuda:{index}"


def gather(ranks: Ranks, what: bytes) -> list[bytes] | None:
    """What every rank gives, in the order of ranks, on rank 0; None on the others, once rank 0 has it all."""
    if ranks.size == 1:
        return [what]
    ranks.store.set(f"part/{ranks.rank}", what)
    if ranks.rank == 0:
        parts = [bytes(ranks.store.get(f"part/{rank}")) for rank in range(ranks.size)]
        ranks.store.set("gathered", b"1")
        # The store lives in this process: it may end only after the others have read the word.
        for rank in range(1, ranks.size):
            ranks.store.get(f"bye/{rank}")
        return parts
    ranks.store.get("gathered")
    ranks.store.set(f"bye/{ranks.rank}", b"1")
    return None
