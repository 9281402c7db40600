"""What a step, a save, a start and an evaluation take, against plain mmengine with the same config: figures
for the table, none of which decides whether a test passes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import evaluation
from benchmarks.trainings import start
from jobs.run import files
from jobs.run.directory import Run
from tests.gpu import work
from tests.gpu.work import ON_CPU, RECIPE, Show
from tests.support import tiny

pytestmark = pytest.mark.slow

WARM_UP, COUNTED, PROFILED, EVERY, SAVES = (2, 3, 5, 2, 2) if ON_CPU else (10, 30, 5, 10, 3)
BATCH = 4
AT_ONCE = 8
"""Images of one size that an evaluation has the model see at once."""
PARTS = ("loading", "model", "counting")
AMP = {"optim_wrapper__type": "AmpOptimWrapper", "optim_wrapper__dtype": "bfloat16"}
LAST = {"baton__channels_last": True}
BOTH = "as torch has it"
# Convolutions take TF32 by default, products of matrices do not.
OPTIONS: dict[str, tuple[dict[str, Any], tuple[bool, bool] | None]] = {
    BOTH: ({}, None),
    "float32": ({}, (False, False)),
    "TF32": ({}, (True, True)),
    "bfloat16": (AMP, None),
    "bfloat16, channels_last": (AMP | LAST, None),
    "bfloat16, compile": (AMP | {"compile": True}, None),
}
OTHERS = ["float32", "TF32"] if ON_CPU else [option for option in OPTIONS if option != BOTH]
PEERS = [BOTH, *(option for option in OTHERS if option in ("float32", "TF32", "bfloat16"))]
"""What mmengine has as well. It has torch.compile, and compiles in every iteration: for longer than all else
here takes (docs/gpu-options.md)."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a list as long as the recipe's: mmengine sleeps two seconds whenever one begins again."""
    return start.endless_list(work.make_data(tmp_path_factory.mktemp("data")))


def make_run(path: Path, data: Path, option: str) -> Run:
    settings, tf32 = OPTIONS[option]
    hook = {"type": "Measure", "result": str(path / "result.json"), "warm_up": WARM_UP}
    hook |= {"counted": COUNTED, "tf32": tf32}
    begin = WARM_UP + COUNTED + PROFILED + 1
    steps = work.by_iteration(begin + EVERY * SAVES, EVERY, begin)
    run = start.make_run(path, data, RECIPE, hook, **steps | settings)
    return work.share_kernels(run) if "compile" in settings else run


def figures(option: str, side: str, one: dict[str, Any], show: Show) -> None:
    stalls = [seconds for _, seconds in one["saves"][1:]]
    found = [f"{BATCH / one['step']:.3g} images/s", f"{one['step'] * 1000:.3g} ms a step"]
    if one["busy"] is not None:
        found += [f"GPU busy {one['busy']:.0%}", f"peak {one['peak'] / 2**30:.2f} GiB"]
    waited = f"waits for data {one['wait']:.1%} ({one['waited']} of {COUNTED} steps > 1 ms)"
    found += [waited, f"save stall {statistics.median(stalls):.3f} s"]
    if "first" in one:
        found.append(f"first step after {one['first']:.1f} s")
    show(f"training, {option}, {side}", ", ".join(found))


def test_a_step(data: Path, tmp_path: Path, show: Show) -> None:
    """By the commands of either side, from the start on; the peer's then trains with its options too."""
    ours = start.result("ours", make_run(tmp_path / "ours", data, BOTH))
    figures(BOTH, "Baton", ours, show)
    runs = {
        option: make_run(tmp_path / f"peer-{number}", data, option) for number, option in enumerate(PEERS)
    }
    *others, last = runs.values()
    command = [*start.SIDES["peer"], *(str(run.path) for run in others)]
    start.wait(last, start.start("peer", last, command=command))
    peers = {option: json.loads((run.path / "result.json").read_text()) for option, run in runs.items()}
    for option in (option for option in PEERS if option != BOTH):
        del peers[option]["first"]  # from the start of the command, with the trainings before it
    for option, peer in peers.items():
        figures(option, "mmengine", peer, show)
    against = ours["step"] / peers[BOTH]["step"]
    show(f"training, {BOTH}, step against mmengine", f"{against:.3f}× (goal ≤ 1.00)")
    assert ours["step"] > 0
    assert all(peer["step"] > 0 for peer in peers.values())


def test_an_evaluation(show: Show) -> None:
    """That both sides find the same figures, `whole_test` looks itself."""
    images, workers = (6, 0) if ON_CPU else (200, 4)
    config = "configs/demo.py" if ON_CPU else "configs/upernet_r50_voc-aug_512x512_epoch-200.py"
    with evaluation.whole_test(config, images, 1, workers) as (ours, peer, details, run):
        ours("--batch", str(AT_ONCE))
        batched = confusion(run.path / "ours")
        ours()
        one_by_one = confusion(run.path / "ours")
        peer()
        (together, mine), (theirs,) = details["seconds_rank_0"]["ours"], details["seconds_rank_0"]["peer"]
    sides = {"Baton": mine, f"Baton, {AT_ONCE} at once": together, "mmseg": theirs}
    theirs["loading"] = theirs["all"] - theirs["model"] - theirs["counting"]
    spent = {side: sum(parts[key] for key in PARTS) for side, parts in sides.items()}
    for side, parts in sides.items():
        where = ", ".join(f"{parts[key]:.2f} s {key}" for key in PARTS)
        show(f"evaluation of {images} images, {side}", f"{images / spent[side]:.3g} images/s ({where})")
    show("evaluation, against mmseg", f"{spent['mmseg'] / spent['Baton']:.2f}× (goal ≥ 2×)")
    pixels = int(one_by_one.sum())
    apart = int(np.abs(one_by_one - batched).sum()) / 2
    show(f"evaluation, {AT_ONCE} at once", f"{apart:.0f} of {pixels:,} pixels counted otherwise")
    assert batched.sum() == pixels
    assert apart < pixels / 1000


def confusion(folder: Path) -> np.ndarray:
    return np.genfromtxt(folder / files.EVAL_CONFUSION, delimiter=",", skip_header=1)[:, 1:]


@pytest.mark.parametrize("option", OTHERS)
def test_a_step_with(option: str, data: Path, tmp_path: Path, show: Show) -> None:
    """Of a rank without its supervisor, its imports done before."""
    run = make_run(tmp_path / "ours", data, option)
    assert tiny.start(run, timeout=300) == [0], tiny.log_of(run, 1)
    found = json.loads((run.path / "result.json").read_text())
    figures(option, "Baton", found, show)
    assert found["step"] > 0
