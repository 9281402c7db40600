"""The ranks come together: process groups, the device of each, and what differs without a GPU."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from jobs.errors import UserError
from jobs.train.session import Session

TIMEOUT = timedelta(minutes=30)
"""Of a collective. A rank that stands still is found sooner, by its supervisor."""


def join(session: Session) -> None:
    """Chooses the device and, with several ranks, makes the process groups.

    NCCL on GPUs, gloo without; and always a gloo group for the few numbers that the ranks agree on, which
    must not wait behind the GPU's work. Raises UserError where some ranks of a machine would have a GPU and
    others none.
    """
    session.device = choose_device(session)
    if session.ranks == 1:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    session.store = dist.TCPStore(address, port, session.ranks, session.main, timeout=TIMEOUT)
    dist.init_process_group(
        "nccl" if session.device == "cuda" else "gloo",
        store=session.store,
        rank=session.rank,
        world_size=session.ranks,
        timeout=TIMEOUT,
    )
    session.control = dist.new_group(backend="gloo", timeout=TIMEOUT)


def choose_device(session: Session) -> str:
    """cuda or cpu; makes this rank's GPU the current one. Rank 0 says what was chosen, in one line."""
    gpus = torch.cuda.device_count()
    if not gpus:
        cores = max(1, len(os.sched_getaffinity(0)) // session.local_ranks)
        if "OMP_NUM_THREADS" not in os.environ:
            # Also keeps mmengine from setting it to 1 with a warning.
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cores)
            torch.set_num_threads(cores)
        if session.main:
            print(f"no GPU: {_ranks(session)} on the CPU over gloo, {cores} cores each", flush=True)
        return "cpu"
    # A task may see one GPU (bound by Slurm) or all of its node's.
    index = session.local_rank if gpus > 1 else 0
    if index >= gpus:
        raise UserError(f"{session.local_ranks} ranks on a machine with {gpus} GPUs: ask for as many GPUs")
    torch.cuda.set_device(index)
    # mmengine hands LOCAL_RANK to DistributedDataParallel as the device's number.
    os.environ["LOCAL_RANK"] = str(index)
    if session.main:
        print(f"{_ranks(session)} on {torch.cuda.get_device_name(index)} over NCCL", flush=True)
    return "cuda"


def _ranks(session: Session) -> str:
    return "1 process" if session.ranks == 1 else f"{session.ranks} processes"


def everywhere(session: Session, value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if session.ranks == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=session.control)
    return box[0]


def gather(session: Session, value: Any) -> list[Any] | None:
    """The values of all ranks, in order, on rank 0; None on the others."""
    if session.ranks == 1:
        return [value]
    values: list[Any] | None = [None] * session.ranks if session.main else None
    dist.gather_object(value, values, dst=0, group=session.control)
    return values


def barrier(session: Session) -> None:
    if session.ranks > 1:
        dist.barrier(group=session.control)


def part(session: Session) -> None:
    """The ranks part at the end of a training, none before all are there."""
    if session.ranks > 1:
        barrier(session)
        dist.destroy_process_group()
