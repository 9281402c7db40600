"""What a node can do for a run: one process of a probe job. `python -m jobs.probe FOLDER`, as one srun task.

Looks whether FOLDER is shared with the login node, whether the environment imports, whether the tasks meet by
TCP and compute together (gloo; NCCL where there are GPUs). Each task writes FOLDER/answer-RANK.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from jobs.run_directory import write_atomically
from jobs.train import rendezvous, task

SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.probe", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    me = task.read()
    answer: dict[str, Any] = {"rank": me.rank, "host": me.host, "python": sys.version.split()[0]}
    try:
        token = (folder / "token").read_text()
    except OSError as error:
        # There is no place to answer but the log.
        sys.exit(f"error: {me.host} does not see {folder}: {error}")
    answer["token"] = token
    answer["environment"] = tried(imports)
    meeting: Any = None

    def meet() -> str:
        nonlocal meeting
        start = 1 if me.rank == 0 else None
        meeting = rendezvous.meet(me, rendezvous.secret(folder), SECONDS, start)
        return ", ".join(meeting.hosts)

    answer["meeting"] = tried(meet)
    if answer["meeting"]["ok"] and answer["environment"]["ok"]:
        address = (meeting.master_address, meeting.master_port)
        answer["gloo"] = tried(lambda: reduce_together("gloo", me, address))
    answer["gpus"] = gpus() if answer["environment"]["ok"] else 0
    write_atomically(folder / f"answer-{me.rank}.json", json.dumps(answer).encode())


def tried(work: Callable[[], str]) -> dict[str, Any]:
    """{ok, text, seconds} of something that may fail in any way; the probe's purpose is to say how."""
    began = time.monotonic()
    try:
        ok, text = True, work()
    except Exception as error:
        ok, text = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {"ok": ok, "text": text, "seconds": round(time.monotonic() - began, 2)}


def imports() -> str:
    from jobs import compat

    compat.prepare()
    import mmengine
    import mmseg
    import torch

    return f"torch {torch.__version__}, mmseg {mmseg.__version__}, mmengine {mmengine.__version__}"


def reduce_together(backend: str, me: Any, address: tuple[str, int]) -> str:
    import torch
    import torch.distributed as dist

    store = dist.TCPStore(*address, me.world_size, me.rank == 0, timeout=timedelta(seconds=SECONDS))
    dist.init_process_group(
        backend, store=store, rank=me.rank, world_size=me.world_size, timeout=timedelta(seconds=SECONDS)
    )
    value = torch.ones(1)
    if torch.cuda.is_available() and dist.is_nccl_available():
        # Both at once: NCCL over the same store, as a training does it.
        group = dist.new_group(backend="nccl")
        device = torch.device("cuda", me.local_rank % torch.cuda.device_count())
        dist.all_reduce(value.to(device), group=group)
    dist.all_reduce(value)
    dist.destroy_process_group()
    if int(value) != me.world_size:
        raise RuntimeError(f"the sum over {me.world_size} ranks is {value.item()}")
    return f"{me.world_size} ranks"


def gpus() -> int:
    import torch

    return torch.cuda.device_count() or len(
        [x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    )


if __name__ == "__main__":
    main()
