"""All 681 configs of the model zoo at submission: each passes, or is refused with what it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.mmseg import compat
from jobs.run.errors import UserError
from launch.submit import configs, literals, snapshot
from launch.submit.literals import UNKNOWN
from tests import zoo


def test_the_zoo_is_whole() -> None:
    assert len(zoo.all_configs()) == 681
    assert len(zoo.families()) == 53


@pytest.mark.parametrize("family", zoo.families())
def test_every_config_of_a_family_passes_or_is_refused_with_the_reason(family: str) -> None:
    for name in zoo.families()[family]:
        config = configs.locate(f"mmseg::{name}")
        # By its path, from wherever one is, it is the same.
        assert configs.locate(os.path.relpath(zoo.FOLDER / name)) == config.resolve()
        if words := zoo.refusal(name):
            with pytest.raises(UserError) as error:
                configs.check(config)
            assert words in str(error.value)
            assert name in str(error.value)
            assert "\n" not in str(error.value)
        else:
            chain = configs.check(config)
            assert chain.complete
            assert chain.scope == "mmseg"
            # Nothing is left to guess of what a submission asks: the data and the weights.
            assert not list(unknown(chain.values["model"]))
            assert configs.data_roots(chain)


def test_the_table_of_the_models_is_what_make_zoo_found() -> None:
    assert zoo.TABLE.read_text() == zoo.table(json.loads(zoo.RESULTS.read_text()))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            "mmseg::upernet/upernet_r50_4xb4-20k_voc12aug-512x512.py",
            "--dataset voc --weights open-mmlab://resnet50_v1c",
        ),
        (
            "mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py",
            "--dataset cityscapes --weights open-mmlab://resnet50_v1c",
        ),
        ("mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py", "--dataset cityscapes --no-weights"),
        (
            "mmseg::setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512.py",
            "--dataset ade20k --weights pretrain/vit_large_p16.pth",
        ),
    ],
)
def test_a_preparation_for_a_config_fetches_what_that_needs(
    config: str, expected: str, tmp_path: Path
) -> None:
    command = [sys.executable, "launch/prepare.py", "--for-config", config, "--dry-run", "--cluster", "slurm"]
    place = os.environ | {"BATON_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        command, cwd=configs.CHECKOUT, env=place, capture_output=True, text=True, timeout=60, check=True
    )
    assert f" {expected} " in done.stdout.replace("'", "").replace("\n", " ")


def unknown(node: object) -> list[object]:
    if isinstance(node, dict):
        return [found for one in node.values() for found in unknown(one)]
    if isinstance(node, list):
        return [found for one in node for found in unknown(one)]
    return [node] if node is UNKNOWN else []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (
            "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x51.py",
            "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        ),
        (
            "mmseg::segformer_mit-b0_8xb2-160k_ade20k-512x512",
            "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        ),
        (
            "segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
            "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        ),
        ("configs/dem.py", "configs/demo.py"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(
    typed: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(configs.CHECKOUT)
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        configs.locate(typed)


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="nonsuch is not installed in this environment"):
        configs.locate("nonsuch::a/b.py")


SEGFORMER = "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model = dict(backbone=dict(type='mmpretrain.ConvNeXt'))",
            "ConvNeXt needs mmpretrain, which is not",
        ),
        ("model = dict(backbone=dict(type='TIMMBackbone'))", "TIMMBackbone needs timm, which is not"),
        ("custom_imports = dict(imports=['my_net'])", "my_net is neither beside the config nor installed"),
        ("custom_imports = dict(imports=['mmseg.models.mine'])", "which the installed mmseg does not have"),
        (
            "model = dict(pretrained=dict(a=1))\nmodel['backbone'] = dict(init_cfg=1)",
            "model.pretrained is a dict here but not in its base",
        ),
        (
            "model = dict(pretrained=dict())\nmodel['backbone'] = dict(init_cfg=1)",
            "model.pretrained is a dict here but not in its base",
        ),
        ("runner_type = 'MyRunner'", "runner_type MyRunner would not be used"),
        ("_base_ += ['nonsuch::x.py']", "line 1: its base comes from nonsuch, which is not installed"),
        ("train_dataloader = dict(sampler=dict(type='ClassAwareSampler'))", "ClassAwareSampler cannot be"),
        ("train_dataloader = dict(batch_sampler=dict(type='X'))", "batch_sampler cannot be resumed"),
        ("train_cfg = dict(type='MyLoop')", "train_cfg.type MyLoop cannot be resumed exactly"),
        ("default_hooks = dict(checkpoint=dict(save_optimizer=False))", "save_optimizer = False is not"),
        ("default_hooks = dict(checkpoint=dict(intervall=1))", "did you mean interval?"),
        ("baton = dict(save_second=1)", "unknown setting baton.save_second: did you mean save_seconds?"),
        ("baton = dict(save_seconds=-1)", "baton.save_seconds is a number of seconds, 0 or more, not -1"),
        ("baton = dict(deterministic='no')", "baton.deterministic is True or False, not 'no'"),
        ("resume = True", "runs always resume by themselves"),
        ("model = dict(type='DepthEstimator')", "its model estimates depth"),
        (
            "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
            "dict(type='mmseg.PackSegInputs')]))",
            "the pipeline in its test_dataloader loads no annotations",
        ),
        (
            "model = dict(type='MultimodalEncoderDecoder', pretrained=None)",
            "mmseg cannot begin SAN without CLIP's weights",
        ),
    ],
)
def test_what_no_job_could_run_is_refused_at_submission(text: str, said: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    base, text = (["nonsuch::x.py"], "") if "nonsuch" in text else ([SEGFORMER], text)
    mine.write_text(f"_base_ = {base}\n{text}\n")
    with pytest.raises(UserError) as error:
        configs.check(mine)
    assert said in str(error.value)
    assert str(mine) in str(error.value)


def test_what_is_installed_is_not_asked_where_the_jobs_have_another_environment(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(f"_base_ = '{SEGFORMER}'\nmodel = dict(backbone=dict(type='mmpretrain.ConvNeXt'))\n")
    assert configs.check(mine, here=False).complete
    mine.write_text("_base_ = 'nonsuch::x.py'\n")
    assert not configs.check(mine, here=False).complete


def test_the_weights_of_a_config_are_found() -> None:
    def of(name: str) -> list[str]:
        return configs.weights(configs.check(configs.locate(f"mmseg::{name}")))

    assert of("upernet/upernet_r50_4xb4-20k_voc12aug-512x512.py") == ["open-mmlab://resnet50_v1c"]
    assert of("mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py") == ["mmcls://mobilenet_v2"]
    (mit,) = of("segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py")
    assert mit.startswith("https://")
    assert mit.endswith("mit_b0_20220624-7e0fe6dd.pth")
    (clip,) = of("san/san-vit-b16_coco-stuff164k-640x640.py")
    assert clip.endswith("clip_vit-base-patch16-224_3rdparty-d08f8887.pth")


def test_a_config_in_pure_python_is_read_as_the_program_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(
        "from mmseg.models import EncoderDecoder, FCNHead\n"
        "model = dict(type=EncoderDecoder, decode_head=dict(type=FCNHead, channels=8))\n"
        "train_dataloader = dict(dataset=dict(data_root='data/a'))\ntrain_cfg = dict(by_epoch=True)\n"
    )
    (tmp_path / "mine.py").write_text(
        "from mmengine.config import read_base\nfrom mmengine.model import PretrainedInit\n"
        "with read_base():\n    from .base import *\n"
        "model.update(dict(backbone=dict(init_cfg=dict(type=PretrainedInit, checkpoint='/w.pth'))))\n"
        "model['decode_head']['channels'] *= 2\n"
        "val_dataloader = dict(dataset=dict(data_root='data/b'))\nval_evaluator = dict()\n"
    )
    chain = configs.check(tmp_path / "mine.py")
    assert chain.values["model"]["type"] == "mmseg.models.EncoderDecoder"
    assert chain.values["model"]["decode_head"] == {"type": "mmseg.models.FCNHead", "channels": 16}
    assert configs.weights(chain) == ["/w.pth"]
    assert set(configs.data_roots(chain)) == {"data/a", "data/b"}


@pytest.mark.parametrize(
    "call", ["FCNHead(channels=8)", "nn.init.zeros_(1)", "[far.make() for _ in range(2)]"]
)
def test_a_config_that_calls_what_it_imports_is_refused(call: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    text = (
        "from copy import deepcopy\nfrom mmengine.config import read_base\nfrom mmseg.models import FCNHead\n"
        "from torch import nn\nimport far.away\nmodel = dict(decode_head=dict(type=FCNHead))\n"
        "def unused():\n    return FCNHead()\nmodel = deepcopy(model)\n"
        "from mmseg.models import PSPHead as other\nother = dict(a=1)\nother.update(b=[lambda: FCNHead()])\n"
        "train_dataloader = train_cfg = val_dataloader = val_evaluator = dict()\n"
    )
    mine.write_text(text)
    assert configs.check(mine).segments
    mine.write_text(f"{text}x = {call}\n")
    name = call.strip("[").partition("(")[0]
    with pytest.raises(
        UserError, match=rf"mine\.py, line 14: a config cannot call the imported {re.escape(name)}:"
    ):
        configs.check(mine)
    # With `_base_` first, mmengine runs it as it stands.
    mine.write_text(f"_base_ = '{SEGFORMER}'\n{text}x = {call}\n")
    assert configs.check(mine).segments


def test_bases_may_be_json_and_yaml(tmp_path: Path) -> None:
    compat.prepare()
    from jobs.mmseg.config import read

    (tmp_path / "data.yaml").write_text(
        "_base_: ./data.json\ntrain_dataloader:\n  batch_size: 2\n  dataset: {data_root: data/mine}\n"
    )
    (tmp_path / "data.json").write_text('{"val_dataloader": {"shuffle": true, "seed": null}, "n": [1.5]}')
    mine = tmp_path / "mine.py"
    mine.write_text(f"_base_ = ['./data.yaml']\nmodel = dict(decode_head=dict())\n{PLAIN}")
    chain = configs.check(mine)
    assert set(configs.data_roots(chain)) == {"data/mine"}
    (tmp_path / "code").mkdir()
    real = read(tmp_path / "code" / snapshot.place(tmp_path / "code", chain)).to_dict()
    assert {key: value for key, value in real.items() if key in chain.values} == chain.values
    for text, said in (("{", "cannot be read as a config"), ("[1]", "it has no names with values")):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(UserError, match=said):
            configs.check(mine)


def test_an_override_in_a_list_is_followed_as_mmengine_follows_it(tmp_path: Path) -> None:
    compat.prepare()
    from jobs.mmseg.config import read

    mine = tmp_path / "mine.py"
    mine.write_text(
        f"{PLAIN}model = dict(decode_head=dict())\nval_dataloader = dict()\nsizes = [1, 2]\nn = 5\n"
        "train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[\n"
        "dict(data_root='data/a'), dict(data_root='data/b', kept=dict(x=1)), dict(data_root='data/c')]))\n"
    )
    where = "train_dataloader.dataset.datasets"
    chain = configs.check(mine, {f"{where}.1.data_root": "data/d"})
    assert set(configs.data_roots(chain)) == {"data/a", "data/d", "data/c"}
    wrong = (f"{where}.3.data_root", f"{where}.x.data_root", f"{where}.0", "n.x", "sizes.1")
    for key in (f"{where}.1.data_root", f"{where}.1.kept.y", "model.decode_head.a", *wrong):
        cfg = read(mine)
        try:
            cfg.merge_from_dict({key: 7})
        except (KeyError, TypeError, AttributeError):
            with pytest.raises(UserError, match=f"--set {key}: the config's .* is not a dict, nor a list of"):
                configs.check(mine, {key: 7})
            assert key in wrong
        else:
            assert configs.check(mine, {key: 7}).values == cfg.to_dict()


PLAIN = "default_scope = 'mmseg'\ntrain_cfg = dict(by_epoch=True)\nval_evaluator = dict(type='IoUMetric')\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = [1, -2] * 2 + [3.5 / 2]", [1, -2, 1, -2, 1.75]),
        ("y = dict(a=[1])\nx = dict(**y, b=2)\nx['a'].append(4)", {"a": [1, 4], "b": 2}),
        ("x = {f'a.{i}': int(i * 1.5) for i in range(2)}", {"a.0": 0, "a.1": 1}),
        ("x = [dict(c=i, s=sum([i, 1])) for i in range(2)]", [{"c": 0, "s": 1}, {"c": 1, "s": 2}]),
        ("x = _base_.model.head\nx.n = 3", {"n": 3}),
        ("x, y = 1, 2\nx += y", 3),
        ("if True:\n    x = 1", UNKNOWN),
        ("x = 1\nfor x in [2]:\n    pass", UNKNOWN),
        ("x = dict()\nsorted(x).update(a=1)\nx.clear()", UNKNOWN),
        ("import os\nx = dict(type=os.PathLike, root=os.sep)", {"type": "os.PathLike", "root": UNKNOWN}),
        ("x = [0] * 10**9", UNKNOWN),
        ("x = 1 / 0", UNKNOWN),
    ],
)
def test_what_a_syntax_tree_says(text: str, expected: object) -> None:
    import ast

    found = literals.values(ast.parse(text), [{"model": {"head": {"n": 1}}}])
    assert found.get("x") == expected
