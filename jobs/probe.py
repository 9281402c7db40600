"""What a node can do for a run: one process of a probe job. `python -m jobs.probe FOLDER`, as one srun task.

Looks whether FOLDER is shared with the login node, whether the environment imports, whether it can compute on
the GPUs that Slurm gave, whether the tasks meet by TCP and compute together (gloo; NCCL where each rank has a
GPU). The first measures the file systems. Each task writes FOLDER/answer-RANK.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from jobs.run import cuda, environment, file_systems, files, quotas, staged, task
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError
from jobs.supervise import rendezvous

SECONDS = 60.0
BLOCK = 64 << 20
"""Bytes written and read to measure a disk's speed."""
MOST_OPENED = 500
PLACES = ("$TMPDIR", "/local/$USER", "/scratch/local/$USER", "/tmp", "/dev/shm")
"""Where a node's local disk may be, if the profile does not say."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.probe", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    me = task.read()
    answer: dict[str, Any] = {"rank": me.rank, "host": me.host, "python": sys.version.split()[0]}
    try:
        token = (folder / "token").read_text()
    except OSError as error:
        # Without the folder, only the log can be answered in.
        sys.exit(f"error: {me.host} does not see {folder}: {error}")
    answer["token"] = token
    answer["interpreter"] = sys.executable
    if me.rank == 0:  # before the imports, so that nothing is in this node's page cache
        with contextlib.suppress(OSError):
            answer["files"] = measured_files(folder)
    answer["environment"] = tried(imports)
    meeting: Any = None

    def meet() -> str:
        nonlocal meeting
        start = 1 if me.rank == 0 else None
        meeting = rendezvous.meet(me, folder, SECONDS, start)
        return ", ".join(meeting.hosts)

    answer["meeting"] = tried(meet)
    if answer["environment"]["ok"]:
        answer["gpus"] = gpus()
        if answer["gpus"]["usable"]:
            answer["compute"] = tried(lambda: compute(me))
    if answer["meeting"]["ok"] and answer["environment"]["ok"]:
        answer |= together(me, meeting, bool(answer["gpus"]["usable"]))
    write_atomically(folder / f"answer-{me.rank}.json", json.dumps(answer).encode())


def tried(work: Callable[[], str]) -> dict[str, Any]:
    """{ok, text, seconds} of `work`; text: its result, or its exception, of whatever kind, in one line."""
    began = time.monotonic()
    try:
        ok, text = True, work()
    except Exception as error:
        ok, text = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {"ok": ok, "text": text, "seconds": round(time.monotonic() - began, 2)}


def imports() -> str:
    from jobs.engine import safe_load
    from jobs.mmseg import compat

    if wrong := environment.problems():
        raise RuntimeError(", ".join(wrong))
    compat.prepare()
    safe_load.prove()
    import mmengine
    import mmseg
    import torch

    return f"torch {torch.__version__}, mmseg {mmseg.__version__}, mmengine {mmengine.__version__}"


def measured_files(folder: Path) -> dict[str, Any]:
    """The file system of FOLDER, which the login node has just filled, and this node's local folders.

    `kind`, `opens`: files opened and closed per second; `read`: bytes/s of a sequential read, None if there
    was nothing to read; `left`: bytes and files that may still be written; `places`: PATH -> kind, room
    (bytes) and read, of the folder that `stage` names (or its error), else of those in PLACES that exist.
    """
    found: dict[str, Any] = {"kind": file_systems.kind(folder), "left": quotas.left(folder)}
    found["read"] = read_speed(folder / "block") if (folder / "block").exists() else None
    names = [path for path in sorted((folder / files.CODE()).rglob("*")) if path.is_file()][:MOST_OPENED]
    began = time.perf_counter()
    for name in names:
        os.close(os.open(name, os.O_RDONLY))
    found["opens"] = len(names) / (time.perf_counter() - began)
    setting = (folder / "stage").read_text() if (folder / "stage").exists() else ""
    found["places"] = {}
    for text in dict.fromkeys([setting] if setting else PLACES):
        try:
            place = staged.expand(text, os.environ)
            there = place if place.is_dir() else place.parent  # staging makes the last folder
            kind, room = file_systems.kind(there), file_systems.room(there)
        except (UserError, OSError) as error:
            if setting:
                found["places"][text] = {"error": str(error)}
            continue
        read = written_and_read(there) if room > 8 * BLOCK else None
        found["places"][text] = {"kind": kind, "room": room, "read": read}
    return found


def written_and_read(folder: Path) -> float | None:
    """Bytes/s of a sequential read of a file written there; None if it cannot be written or read."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(os.urandom(BLOCK))
            file.flush()
            os.fsync(file.fileno())
            return read_speed(Path(file.name))
    except OSError:
        return None


