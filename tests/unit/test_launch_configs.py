"""Configs seen from the login node, and the snapshot that a run takes of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.catalog import sanity
from jobs.run.errors import UserError
from launch.submit import configs, snapshot

SEG = (
    "model = dict(type='EncoderDecoder', decode_head=dict())\ntrain_dataloader = dict()\ntrain_cfg = dict()\n"
    "val_dataloader = dict()\nval_evaluator = dict()\n"
)


NOT_PYTHON = ": not Python" if sys.version_info >= (3, 11, 4) else " cannot be read as a config"
"""What ast.parse raises for a NUL byte was a ValueError before."""

TEST = "model = dict(type='EncoderDecoder', decode_head=dict(), test_cfg={})\n"
PARAMWISE = "optim_wrapper = dict(optimizer=dict(type='SGD', lr=1), paramwise_cfg=dict({}))\n"


@pytest.mark.parametrize("config", sorted((configs.CHECKOUT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_the_configs_of_the_checkout_pass(config: Path) -> None:
    chain = configs.check(config)
    assert chain.complete
    assert chain.scope == "mmseg"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "set `model`"),
        ("model = dict(type='FasterRCNN')\ntrain_dataloader = 1\ntrain_cfg = 1\n", "has no decode_head"),
        ("default_scope = 'mmdet'\n" + SEG, "its default_scope is 'mmdet'"),
        ("model = dict(decode_head=dict())\n", "set train_dataloader and train_cfg"),
        ("model = (\n", "line 1: not Python"),
        ("_base_ = './gone.py'\n", "which"),
        ("_base_ = '/etc/base.py'\n", "there is no config /etc/base.py, which"),
        ("_base_ = './bad.py'\n", "inherits from itself"),
        (
            "_base_ = 'mmseg::upernet/upernet_r50_4xb4-20k_voc12aug-512x51.py'\n",
            "did you mean mmseg::upernet",
        ),
        ("_base_ = 'mmseg::upernett'\n", "line 1: mmseg has no config upernett"),
        (SEG + "val_dataloader = None\n", "set test_dataloader or val_dataloader; add it, or train with"),
        (SEG.replace("val_evaluator", "x"), "set test_evaluator or val_evaluator"),
        ("_base_ = [name for name in ()]\n", "must be written out"),
        ("\ufeffx = 1\n", "line 1: not Python: invalid non-printable character U+FEFF: save it as UTF-8"),
        ("x = '\0'\n", f"bad.py{NOT_PYTHON}: source code string cannot contain null bytes"),
        (
            "_base_ = './a.py'\nwith read_base():\n    from .a import *\n",
            "has both _base_ and `with read_base():`",
        ),
        (SEG + "custom_imports = ['mine']\n", "write custom_imports=dict(imports=[…])"),
        (SEG + "train_dataloader = dict(batch_size=0)\n", "batch_size is 0: it must be a whole number"),
        (SEG + "auto_scale_lr = dict(enable=True)\n", "base_batch_size is None: it must be a number"),
        (
            SEG + "val_evaluator = dict(type='IoUMetric', iou_metric=['mDice'])\n",
            "val_evaluator: IoUMetric has no option 'iou_metric': did you mean iou_metrics?",
        ),
        (SEG + "test_evaluator = [dict(type='IoUMetric', x=1)]\n", "no option 'x', and would ignore it"),
        (
            SEG + PARAMWISE.format("custom_key={}"),
            "paramwise_cfg has no option 'custom_key': did you mean custom_",
        ),
        (
            SEG + PARAMWISE.format("custom_keys=dict(head=dict(lr_multi=9.0, betas=(0, 1)))"),
            "custom_keys['head'] has no option 'lr_multi': did you mean lr_mult?",
        ),
        (
            SEG + "auto_scale_lr = dict(enabled=False)\n",
            "auto_scale_lr has no option 'enabled': did you mean",
        ),
        (
            SEG + "env_cfg = dict(cudnn_benchmrk=True)\n",
            "env_cfg has no option 'cudnn_benchmrk': did you mean",
        ),
        (
            SEG + TEST.format("dict(mode='whole', crop_sze=(8, 8))"),
            "model.test_cfg has no option 'crop_sze': did you mean crop_size?",
        ),
        (
            SEG
            + "train_cfg = dict(type='IterBasedTrainLoop')\nparam_scheduler = [dict(type='PolyLR', end=9)]\n",
            "param_scheduler: PolyLR counts epochs, and an IterBasedTrainLoop has none",
        ),
        (SEG + TEST.format("None"), "model.test_cfg has no mode"),
        (SEG + TEST.format("dict(mode='slid')"), "model.test_cfg.mode is 'slid': use 'whole' or 'slide'"),
        (SEG + TEST.format("dict(mode='slide', crop_size=8)"), "needs crop_size as two numbers, not 8"),
    ],
)
def test_what_is_no_mmsegmentation_config_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        configs.check(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "crop", "told"),
    [("(8, 8)", "(8, 8)", False), ("(8, 9)", "8", True), ("(8, 8)", "(16, 8)", False), ("f()", "8", False)],
)
def test_what_is_padded_for_nothing_is_told(size: str, crop: str, told: bool, tmp_path: Path) -> None:
    file = tmp_path / "padded.py"
    file.write_text(
        f"model = dict(type='EncoderDecoder', decode_head=dict(), data_preprocessor=dict(size={size}))\n"
        f"steps = [dict(type='RandomCrop', crop_size={crop})]\n"
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=steps)))\n"
        "train_cfg = dict()\nval_dataloader = dict()\nval_evaluator = dict()\n"
    )
    found = sanity.hints(configs.check(file).values)
    assert ["padding" in hint for hint in found] == [True] * told


@pytest.mark.parametrize(
    "text",
    [
        TEST.format("dict(mode='slide', crop_size=open(0), stride=(2, 2))"),  # only running it would tell
        "val_evaluator = dict(_delete_=True, type='IoUMetric')\n" + PARAMWISE.format("_delete_=True"),
        TEST.format("dict(mode='slide', crop_size=(8, 8), stride=[4, 4])"),
        TEST.format("dict(mode='slid')") + "val_dataloader = None\ntest_dataloader = dict()\n",
        TEST.format("dict(mode=open(0))"),
        TEST.format("None").replace("EncoderDecoder", "Own"),
        TEST.format(
            "dict(mode='whole', subdivision_steps=2, scale_factor=2)"
        ),  # PointRend's head reads these
        "env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(opencv_num_threads=0), dist_cfg=dict())\n",
        "auto_scale_lr = dict(enable=False)\n",
    ],
)
def test_what_may_be_right_is_taken(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SEG + text)
    configs.check(tmp_path / "mine.py")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "a.py").mkdir()
    with pytest.raises(UserError, match=r"a\.py: that is a folder, not a config"):
        configs.locate(str(tmp_path / "a.py"))


def test_what_only_hinders_a_training_keeps_no_weights_from_being_evaluated(tmp_path: Path) -> None:
    text = SEG + "runner_type = 'Own'\ntrain_dataloader = dict(sampler=dict(type='OwnSampler'))\n"
    (tmp_path / "mine.py").write_text(text)
    configs.check(tmp_path / "mine.py", trained=False)
    with pytest.raises(UserError, match="runner_type Own"):
        configs.check(tmp_path / "mine.py")


VARIABLES = (
    SEG
    + """
