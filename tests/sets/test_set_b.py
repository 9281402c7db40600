"""The maintained forks (set B) train, are interrupted, resume, evaluate and segment as set A does, and
their transforms have the same fast stand-ins."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.run.directory import Run
from jobs.run.exit_codes import RESUME
from launch.submit import creation as requests
from tests.support import tiny
from tests.unit.test_transforms import (
    assert_equal_samples,
    test_images_of_any_number_of_channels_are_normalised,
)

__all__ = ["test_images_of_any_number_of_channels_are_normalised"]  # which it was not

pytestmark = pytest.mark.slow

SETTINGS = {
    "train_cfg__max_epochs": 2,
    "param_scheduler": [{"type": "PolyLR", "eta_min": 1e-4, "begin": 0, "end": 2, "by_epoch": True}],
    "train_dataloader__batch_size": 2,
    "train_dataloader__num_workers": 1,
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}, {"type": "EMAHook", "momentum": 0.1}],
}
TRAIN, VAL = 14, 3  # 4 steps an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"), TRAIN, VAL)


def run_to_end(run: Run, plan: dict | None = None) -> None:
    if plan:
        assert tiny.start_commands(run, 2, plan) == [RESUME] * 2, tiny.log_of(run, 1)
    codes = tiny.start_commands(run, 2)
    assert codes == [0, 0], tiny.log_of(run, len(list(run.job.glob("start-*"))))


def test_this_is_set_b() -> None:
    """In the versions of its lock, and a run says so."""
    lock = (tiny.ROOT / "env" / "lock-b.txt").read_text()
    locked = dict(re.findall(r"^(onedl-[\w-]+)==(\S+)", lock, re.MULTILINE))
    assert set(locked) == {"onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv"}
    assert {name: importlib.metadata.version(name) for name in locked} == locked
    assert {key: value for key, value in requests.versions().items() if key in locked} == locked


def test_two_ranks_resume_exactly(data: Path, tmp_path: Path) -> None:
    whole = tiny.make_run(tmp_path / "whole", data, **SETTINGS)
    run_to_end(whole)
    interrupted = tiny.make_run(tmp_path / "interrupted", data, **SETTINGS)
    run_to_end(interrupted, {"at": "step", "step": 5, "signal": "SIGUSR2", "rank": 1})

    expected = tiny.final_state(whole)
    assert expected["step"][:2] == (8, 2)
    assert expected["metrics"]["val", 8]["mIoU"] > 0
    assert tiny.differences(tiny.final_state(interrupted), expected) == []
    for run in (whole, interrupted):
        assert {path.name for path in run.checkpoints.glob("*.pth")} >= {"epoch_1.pth", "epoch_2.pth"}
    evaluate_and_segment(whole)


def test_the_fast_transforms_make_the_same_samples() -> None:
    assert_equal_samples(range(150))


def evaluate_and_segment(run: Run) -> None:
    def job(*arguments: str) -> None:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=run.code, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    job("jobs.evaluate", str(run.path), "--checkpoint", "last", "--pictures", "1")
    (figures,) = run.eval.glob("*/metrics.json")
    # What the last validation of the training has found, by mmengine's own loop.
    validated = tiny.metrics(run)["val", 8]
    assert json.loads(figures.read_text())["mIoU"] == pytest.approx(validated["mIoU"], abs=0.01)
    image = next((run.code / "data/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    job("jobs.infer", str(run.path), "--out", str(run.path / "masks"), "--", str(image))
    assert Image.open(run.path / "masks" / f"{image.stem}.png").size == Image.open(image).size
