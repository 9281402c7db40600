"""What a step, a save, a start and an evaluation take, against plain mmengine with the same config: figures
for the table, none of which decides whether a test passes. In the order of their worth: time may run out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
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

WARM_UP, COUNTED, PROFILED, EVERY, SAVES = (2, 3, 5, 2, 2) if ON_CPU else (10, 30, 5, 20, 3)
BATCH = 4
AT_ONCE = 8
"""Images of one size that an evaluation has the model see at once."""
PARTS = ("loading", "model", "counting")
AMP = {"optim_wrapper__type": "AmpOptimWrapper", "optim_wrapper__dtype": "bfloat16"}
LAST = {"baton__channels_last": True}
FIRST = "TF32, as torch has it"
"""Convolutions take TF32 by default; products of matrices do not, of which the network has none."""
OPTIONS: dict[str, tuple[dict[str, Any], tuple[bool, bool] | None]] = {
    FIRST: ({}, None),
    "bfloat16": (AMP, None),
    "float32": ({}, (False, False)),
    "bfloat16, channels_last": (AMP | LAST, None),
    "bfloat16, compile": (AMP | {"compile": True}, None),
}
BOTH = ["float32"] if ON_CPU else ["bfloat16", "float32"]
ALONE = ["bfloat16, channels_last"] if ON_CPU else ["bfloat16, channels_last", "bfloat16, compile"]
"""What mmengine has not. It has torch.compile, and compiles in every iteration: for longer than all else here
takes (docs/gpu-options.md)."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a list as long as the recipe's: mmengine sleeps two seconds whenever one begins again."""
    return start.endless_list(work.make_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[start.Peers]:
    with start.Peers(tmp_path_factory.mktemp("peers") / "log") as found:
        yield found


def make_run(path: Path, data: Path, option: str) -> Run:
    settings, tf32 = OPTIONS[option]
    hook = {"type": "Measure", "result": str(path / "result.json"), "warm_up": WARM_UP}
    hook |= {"counted": COUNTED, "tf32": tf32}
    begin = WARM_UP + COUNTED + PROFILED + 1
    # What a save takes does not depend on the option.
    several = work.by_iteration(begin + EVERY * SAVES, EVERY, begin)
    run = start.make_run(
        path, data, RECIPE, hook, **(several if option == FIRST else work.by_iteration(begin)) | settings
    )
    return work.share_kernels(run) if "compile" in settings else run


def by_a_fork(run: Run) -> None:
    """Of a rank without its supervisor, its imports done before."""
    assert tiny.start(run, timeout=300) == [0], tiny.log_of(run, 1)


def figures(option: str, side: str, run: Run, show: Show) -> float:
    """Shows what a training's hook has written, and forgets the training. Returns the seconds of a step."""
    one = json.loads((run.path / "result.json").read_text())
    start.delete(run)
    found = [f"{BATCH / one['step']:.3g} images/s", f"{one['step'] * 1000:.3g} ms a step"]
    if one["busy"] is not None:
        found += [f"GPU busy {one['busy']:.0%}", f"peak {one['peak'] / 2**30:.2f} GiB"]
    found.append(f"waits for data {one['wait']:.1%} ({one['waited']} of {COUNTED} steps > 1 ms)")
    if stalls := [seconds for _, seconds in one["saves"][1:]]:
        found.append(f"save stall {statistics.median(stalls):.3f} s")
    if "first" in one:
        found.append(f"first step after {one['first']:.1f} s")
    show(f"training, {option}, {side}", ", ".join(found))
    return float(one["step"])


def against(option: str, ours: float, peer: float, show: Show) -> None:
    show(f"training, {option}, step against mmengine", f"{ours / peer:.3f}× (goal ≤ 1.00)")


def test_a_step(data: Path, tmp_path: Path, show: Show, request: pytest.FixtureRequest) -> None:
    """By the whole command of either side, from its start on."""
    ours, theirs = (make_run(tmp_path / side, data, FIRST) for side in ("ours", "theirs"))
    start.wait(ours, start.start("ours", ours))
    seconds = figures(FIRST, "Baton", ours, show)
    peers = request.getfixturevalue("peers")  # starts the command
    peers.train(theirs)
    against(FIRST, seconds, figures(FIRST, "mmengine", theirs, show), show)


@pytest.mark.parametrize("option", BOTH)
def test_a_step_with(option: str, peers: start.Peers, data: Path, tmp_path: Path, show: Show) -> None:
    ours, theirs = (make_run(tmp_path / side, data, option) for side in ("ours", "theirs"))
    by_a_fork(ours)
    seconds = figures(option, "Baton", ours, show)
    peers.train(theirs)
    against(option, seconds, figures(option, "mmengine", theirs, show), show)


def test_an_evaluation(show: Show) -> None:
    """That both sides find the same figures, `whole_test` looks itself."""
    images, workers = (6, 0) if ON_CPU else (200, 4)
    config = "configs/demo.py" if ON_CPU else "configs/upernet_r50_voc-aug_512x512_epoch-200.py"
    with evaluation.whole_test(config, images, 1, workers, forked=True) as (ours, peer, details, run):
        ours("--batch", str(AT_ONCE))
        batched = confusion(run.path / "ours")
        ours()
        one_by_one = confusion(run.path / "ours")
        peer()
        (together, mine), (theirs,) = details["seconds_rank_0"]["ours"], details["seconds_rank_0"]["peer"]
    sides = {"Baton": mine, f"Baton, {AT_ONCE} at once": together, "mmseg": theirs}
    theirs["loading"] = theirs["all"] - sum(theirs[key] for key in ("model", "counting", "collecting"))
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


@pytest.mark.parametrize("option", ALONE)
def test_a_step_of_ours_with(option: str, data: Path, tmp_path: Path, show: Show) -> None:
    run = make_run(tmp_path / "ours", data, option)
    by_a_fork(run)
    figures(option, "Baton", run, show)
