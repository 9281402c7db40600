"""The first start of a training: weights from a file, the learning rate from the world size, typos."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from jobs.run.exit_codes import FINISHED, RESUME, USER_ERROR
from tests.support import tiny

pytestmark = pytest.mark.slow

ONE = {
    "train_cfg__max_epochs": 1,
    "val_cfg": None,
    "val_dataloader": None,
    "val_evaluator": None,
    "default_hooks__checkpoint__save_best": None,
}


def place_weights(path: Path, kind: str) -> None:
    """A file with weights of the tiny config's backbone, or of one with another stem."""
    import torch

    from jobs.mmseg import compat

    compat.prepare()
    from mmseg.models import backbones

    torch.manual_seed(7)
    stem = {"stem_channels": 8} if kind == "ResNetV1c" else {}
    model = getattr(backbones, kind)(depth=18, base_channels=8, norm_cfg={"type": "BN"}, **stem)
    path.parent.mkdir(exist_ok=True)
    torch.save({key: torch.rand_like(value.float()) for key, value in model.state_dict().items()}, path)


def test_weights_with_another_stem_end_the_start(data: Path, tmp_path: Path) -> None:
    place_weights(data / "pretrained" / "other.pth", "ResNet")
    run = tiny.make_run(tmp_path / "run", data, model__pretrained="data/pretrained/other.pth", **ONE)
    assert tiny.start(run) == [USER_ERROR]
    log = tiny.log_of(run, 1)
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "stem.0.weight" in line
    assert "conv1.weight" in line


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_backbone_begins_with_its_file_and_the_rate_follows_the_global_batch(
    ranks: int, data: Path, tmp_path: Path
) -> None:
    from jobs.engine import checkpoints
    from jobs.mmseg import compat

    place_weights(data / "pretrained" / "mine.pth", "ResNetV1c")
    settings: dict[str, Any] = ONE | {
        "model__pretrained": "data/pretrained/mine.pth",
        "auto_scale_lr": {"enable": True, "base_batch_size": 8},
        # The rate is told, but no weight follows it: what comes out is what went in.
        "optim_wrapper__paramwise_cfg": {
            "custom_keys": {
                "backbone": {"lr_mult": 0.0},
                "heads": {"lr_mult": 10.0},
                "ape": {"momentum": 0},
            }
        },
    }
    run = tiny.make_run(tmp_path / "run", data, **settings)
    assert tiny.start(run, ranks) == [FINISHED] * ranks, tiny.log_of(run, 1)
    # 4 images a rank; 0.01 is for 8.
    assert tiny.metrics(run)["train", 1]["base_lr"] == pytest.approx(0.01 * 4 * ranks / 8)
    said = f"learning rate × {ranks / 2:g}: global batch {4 * ranks}, made for 8 (auto_scale_lr)"
    log = (run.job / "1_0_log.out").read_text()
    assert said in log
    told = "optim_wrapper.paramwise_cfg.custom_keys['heads'] has no effect: it is in the name of no parameter"
    assert [line for line in log.splitlines() if "has no effect" in line] == [told]
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None
    trained, file = compat.load(newest.path)["state_dict"], compat.load(data / "pretrained" / "mine.pth")
    kept = [key for key in file if key.endswith("weight") and f"backbone.{key}" in trained]
    assert "stem.0.weight" in kept
    assert tiny.differences({k: trained[f"backbone.{k}"] for k in kept}, {k: file[k] for k in kept}) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"train_cfg__max_epoch": 3}, "unexpected keyword argument 'max_epoch'"),
        ({"train_dataloader__num_worker": 3}, "unexpected keyword argument 'num_worker'"),
        ({"model__decode_head__chanels": 3}, "unexpected keyword argument 'chanels'"),
        ({"optim_wrapper__paramwise_cfg": {"norm_decay_mult": 0.0}}, "base_wd should not be None"),
        # Tuples are wanted; mmengine asserts so without a word.
        ({"train_cfg__dynamic_intervals": [[2, 1]]}, "is_list_of(dynamic_interval_list, tuple)"),
    ],
)
def test_an_argument_that_nothing_takes_is_the_users_mistake(
    setting: dict, said: str, data: Path, tmp_path: Path
) -> None:
    run = tiny.make_run(tmp_path / "run", data, **ONE | setting)
    assert tiny.start(run) == [USER_ERROR], tiny.log_of(run, 1)
    log = tiny.log_of(run, 1)
    assert "Traceback" not in log
    assert said in next(line for line in log.splitlines() if line.startswith("error: "))


def test_more_ranks_than_the_model_can_be_trained_on_are_refused(data: Path, tmp_path: Path) -> None:
    """The global batch of four was two samples a rank, and is one, of which a pooled batch norm learns
    nothing: torch would say so in every start."""
    pooling = {"_delete_": True, "type": "PSPHead", "in_channels": 16, "in_index": 1, "channels": 8}
    run = tiny.make_run(
        tmp_path / "run",
        data,
        custom_hooks=[{"type": "Interrupt"}],
        custom_imports={"imports": ["tests.interrupting"], "allow_failed_imports": False},
        train_dataloader__batch_size=2,
        train_dataloader__drop_last=True,
        model__decode_head=pooling | {"num_classes": 21, "norm_cfg": {"type": "BN"}},
    )
    assert tiny.start(run, 2, {"at": "step", "step": 2, "signal": "SIGUSR2"}) == [RESUME] * 2
    assert USER_ERROR in tiny.start(run, 4)
    log = (run.job / "2_0_log.out").read_text()
    assert "Traceback" not in log
    assert re.search(r"^error: a batch of one sample gives .* on 4 ranks give one; use fewer GPUs", log, re.M)
