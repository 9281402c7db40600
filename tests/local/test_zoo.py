"""Ten different models of the zoo, small: trained, preempted, resumed bit for bit, evaluated, used. And a
config in pure Python. `make zoo` does all families (tests/zoo.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.catalog import pretrained
from jobs.engine.session import Session
from jobs.mmseg import compat
from jobs.mmseg.model import weights_of
from jobs.run.directory import Request, Run
from launch.submit import configs, snapshot
from launch.submit.literals import UNKNOWN
from tests import zoo
from tests.support import tiny

pytestmark = pytest.mark.slow

FAMILIES = {
    "bisenetv2": 1, "cgnet": 1, "ddrnet": 2, "erfnet": 1, "fastscnn": 2,
    "icnet": 1, "pidnet": 1, "segformer": 2, "segmenter": 1, "segnext": 1,
}  # fmt: skip
"""Cheap ones, each unlike the others, and on how many ranks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"), train=8, val=2)


@pytest.mark.parametrize(("family", "ranks"), FAMILIES.items())
def test_a_model_of_the_zoo(family: str, ranks: int, data: Path, tmp_path: Path) -> None:
    assert tuple(zoo.play(zoo.member(family), tmp_path, data, ranks)) == zoo.STAGES


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's snapshot, into which one config after the other is taken."""
    place = tmp_path_factory.mktemp("run")
    snapshot.take(place / "code", place / "data")
    return place / "code"


def without_marks(node: Any) -> Any:
    """A copy without `_delete_` and `_scope_`, which are mmengine's own and no part of what a config says."""
    if isinstance(node, dict):
        return {key: without_marks(one) for key, one in node.items() if key not in ("_delete_", "_scope_")}
    return [without_marks(one) for one in node] if isinstance(node, list) else node


@pytest.mark.parametrize("family", zoo.families())
def test_a_job_reads_what_the_submission_read(family: str, code: Path, tmp_path: Path) -> None:
    """Every config of the family, inherited by one of the user's, up to where the model would be built."""
    compat.prepare()
    from jobs.mmseg import config

    mine = tmp_path / "mine.py"
    for name in zoo.families()[family]:
        if zoo.refusal(name):
            continue
        mine.write_text(f"_base_ = 'mmseg::{name}'\n")
        chain = configs.check(mine)
        request = Request(name="x", config=snapshot.place(code, chain), data_root="/data", created="")
        session = Session(Run(code.parent), request, 1, 2, 1, 2, start=1, job=None)
        cfg = config.resolve(session)
        content = {key: value for key, value in cfg.to_dict().items() if key in chain.values}
        content["visualizer"] = chain.values["visualizer"]  # gets TensorBoard
        assert list(disagreements(without_marks(chain.values), content)) == []
        found = [holder[key] for holder, key, _ in pretrained.references(pretrained.parts(cfg))]
        assert set(found) == set(configs.weights(chain))
        config.saving(cfg)
        assert config.prepare(cfg, session, global_batch=8).train_cfg.type.startswith("Exact")


def disagreements(said: object, real: object, where: str = "") -> Iterator[str]:
    """Where a value that is known at submission is not what mmengine makes of the config."""
    if said is UNKNOWN:
        return
    if isinstance(said, dict) and isinstance(real, dict):
        for key in said.keys() | real.keys():
            yield from disagreements(said.get(key, "absent"), real.get(key, "absent"), f"{where}.{key}")
    elif isinstance(said, list) and isinstance(real, (list, tuple)) and len(said) == len(real):
        for index, (one, other) in enumerate(zip(said, real, strict=True)):
            yield from disagreements(one, other, f"{where}[{index}]")
    elif said != real:
        yield f"{where}: {said!r}, really {real!r}"


def test_a_config_in_pure_python(data: Path, tmp_path: Path) -> None:
    compat.prepare()
    from mmseg.models.backbones import ResNetV1c

    mine = configs.CHECKOUT / "tests" / "support" / "configs" / "pure" / "mine.py"
    assert configs.weights(configs.check(mine)) == ["pure.pth"]
    torch.manual_seed(1)
    backbone = ResNetV1c(
        depth=18, base_channels=8, stem_channels=8, num_stages=2, out_indices=(0, 1), strides=(1, 2),
        dilations=(1, 1),
    )  # fmt: skip
    (data / "pretrained").mkdir()
    torch.save(backbone.state_dict(), data / "pretrained" / "pure.pth")
    whole, preempted = (
        zoo.placed(tmp_path / which, mine, data, **zoo.INTERRUPTIBLE) for which in ("whole", "preempted")
    )
    assert tuple(zoo.stages(whole, preempted, tmp_path, data)) == zoo.STAGES
    # The head of one's own, and the weights that the config begins with, a little trained.
    trained = weights_of(next(iter(whole.checkpoints.glob("*.pth"))))
    first = backbone.state_dict()["stem.0.weight"]
    assert torch.nn.functional.cosine_similarity(trained["backbone.stem.0.weight"], first, 0).min() > 0.9
    text = whole.config.read_text()
    assert "type='pure_head.Head'" in text
    assert "default_scope = 'mmseg'" in text
