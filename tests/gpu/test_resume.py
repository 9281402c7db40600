"""Trained, interrupted at random steps, resumed: the same bits with baton.deterministic, and without?"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.run.directory import Run
from jobs.run.exit_codes import RESUME
from tests.gpu import work
from tests.gpu.work import CNN, ON_CPU, RECIPE, TRANSFORMER, Show
from tests.support import tiny

pytestmark = pytest.mark.slow

STEPS = 6
AMP = {"optim_wrapper__type": "AmpOptimWrapper"}
EMA = [{"type": "EMAHook", "momentum": 0.1}]
SYNC = {"model__backbone__norm_cfg__type": "SyncBN", "model__decode_head__norm_cfg__type": "SyncBN"}
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "UPerNet-R50 512x512, batch 4": (RECIPE, (), {}),
    "CNN": (CNN, (), {}),
    "transformer": (TRANSFORMER, (), {}),
    "EMA and SyncBN": (CNN, EMA, SYNC),
    "float16": (CNN, (), AMP | {"optim_wrapper__dtype": "float16", "optim_wrapper__loss_scale": "dynamic"}),
    "bfloat16": (RECIPE, (), AMP | {"optim_wrapper__dtype": "bfloat16"}),
    "channels_last": (CNN, (), {"baton__channels_last": True}),
    "fused": (TRANSFORMER, (), {"optim_wrapper__optimizer__fused": True}),
    # Moments in the weights' own order of elements, which a fused update needs.
    "channels_last, fused": (
        CNN,
        (),
        {"baton__channels_last": True, "optim_wrapper__optimizer__fused": True},
    ),
    # On the CPU without kernels, for these take minutes there.
    "compile": (CNN, (), {"compile": {"backend": "eager"} if ON_CPU else True}),
}
SOME = ("UPerNet-R50 512x512, batch 4", "transformer", "EMA and SyncBN")


def trained(
    path: Path, data: Path, kind: str, deterministic: bool, plans: list[Any], *hooks: dict[str, Any]
) -> Run:
    """A finished run that was interrupted as `plans` say, one in each start."""
    config, own, settings = KINDS[kind]
    settings = settings | {"baton__deterministic": deterministic}
    run = work.make_run(path, data, config, STEPS, [*own, *hooks], **settings)
    for number, plan in enumerate(plans, 1):
        code = RESUME if plan["signal"] == "SIGUSR2" else -9
        assert tiny.start(run, plan=plan, timeout=300) == [code], tiny.log_of(run, number)
    assert tiny.start(run, timeout=300) == [0], tiny.log_of(run, len(plans) + 1)
    return run


def interruptions(kind: str) -> list[dict[str, Any]]:
    """A preemption and a kill, at steps that are random and always the same."""
    chance = random.Random(kind)
    # A signal that comes when a step has begun is heeded at the end of the next one.
    first, second = chance.choice((1, 2)), chance.choice((STEPS - 2, STEPS - 1))
    return [
        {"at": "step", "step": first, "signal": "SIGUSR2"},
        {"at": "step", "step": second, "signal": "SIGKILL"},
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_bit_for_bit(kind: str, data: Path, tmp_path: Path) -> None:
    whole = work.last(trained(tmp_path / "whole", data, kind, True, []))
    found = work.last(trained(tmp_path / "found", data, kind, True, interruptions(kind)))
    assert found["step"] == STEPS
    assert tiny.differences(found, whole) == []
    if "channels_last" in kind:
        moment = found["optimizer"]["state"][0]["momentum_buffer"]
        for tensor in (found["state_dict"]["backbone.stem.0.weight"], moment):
            assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["transformer"] if ON_CPU else SOME)
def test_how_far_apart_without_deterministic_kernels(
    kind: str, data: Path, tmp_path: Path, show: Show
) -> None:
    """Two runs left alone differ as well; a resume should add nothing of another size."""
    whole = work.last(trained(tmp_path / "whole", data, kind, False, []))
    again = work.last(trained(tmp_path / "again", data, kind, False, []))
    found = work.last(trained(tmp_path / "found", data, kind, False, interruptions(kind)))
    alone, resumed = work.apart(again, whole), work.apart(found, whole)
    show(f"weights apart after {STEPS} steps, {kind}", f"{alone:.1e} left alone, {resumed:.1e} resumed")
    assert found["step"] == again["step"] == STEPS


def test_only_the_first_iteration_compiles(data: Path, tmp_path: Path) -> None:
    """Images of many sizes, and a learning rate that every iteration changes, are no part of a graph."""
    counts = tmp_path / "counts.json"
    trained(tmp_path / "run", data, "compile", False, [], {"type": "CountKernels", "path": str(counts)})
    graphs = json.loads(counts.read_text())["graphs"]
    assert graphs[0] > 0
    assert graphs == graphs[:1] * STEPS


@pytest.mark.skipif(ON_CPU, reason="kernels for the CPU take minutes")
@pytest.mark.skipif(work.KERNELS_AT not in os.environ, reason="make gpu measures it afterwards")
def test_the_recipe_is_compiled_for_the_measurement(data: Path, tmp_path: Path) -> None:
    settings = KINDS["bfloat16"][2] | {"compile": True}
    run = work.share_kernels(work.make_run(tmp_path / "run", data, RECIPE, 2, **settings))
    assert tiny.start(run, timeout=300) == [0], tiny.log_of(run, 1)


@pytest.mark.skipif(ON_CPU, reason="kernels for the CPU take minutes: tests/local/test_compiled.py")
def test_a_requeue_compiles_nothing_again(data: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    hook = {"type": "CountKernels", "path": str(counts)}
    run = trained(tmp_path / "run", data, "compile", False, interruptions("compile")[:1], hook)
    # Graphs that are found are written once more, as Python; machine code is not.
    began = sorted(run.job.glob("start-*"))[-1].stat().st_mtime
    code = [
        path for path in (run.path / "compiled/0").rglob("*") if path.suffix in (".so", ".cubin", ".hsaco")
    ]
    assert code, "nothing was compiled"
    assert [path.name for path in code if path.stat().st_mtime > began] == []
    found = json.loads(counts.read_text())
    assert found["found"] > 0
    assert found["made"] == 0