crop_size = (64, 64)
norm_cfg = dict(type='BN')
data_preprocessor = dict(size=crop_size)
optimizer = dict(lr=0.1)
model = dict(decode_head=dict(norm_cfg=norm_cfg), data_preprocessor=data_preprocessor)
train_cfg = dict(max_epochs=3)
train_dataloader = dict(dataset=dict(pipeline=[dict(type='Load'), dict(type='Crop', crop_size=crop_size)]))
optim_wrapper = dict(optimizer=optimizer)
"""
)


def asked(text: str, key: str, folder: Path) -> str:
    """What is said to an override of `key` in a config of that text; "" if it is taken."""
    file = folder / "mine.py"
    file.write_text(text)
    try:
        configs.check(file, asked=[("--set", key)])
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "modle.decode_head.num_classes",
            "--set modle.decode_head.num_classes: nothing reads modle: did you",
        ),
        ("max_epochs", "nothing reads max_epochs: did you mean train_cfg.max_epochs?"),
        ("zzz.zzz", "nothing reads zzz"),
        ("work_dir", "--set work_dir: nothing reads it: a run has a directory of its own"),
        ("crop_size", "set train_dataloader.dataset.pipeline.1.crop_size, model.data_preprocessor.size, or"),
        ("norm_cfg.type", "set model.decode_head.norm_cfg.type, or edit the config"),
        ("optimizer.lr", "set optim_wrapper.optimizer.lr, or edit the config"),
        ("data_preprocessor.size", "set model.data_preprocessor.size, or edit the config"),
    ],
)
def test_an_override_that_nothing_reads_is_refused(key: str, said: str, tmp_path: Path) -> None:
    answer = asked(VARIABLES, key, tmp_path)
    assert said in answer
    assert "\n" not in answer


@pytest.mark.parametrize("key", ["model.new", "load_from", "baton.save_seconds", "sync_bn", "tta_pipeline"])
def test_an_override_that_something_reads_is_taken(key: str, tmp_path: Path) -> None:
    assert asked(VARIABLES, key, tmp_path) == ""


def test_a_variable_that_code_of_the_users_may_look_up_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine_too.py").write_text("")
    own = VARIABLES + "custom_imports = dict(imports=['mine_too'])\n"
    assert asked(own, "crop_size", tmp_path) == ""
    assert asked(own, "another_key", tmp_path) == "", "it may have a default there"
    said = "the config has no cropsize: did you mean crop_size?"
    assert said in asked(own, "cropsize", tmp_path)
    assert "did you mean train_cfg.max_epochs?" in asked(own, "max_epochs", tmp_path)
    theirs = VARIABLES + "custom_imports = dict(imports=['mmseg.engine'])\n"
    assert "crop_size is a variable" in asked(theirs, "crop_size", tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        "import mine_too\n",
        "import os\ncustom_imports = os.environ.get('MINE')\n",
        "import os\ncustom_imports = dict(imports=[one for one in os.environ['MINE'].split()])\n",
        "import os\ncustom_hooks = os.environ.get('MINE')\n",
    ],
)
def test_a_variable_is_taken_where_code_of_the_users_is_imported_or_computed(
    more: str, tmp_path: Path
) -> None:
    (tmp_path / "mine_too.py").write_text("")
    assert asked(VARIABLES + more, "crop_size", tmp_path) == ""
    assert "did you mean model?" in asked(VARIABLES + more, "modle.backbone", tmp_path)


def test_a_variable_is_taken_where_an_override_names_code_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine_too.py").write_text("")
    (tmp_path / "mine.py").write_text(VARIABLES)
    given = {"custom_imports.imports": ["mine_too"]}
    configs.check(tmp_path / "mine.py", given, asked=[("--set", "crop_size")])


def test_a_module_of_the_users_that_is_not_python_waits_in_no_queue(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name, file in (("mine_too", "mine_too.py"), ("parts.net", "parts/net.py")):
        (tmp_path / file).write_text("x = 1\ndef f(:\n")
        (tmp_path / "mine.py").write_text(SEG + f"custom_imports = dict(imports=['{name}'])\n")
        with pytest.raises(UserError, match=f"{file}, line 2: not Python"):
            configs.check(tmp_path / "mine.py")


def test_nothing_of_a_config_is_run(tmp_path: Path) -> None:
    file = tmp_path / "side_effect.py"
    file.write_text(SEG + f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    configs.check(file)
    assert not (tmp_path / "touched").exists()


def test_a_snapshot_holds_the_jobs_and_the_whole_chain_of_a_config_from_outside(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "exp").mkdir(parents=True)
    (home / "base.py").write_text(SEG)
    (home / "exp" / "mine.py").write_text("_base_ = '../base.py'\n")
    data = tmp_path / "data"

    chain = configs.check(home / "exp" / "mine.py")
    config = snapshot.take(tmp_path / "code", data, chain)

    copied = tmp_path / "code" / config
    assert copied.read_text() == "_base_ = '../base.py'\n"
    assert (copied.parent / "../base.py").read_text() == SEG
    assert (tmp_path / "code" / "data").readlink() == data
    assert (tmp_path / "code" / "jobs" / "mmseg" / "rank.py").is_file()
    assert not list((tmp_path / "code").rglob("__pycache__"))
    (home / "base.py").write_text("changed = 1\n")
    assert (copied.parent / "../base.py").read_text() == SEG


def test_bases_from_anywhere_are_found_again_in_the_snapshot_alone(tmp_path: Path) -> None:
    """Absolute, beside, of a package by name and by path; the originals may be gone by then."""
    far, home, package = tmp_path / "far", tmp_path / "home" / "exp", tmp_path / "lib" / "pack"
    inside = package / ".mim" / "configs"
    for folder in (far, home, inside / "deep"):
        folder.mkdir(parents=True)
    (far / "absolute.py").write_text("_base_ = './more.py'\na = 1\n")
    (far / "more.py").write_text("b = dict(x=1, y=2)\n")
    (inside / "deep" / "net.py").write_text("_base_ = ['../data.py']\nc = 3\n")
    (inside / "data.py").write_text("d = 4\n")
    (home / "own.py").write_text(SEG)
    (home / "mine.py").write_text(
        f"# ä\n_base_ = ['./own.py',\n  '{far}/absolute.py', \"mmseg::_base_/default_runtime.py\",\n"
        f"  '{inside}/deep/net.py']; b = dict(y=3)\n"
    )
    config = snapshot.take(tmp_path / "code", tmp_path, configs.check(home / "mine.py"))
    for folder in (far, tmp_path / "home", tmp_path / "lib"):
        shutil.rmtree(folder)
    copy = tmp_path / "code" / config
    assert "::" not in copy.read_text()
    script = (
        "import sys; from mmengine.config import Config; c = Config.fromfile(sys.argv[1]);"
        "print(c.a, c.b, c.c, c.d, c.model.type, c.log_level, '_scope_' in c.env_cfg)"
    )
    command = [sys.executable, "-c", script, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "1 {'x': 1, 'y': 3} 3 4 EncoderDecoder INFO False\n"
    # The copy is a config that a run goes on with.
    assert configs.check(copy).values["b"] == {"x": 1, "y": 3}


def test_bases_that_set_the_same_name_are_refused_as_mmengine_does(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SEG)
    (tmp_path / "b.py").write_text("train_cfg = dict()\n")
    (tmp_path / "mine.py").write_text("_base_ = ['./a.py', './b.py']\n")
    with pytest.raises(UserError, match="more than one of its bases sets train_cfg"):
        configs.check(tmp_path / "mine.py")


def test_templates_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "data/here")
    (tmp_path / "base.py").write_text(SEG + "head = dict(channels=3)\n")
    (tmp_path / "mine.py").write_text(
        "_base_ = './base.py'\nwork = '{{ fileBasenameNoExtension }}'\nmodel = dict(head={{_base_.head}})\n"
        "train_dataloader = dict(dataset=dict(data_root='{{$PLACE:data/there}}', n={{'$COUNT:7'}}))\n"
    )
    values = configs.check(tmp_path / "mine.py").values
    assert values["work"] == "mine"
    assert values["model"]["head"] == {"channels": 3}
    assert values["train_dataloader"]["dataset"] == {"data_root": "data/here", "n": 7}


def test_what_a_config_imports_comes_along_with_what_that_imports(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import helper\nimport json\nhere = helper.there\n")
    (tmp_path / "helper.py").write_text("there = True\n")
    (tmp_path / "json.py").write_text("raise SystemExit('not mine')\n")  # Python's own is meant
    (tmp_path / "mine.py").write_text("from net import Net\n" + SEG + "other = dict(type=Net)\n")
    chain = configs.check(tmp_path / "mine.py")
    assert {module.name for module in chain.modules} == {"net.py", "helper.py"}
    snapshot.take(tmp_path / "code", tmp_path, chain)
    command = [sys.executable, "-c", "import net; print(net.here)"]
    done = subprocess.run(command, cwd=tmp_path / "code", capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_config_of_the_checkout_keeps_its_path(tmp_path: Path) -> None:
    chain = configs.check(configs.CHECKOUT / "tests" / "support" / "configs" / "tiny.py")
    assert snapshot.take(tmp_path / "code", tmp_path, chain) == "tests/support/configs/tiny.py"
    assert (tmp_path / "code" / "tests" / "support" / "configs" / "tiny.py").is_file()


def test_an_evaluation_is_asked_for_only_where_one_follows(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SEG + "val_dataloader = val_evaluator = None\n")
    configs.check(file, evaluated=False)
    configs.check(file, {"test_dataloader.batch_size": 1, "test_evaluator.type": "IoUMetric"})


@pytest.mark.parametrize(
    "name", ["mine_net", "parts", "parts.net", "parts.deep.net"], ids=lambda name: name.replace(".", "-")
)
def test_a_module_beside_the_config_comes_along(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "parts" / "deep").mkdir(parents=True)
    for path in ("mine_net.py", "parts/__init__.py", "parts/net.py", "parts/deep/net.py"):
        (home / path).write_text("here = True\n")
    (home / "mine.py").write_text(SEG + f"custom_imports = dict(imports=['{name}', 'json'])\n")
    config = snapshot.take(tmp_path / "code", tmp_path, configs.check(home / "mine.py"))
    shutil.rmtree(home)
    # As a run that is resumed finds it, and as a job imports it: its working directory is the snapshot.
    (module,) = configs.check(tmp_path / "code" / config, code=tmp_path / "code").modules
    assert module.parent == tmp_path / "code"
    command = [sys.executable, "-c", f"import {name} as m; print(m.__file__, m.here)"]
    done = subprocess.run(command, cwd=tmp_path / "code", capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "code"))


def test_data_in_a_package_is_linked_and_no_environment_comes_along(tmp_path: Path) -> None:
    """All that the code may read is there; what would take each run time and place is not copied."""
    home, code = tmp_path / "home", tmp_path / "code"
    package = home / "parts"
    for folder in ("ops/csrc", "data/raw", "venv/lib", "wandb", ".git", "__pycache__", "classes"):
        (package / folder).mkdir(parents=True)
    for file in ("__init__.py", "ops/__init__.py", "ops/csrc/a.cu", "weights.npy", "classes/names.json"):
        (package / file).write_text("")
    for file in ("venv/pyvenv.cfg", "venv/lib/x.py", ".git/index", "__pycache__/a.pyc"):
        (package / file).write_text("import torchvision_of_a_venv")
    for number in range(101):
        (package / "data" / "raw" / f"{number}.png").touch()
    for large in (package / "best.pth", package / "wandb" / "log"):
        with large.open("wb") as file_:
            file_.truncate(11 << 20)
    os.mkfifo(package / "pipe")
    (package / "gone").symlink_to(tmp_path / "nowhere")
    (package / "ops" / "again").symlink_to(package)
    (package / "ops" / "images").symlink_to(package / "data" / "raw")
    (home / "mine.py").write_text(SEG + "custom_imports = dict(imports=['parts'])\n")
    chain = configs.check(home / "mine.py")
    snapshot.take(code, tmp_path, chain)
    taken = code / "parts"
    copied = {
        str(one.relative_to(taken)) for one in taken.rglob("*") if not one.is_symlink() and one.is_file()
    }
    assert copied == {"__init__.py", "ops/__init__.py", "ops/csrc/a.cu", "weights.npy", "classes/names.json"}
    linked = {str(one.relative_to(taken)): one.resolve() for one in taken.rglob("*") if one.is_symlink()}
    assert linked == {
        name: package / to
        for name, to in {
            "data": "data", "best.pth": "best.pth", "wandb": "wandb", "ops/images": "data/raw",
        }.items()
    }  # fmt: skip
    assert (taken / "data" / "raw" / "7.png").is_file()
    for number in range(1001):
        (package / f"{number}.txt").touch()
    with pytest.raises(UserError, match=r"parts has code and more than 1000 other files, which each run"):
        snapshot.place(tmp_path / "other", chain)


def test_a_home_behind_a_link_ends_the_search_for_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "disk" / "home"
    (home / "work").mkdir(parents=True)
    for folder in (tmp_path / "disk", home):
        (folder / "mine_net.py").write_text("")
    (tmp_path / "me").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(home / "work")
    mine = home / "work" / "mine.py"
    mine.write_text(f"custom_imports = dict(imports=['mine_net'])\n{SEG}")
    with pytest.raises(UserError, match="mine_net is neither beside the config"):
        configs.check(mine)


def test_a_package_beside_the_folder_of_configs_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As most repositories have it: they train with PYTHONPATH=. from their root."""
    root = tmp_path / "repository"
    for folder in (root / "configs" / "mine", root / "plugin", tmp_path / "outside", root / ".git"):
        folder.mkdir(parents=True)
    for file in (root / "plugin/__init__.py", root / "tool.py", tmp_path / "outside/__init__.py"):
        file.write_text("")
    (root / "plugin" / "parts.py").write_text("import tool\n")
    mine = root / "configs" / "mine" / "mine.py"
    mine.write_text(f"custom_imports = dict(imports=['plugin.parts'])\n{SEG}")
    assert configs.check(mine).modules == [root / "plugin", root / "tool.py"]
    # Not from above the repository, but from where the command is typed.
    mine.write_text(f"custom_imports = dict(imports=['outside'])\n{SEG}")
    with pytest.raises(UserError, match="outside is neither beside the config"):
        configs.check(mine)
    monkeypatch.chdir(tmp_path)
    assert configs.check(mine).modules == [tmp_path / "outside"]
    # What is installed is not looked for there.
    (root / "torch").mkdir()
    (root / "torch" / "__init__.py").write_text("")
    mine.write_text(f"import torch.nn\n{SEG}")
    assert configs.check(mine).modules == []
