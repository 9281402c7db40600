"""Ten different models of the zoo, small: trained, preempted, resumed bit for bit, evaluated, used. And a
config in pure Python. `make zoo` does all families (tests/zoo.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import compat
from jobs.model import weights_of
from launch import configs
from tests import tiny, zoo

pytestmark = pytest.mark.slow

FAMILIES = {
    "bisenetv2": 1, "cgnet": 1, "ddrnet": 2, "erfnet": 1, "fastscnn": 2,
    "icnet": 1, "mobilenet_v3": 1, "pidnet": 1, "segformer": 2, "segnext": 1,
}  # fmt: skip
"""Cheap ones, each unlike the others, and on how many ranks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"), train=8, val=2)


@pytest.mark.parametrize(("family", "ranks"), FAMILIES.items())
def test_a_model_of_the_zoo(family: str, ranks: int, data: Path, tmp_path: Path) -> None:
    assert tuple(zoo.play(zoo.member(family), tmp_path, data, ranks)) == zoo.STAGES


def test_a_config_in_pure_python(data: Path, tmp_path: Path) -> None:
    compat.prepare()
    from mmseg.models.backbones import ResNetV1c

    mine = configs.CHECKOUT / "tests" / "configs" / "pure" / "mine.py"
    assert configs.weights(configs.check(mine)) == ["pure.pth"]
    torch.manual_seed(1)
    backbone = ResNetV1c(
        depth=18, base_channels=8, stem_channels=8, num_stages=2, out_indices=(0, 1), strides=(1, 2),
        dilations=(1, 1),
    )  # fmt: skip
    (data / "pretrained").mkdir()
    torch.save(backbone.state_dict(), data / "pretrained" / "pure.pth")
    runs = [zoo.placed(tmp_path / which, mine, data, **zoo.INTERRUPTIBLE) for which in ("whole", "preempted")]
    assert tuple(zoo.stages(*runs, tmp_path, data)) == zoo.STAGES
    # The head of one's own, and the weights that the config begins with, a little trained.
    trained = weights_of(next(iter(runs[0].checkpoints.glob("*.pth"))))
    first = backbone.state_dict()["stem.0.weight"]
    assert torch.nn.functional.cosine_similarity(trained["backbone.stem.0.weight"], first, 0).min() > 0.9
    text = runs[0].config.read_text()
    assert "type='pure_head.Head'" in text
    assert "default_scope = 'mmseg'" in text
