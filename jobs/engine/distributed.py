"""Connects the ranks: process groups, the device of each, and what differs without a GPU.

It also limits what torch's own sockets do not defend against: the store listens only where the ranks need to
reach it, and ranks exchange no pickles.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from jobs.engine import devices, wire
from jobs.engine.session import Session
from jobs.supervise import rendezvous

TIMEOUT = timedelta(days=20)
"""Timeout of collectives. The supervisor detects a rank that hangs, and unlike torch's clocks, ignores time
for which Slurm suspends the job. (The limit is 24 days, the milliseconds that fit into a C int.)"""


def join(session: Session) -> None:
    """Chooses the device and, with several ranks, creates the process groups.

    NCCL with GPUs, gloo without; and always a gloo group for the numbers that the ranks agree on, which must
    not wait for the GPU's work. Raises UserError if only some of a machine's ranks would have a GPU.
    """
    backend = choose_device(session)
    if session.ranks == 1:
        return
    send_objects_without_pickle()
    # Kept, because the store ends with the object.
    session.store = open_store(session.ranks, session.main, TIMEOUT, _inherited())
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(store_key(), session.store),
        rank=session.rank,
        world_size=session.ranks,
        timeout=TIMEOUT,
    )
    session.control = dist.new_group(backend="gloo", timeout=TIMEOUT)


def _inherited() -> socket.socket | None:
    """On rank 0, the socket that its supervisor has opened for the store; else None."""
    number = os.environ.pop("BATON_STORE_FD", None)
    return socket.socket(fileno=int(number)) if number else None


def open_store(
    ranks: int,
    main: bool,
    timeout: timedelta,
    listener: socket.socket | None = None,
    address: tuple[str, int] | None = None,
) -> Any:
    """A connection to the ranks' store; with `main`, which rank 0 sets once, also the store itself.

    `listener`: the socket to listen on, opened by the supervisor; by default torch would listen on every
    address of the machine. `address`: where the store is, by default from MASTER_ADDR and MASTER_PORT.
    """
    host, port = address or (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    options: dict[str, Any] = {}
    if main:
        listener = listener or rendezvous.listen(host, port)
        port = listener.getsockname()[1]
        listener.set_inheritable(False)
        options["master_listen_fd"] = listener.detach()
    options |= {"timeout": timeout, "wait_for_workers": False}
    try:
        return dist.TCPStore(host, port, ranks, main, **options)
    except NotImplementedError:
        # In torch 2.4 to 2.6, the default store does not accept an open socket; the older one does.
        return dist.TCPStore(host, port, ranks, main, use_libuv=False, **options)


def store_key() -> str:
    """Prefix of all keys that the ranks use in the store. A stranger who finds the port can still connect,
    but does not know any key."""
    return os.environ.get("BATON_STORE_KEY", "")


def send_objects_without_pickle() -> None:
    """Makes torch's object collectives (`all_gather_object` and the like), on which mmengine's metrics and
    perhaps a user's hook rely, send what `wire` supports, and nothing else.

    Raises RuntimeError for a torch that implements them differently.
    """
    from torch.distributed import distributed_c10d as c10d

    if not {"_object_to_tensor", "_tensor_to_object", "_pickler", "_unpickler"} <= vars(c10d).keys():
        raise RuntimeError(
            f"torch {torch.__version__} sends objects to other ranks in a way that is not known"
        )

    def to_tensor(value: Any, device: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        # A copy that owns its memory: torch resizes it to the longest of all ranks.
        data = torch.frombuffer(wire.pack(value), dtype=torch.uint8).clone().to(device)
        return data, torch.tensor([data.numel()], dtype=torch.long, device=device)

    def to_object(tensor: torch.Tensor, size: Any, *_: Any) -> Any:
        return wire.unpack(tensor.cpu().numpy().data[: int(size)])

    def refuse(*_: Any) -> Any:
        raise RuntimeError("ranks exchange no pickles")

    vars(c10d).update(
        _object_to_tensor=to_tensor, _tensor_to_object=to_object, _pickler=refuse, _unpickler=refuse
    )


def cores_of_rank(session: Session) -> int:
    """The number of CPUs for this rank on its node. Slurm may have bound it to its own already
    (task/affinity), or all ranks of the node to all CPUs of the job."""
    bound = len(os.sched_getaffinity(0))
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
    return max(1, bound // session.local_ranks, min(bound, asked))


def choose_device(session: Session) -> str:
    """Makes this rank's GPU the current one, if there are any. Returns the backend for collectives between
    the ranks' devices. Rank 0 prints the choice, in one line."""
    device = devices.of_rank(session.local_rank, os.environ)
    session.device = device.partition(":")[0]
    if device == devices.CPU:
        cores = cores_of_rank(session)
        if "OMP_NUM_THREADS" not in os.environ:
            # This also keeps mmengine from setting it to 1, with a warning.
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cores)
            torch.set_num_threads(cores)
        if session.main:
            print(f"no GPU: {_ranks(session)} on the CPU over gloo, {cores} cores each", flush=True)
        return "gloo"
    devices.use(device)
    # mmengine passes LOCAL_RANK to DistributedDataParallel as the device index.
    os.environ["LOCAL_RANK"] = device.partition(":")[2]
    backend = "gloo" if devices.need_gloo(session.local_ranks, os.environ) else devices.backend(device)
    if session.main:
        print(f"{_ranks(session)} on {devices.name(device)} over {backend.upper()}", flush=True)
    return backend


def _ranks(session: Session) -> str:
    return "1 process" if session.ranks == 1 else f"{session.ranks} processes"


def everywhere(session: Session, value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if session.ranks == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=session.control)  # encoded by wire.py
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
    """Disconnects the ranks at the end of a training, once all have arrived."""
    if session.ranks > 1:
        barrier(session)
        dist.destroy_process_group()