def read_speed(path: Path) -> float:
    """Bytes/s of a sequential read, after asking the kernel to drop the file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        began, size = time.perf_counter(), 0
        while chunk := os.read(fd, 4 << 20):
            size += len(chunk)
        return size / (time.perf_counter() - began)
    finally:
        os.close(fd)


def gpus() -> dict[str, Any]:
    """The GPUs that Slurm allocated to this task, and those that torch can use.

    `given`: number of devices in CUDA_VISIBLE_DEVICES (or AMD's); `cuda`: what torch was built for
    (devices.build); `driver`: the newest CUDA version that the node's driver supports, or None; `usable`:
    number of GPUs that torch sees; `names`: theirs, each once.
    """
    from jobs.engine import devices

    usable = devices.count()
    names = sorted({devices.name(f"{devices.kind()}:{index}") for index in range(usable)})
    versions = {"cuda": devices.build(), "driver": cuda.driver()}
    return {"given": cuda.visible_count(os.environ) or 0, **versions, "usable": usable, "names": names}


def device(me: task.Task) -> Any:
    """The rank's GPU (a torch.device), chosen as in training."""
    import torch

    from jobs.engine import devices

    return torch.device(devices.kind(), me.local_rank % devices.count())


def compute(me: task.Task) -> str:
    """Compares a matrix product on the GPU and the CPU; returns the GPU's name, or raises RuntimeError."""
    import torch

    from jobs.engine import devices

    left = torch.arange(64.0).reshape(8, 8)
    if not torch.equal((left.to(device(me)) @ left.to(device(me))).cpu(), left @ left):
        raise RuntimeError("the GPU and the CPU disagree on a product of small whole numbers")
    return devices.name(str(device(me)))


def together(me: task.Task, meeting: rendezvous.Meeting, on_gpu: bool) -> dict[str, Any]:
    """An all-reduce over all ranks: {"gloo": …}, and "nccl" if each rank has its own GPU; see `tried`."""
    import torch
    import torch.distributed as dist

    from jobs.engine import devices, distributed

    if meeting.interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", meeting.interface)

    def gloo() -> str:
        wait = timedelta(seconds=SECONDS)
        address = (meeting.master_address, meeting.master_port)
        store = distributed.open_store(me.world_size, me.rank == 0, wait, meeting.store, address)
        dist.init_process_group("gloo", store=store, rank=me.rank, world_size=me.world_size, timeout=wait)
        return summed(me, torch.tensor([me.rank + 1.0]), None)

    found = {"gloo": tried(gloo)}
    if on_gpu and found["gloo"]["ok"] and devices.count() >= me.local_world_size:

        def nccl() -> str:
            # A second group over the same store, as in training.
            group = dist.new_group(
                backend=devices.backend(devices.kind()), timeout=timedelta(seconds=SECONDS)
            )
            return summed(me, torch.tensor([me.rank + 1.0], device=device(me)), group)

        found["nccl"] = tried(nccl)
    if dist.is_initialized():
        dist.destroy_process_group()
    return found


def summed(me: task.Task, value: Any, group: Any) -> str:
    """All-reduces `value` (rank + 1, so a missing rank shows). Raises RuntimeError if the sum is wrong."""
    import torch.distributed as dist

    dist.all_reduce(value, group=group)
    right = me.world_size * (me.world_size + 1) / 2
    if value.item() != right:
        raise RuntimeError(f"the sum over {me.world_size} ranks is {value.item()} instead of {right}")
    return f"{me.world_size} rank{'s' if me.world_size > 1 else ''}"


if __name__ == "__main__":
    main()
