"""The ranks come together: process groups, the device of each, and what differs without a GPU.

What torch's own sockets do not defend themselves against is limited here: the store listens where only the
ranks need to reach it, and no object that ranks exchange is a pickle.
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
"""Of a collective. A rank that stands still is found by its supervisor, which does not count the time for
which Slurm suspends the job; torch's clocks do. (24 days are all the milliseconds of a C int.)"""


def join(session: Session) -> None:
    """Chooses the device and, with several ranks, makes the process groups.

    NCCL on GPUs, gloo without; and always a gloo group for the few numbers that the ranks agree on, which
    must not wait behind the GPU's work. Raises UserError where some ranks of a machine would have a GPU and
    others none.
    """
    backend = choose_device(session)
    if session.ranks == 1:
        return
    send_objects_without_pickle()
    # Kept: the store ends with the object.
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
    """The socket that this rank's supervisor has opened for the store, on rank 0."""
    number = os.environ.pop("BATON_STORE_FD", None)
    return socket.socket(fileno=int(number)) if number else None


def open_store(
    ranks: int,
    main: bool,
    timeout: timedelta,
    listener: socket.socket | None = None,
    address: tuple[str, int] | None = None,
) -> Any:
    """A connection to the ranks' store; with `main`, which rank 0 gives once, also the store itself.

    `listener`: what it listens on, as the supervisors have opened it; by itself torch would do so at every
    address of the machine. `address`: where it is; MASTER_ADDR and MASTER_PORT say so otherwise.
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
        # From torch 2.4 to 2.6 the store that is made by default takes no open socket; the older one does.
        return dist.TCPStore(host, port, ranks, main, use_libuv=False, **options)


def store_key() -> str:
    """What the names of all that the ranks keep in the store begin with. A stranger who finds the port can
    still connect, but does not know what anything is called in there."""
    return os.environ.get("BATON_STORE_KEY", "")


def send_objects_without_pickle() -> None:
    """Makes the collectives of torch that take any object (`all_gather_object` and the like), on which
    mmengine's metrics and perhaps a hook of the user's rely, send what `wire` can send, and nothing else.

    Raises RuntimeError for a torch in which they are made otherwise.
    """
    from torch.distributed import distributed_c10d as c10d

    if not {"_object_to_tensor", "_tensor_to_object", "_pickler", "_unpickler"} <= vars(c10d).keys():
        raise RuntimeError(
            f"torch {torch.__version__} sends objects to other ranks in a way that is not known"
        )

    def to_tensor(value: Any, device: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        # A copy with memory of its own: torch enlarges it to the longest of all ranks.
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
    """This rank's part of the CPUs that its node gives the job. Slurm may have bound it to them already
    (task/affinity), or bound all ranks of the node to all of them."""
    bound = len(os.sched_getaffinity(0))
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
    return max(1, bound // session.local_ranks, min(bound, asked))


def choose_device(session: Session) -> str:
    """Makes this rank's GPU the current one, where there are any. Returns the backend for collectives between
    the ranks' devices. Rank 0 says what was chosen, in one line."""
    device = devices.of_rank(session.local_rank, os.environ)
    session.device = device.partition(":")[0]
    if device == devices.CPU:
        cores = cores_of_rank(session)
        if "OMP_NUM_THREADS" not in os.environ:
            # Also keeps mmengine from setting it to 1 with a warning.
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cores)
            torch.set_num_threads(cores)
        if session.main:
            print(f"no GPU: {_ranks(session)} on the CPU over gloo, {cores} cores each", flush=True)
        return "gloo"
    devices.use(device)
    # mmengine hands LOCAL_RANK to DistributedDataParallel as the device's number.
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
    dist.broadcast_object_list(box, src=0, group=session.control)  # as wire.py sends it
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
