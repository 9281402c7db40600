"""The accelerator has one owner, and ranks share GPUs as they should. No GPU is needed: torch.cuda's answers
are replaced by those of a machine that has some."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from jobs.engine import devices, distributed
from jobs.run import cuda
from jobs.run.errors import UserError
from launch.submit import machine
from tests.unit.test_config import session

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_else_speaks_to_the_accelerator() -> None:
    saying = {
        str(path.relative_to(ROOT))
        for top in ("jobs", "launch")
        for path in (ROOT / top).rglob("*.py")
        if any(word in path.read_text() for word in ("torch.cuda", "torch.version", ".is_cuda", "torch.xpu"))
    }
    assert saying == {"jobs/engine/devices.py"}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    devices.kind.cache_clear()
    yield
    devices.kind.cache_clear()


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_without_a_gpu_ranks_are_on_the_cpu() -> None:
    assert (devices.kind(), devices.count()) == ("cpu", 0)
    assert devices.of_rank(3, {}) == "cpu"
    assert devices.of_rank(3, {devices.SHARED: "1"}) == "cpu"
    assert not devices.need_gloo(4, {devices.SHARED: "1"})


@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_a_task_that_sees_one_gpu_has_it() -> None:
    """As Slurm binds them: each task sees one."""
    assert [devices.of_rank(rank, {}) for rank in (0, 1)] == ["cuda:0", "cuda:0"]


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_ranks_have_a_gpu_each_unless_they_are_to_share() -> None:
    assert [devices.of_rank(rank, {}) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    with pytest.raises(UserError, match="local rank 2 has no GPU of its own: this machine has 2"):
        devices.of_rank(2, {})
    sharing = {devices.SHARED: "1"}
    assert [devices.of_rank(rank, sharing) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices.need_gloo(3, sharing)
    assert not devices.need_gloo(3, sharing | {devices.MULTI_RANK: "1"})
    assert not devices.need_gloo(2, sharing)
    assert not devices.need_gloo(3, {})


def test_collectives_are_those_of_the_device() -> None:
    assert (devices.backend("cpu"), devices.backend("cuda:1")) == ("gloo", "nccl")


def test_as_much_fits_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 2 GiB, a tile that takes 3 GiB more at its peak, and 27 GiB that can be had for tiles."""
    gib = 1 << 30
    answers = {"memory_allocated": 2, "memory_reserved": 6, "max_memory_allocated": 5}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, answer=answer: answer * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (23 * gib, 80 * gib))
    assert devices.fitting("cuda:0") == 6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 80 * gib))
    assert (devices.fitting("cuda:0"), devices.fitting("cpu")) == (1, 1)


def test_what_torch_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    assert devices.build() == "12.8"
    monkeypatch.setattr(torch.version, "hip", "6.2.4")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.build() == "6.2.4 (ROCm)"


def test_asking_uses_no_accelerator() -> None:
    devices.seed(1)
    devices.synchronise()
    assert devices.peak_bytes() == 0
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize(
    ("environ", "given"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, 1),
        ({"HIP_VISIBLE_DEVICES": "2"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
    ],
)
def test_gpus_that_may_be_used(environ: dict[str, str], given: int | None) -> None:
    assert cuda.visible_count(environ) == given


def test_gpus_of_either_maker_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cuda.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    dev, amd = tmp_path / "dev", tmp_path / "nodes"
    dev.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (dev / name).touch()
    assert machine.local_gpus(dev, amd) == 2
    for number, identifier in enumerate(["0", "12345", "54321"]):  # the first is the CPU
        (amd / str(number)).mkdir(parents=True)
        (amd / str(number) / "gpu_id").write_text(f"{identifier}\n")
    none = tmp_path / "none"
    none.mkdir()
    assert machine.local_gpus(none, amd) == 2
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert machine.local_gpus(none, amd) == 1


@pytest.mark.parametrize(
    ("bound", "asked", "cores"),
    [
        (8, "", 2),  # no Slurm, or without --cpus-per-task: all ranks have the node's
        (8, "8", 8),  # task/affinity: each rank is bound to its own
        (32, "8", 8),  # without it
        (6, "8", 6),  # by whatever else
        (2, "", 1),
    ],
)
def test_a_ranks_cores_are_those_that_it_has(
    bound: int, asked: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    here = session(tmp_path)
    here.local_ranks = 4
    assert distributed.cores_of_rank(here) == cores


def test_a_collective_outlives_a_suspension() -> None:
    """torch's clock runs on while Slurm suspends a job; who hangs is for the supervisors to say."""
    assert timedelta(days=7) < distributed.TIMEOUT < timedelta(milliseconds=2**31)
