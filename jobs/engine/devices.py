"""The accelerator, as torch presents it. Nothing else in jobs/ and launch/ uses `torch.cuda`.

To torch, AMD's GPUs (ROCm) are "cuda", too, and their collectives (RCCL) "nccl". From 2.6 on, torch names any
others itself (`torch.accelerator`, `get_default_backend_for_device`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from jobs.run.errors import UserError

CPU = "cpu"
SHARED = "BATON_SHARED_GPUS"
"""Environment variable: if 1, ranks may share GPUs, over gloo (NCCL refuses two ranks on one GPU unless
`MULTI_RANK` is 1, too). For tests of several ranks on a machine with one GPU; nothing gets faster."""
MULTI_RANK = "NCCL_MULTI_RANK_GPU_ENABLE"
"""NCCL's own environment variable, since 2.30."""
RAISING = ("torch.cuda", "torch.xpu", "torch.accelerator", "torch.distributed", "torch.nn.parallel")
"""Modules whose errors come from devices or other ranks, whatever their type, and may not recur at the next
start."""


@functools.cache
def kind() -> str:
    """The type of torch device available here: `cuda` (NVIDIA and AMD), another one, or `cpu`."""
    if torch.cuda.device_count():  # asks the driver without initializing the GPU, so forking stays possible
        return "cuda"
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None or not accelerator.is_available():
        return CPU
    return str(accelerator.current_accelerator().type)


def count() -> int:
    """The number of accelerators that torch can use here; 0 if there is only the CPU."""
    there = kind()
    return 0 if there == CPU else int(_module(there).device_count())


def of_rank(local_rank: int, environ: Mapping[str, str]) -> str:
    """The device of a rank on this machine: `cpu`, or for example `cuda:1`.

    A task may see one GPU (bound by Slurm) or all of its node's. Raises UserError if there are too few GPUs.
    """
    gpus = count()
    if not gpus:
        return CPU
    index = local_rank if gpus > 1 else 0
    if environ.get(SHARED) == "1":
        index %= gpus
    if index >= gpus:
        raise UserError(
            f"local rank {local_rank} has no GPU of its own: this machine has {gpus}; request one GPU per "
            "rank"
        )
    return f"{kind()}:{index}"


def need_gloo(local_ranks: int, environ: Mapping[str, str]) -> bool:
    """Whether this machine's ranks share GPUs, as `BATON_SHARED_GPUS` allows but NCCL would refuse."""
    return environ.get(SHARED) == "1" and environ.get(MULTI_RANK) != "1" and 0 < count() < local_ranks


def use(device: str) -> None:
    """Makes a device this process's current one."""
    if device != CPU:
        _module(device).set_device(torch.device(device))


def backend(device: str) -> str:
    """The backend for collectives between devices of this type: `nccl`, `gloo`, …"""
    there = torch.device(device).type
    default = getattr(dist, "get_default_backend_for_device", None)
    if default is None:
        return {"cuda": "nccl"}.get(there, "gloo")
    return str(default(there))


def name(device: str) -> str:
    """The name of the card, such as `NVIDIA A100-SXM4-80GB`."""
    if device == CPU:
        return "CPU"
    module = _module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device


def memory(index: int) -> int:
    """Total bytes of an accelerator's memory; 0 if torch cannot tell."""
    properties = getattr(_module(kind()), "get_device_properties", None)
    return int(getattr(properties(index), "total_memory", 0)) if properties else 0


def build() -> str | None:
    """What torch was built for: `12.8` (CUDA), `6.2 (ROCm)`; None for the CPU alone."""
    hip = getattr(torch.version, "hip", None)
    return f"{hip} (ROCm)" if hip else torch.version.cuda


def seed(number: int) -> None:
    """Seeds the current accelerator's generator, if one is in use."""
    if (module := _in_use()) is not None:
        module.manual_seed(number)


def synchronise() -> None:
    """Waits for the work queued on the current accelerator, if one is in use."""
    if (module := _in_use()) is not None:
        module.synchronize()


def peak_bytes() -> int:
    """Peak bytes of tensors allocated on the current accelerator; 0 on the CPU."""
    module = _in_use()
    return 0 if module is None else int(module.max_memory_allocated())


def fitting(device: str) -> int:
    """How many times the peak memory of this process's computation on a device would fit there at once, with
    a third of the space to spare; at least 1; 1 if unknown, and on the CPU."""
    module = None if device == CPU else _module(device)
    if module is None or not hasattr(module, "mem_get_info"):
        return 1
    held = module.memory_allocated(device)
    room = module.mem_get_info(device)[0] + module.memory_reserved(device) - held
    return max(1, int(room * 2 / 3 / max(1, module.max_memory_allocated(device) - held)))


def is_on_accelerator(tensor: torch.Tensor) -> bool:
    return tensor.device.type not in (CPU, "meta")


def _in_use() -> Any:
    """The module of the accelerator that this process uses, or None. Does not initialize one."""
    if torch.cuda.is_initialized():
        return torch.cuda
    there = kind()
    module = None if there in (CPU, "cuda") else _module(there)
    return module if module is not None and module.is_initialized() else None


def _module(device: str) -> Any:
    """torch.cuda, torch.xpu, …"""
    return getattr(torch, torch.device(device).type)
