"""The shipped configs, and what becomes of a config before it trains."""

import errno
import functools
import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.catalog import installed, supported
from jobs.engine import kernels
from jobs.engine.session import Session
from jobs.mmseg import compat
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError

compat.prepare()

from mmengine.config import utils  # noqa: E402

from jobs.mmseg import config  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
RECIPE = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"
ZOO = "configs/upernet_r50_voc-aug_512x512_20k-by-epoch.py"


@pytest.fixture(scope="module", autouse=True)
def index_read_once() -> Iterator[None]:
    """For each config that inherits mmseg::…, mmengine reads the zoo's index of fifty YAML files anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_get_cfg_metainfo", functools.cache(utils._get_cfg_metainfo))
        yield


def session(tmp_path: Path, path: str = RECIPE, ranks: int = 2, **overrides: object) -> Session:
    run = Run(tmp_path)
    if not run.code.exists():
        run.code.symlink_to(ROOT)
    settings = {key.replace("__", "."): value for key, value in overrides.items()}
    request = Request(name="x", config=path, data_root="/data", created="", seed=5, set=settings)
    return Session(run, request, rank=1, ranks=ranks, local_rank=1, local_ranks=ranks, start=1, job=None)


@pytest.mark.parametrize("path", [RECIPE, ZOO, "configs/demo.py"])
def test_shipped_configs_have_none_of_the_guides_defects(path: str, tmp_path: Path) -> None:
    cfg = config.resolve(session(tmp_path, path))
    assert cfg.log_processor.by_epoch
    assert cfg.train_cfg.type == "EpochBasedTrainLoop"
    assert cfg.train_dataloader.dataset.ann_file.endswith("trainaug.txt")
    assert cfg.train_dataloader.sampler.type == "DefaultSampler"
    assert cfg.param_scheduler[0].end == cfg.train_cfg.max_epochs
    assert cfg.auto_scale_lr.enable
    assert cfg.randomness.seed == 5
    assert cfg.default_hooks.checkpoint.save_best == "mIoU"
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 21
    assert {"type": "TensorboardVisBackend"} in cfg.visualizer.vis_backends


@pytest.mark.skipif(installed.is_installed("wandb"), reason="wandb is installed here")
def test_a_service_that_is_not_installed_is_left_out_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = session(tmp_path, visualizer__vis_backends=[{"type": "WandbVisBackend"}])
    main.rank = 0
    cfg = config.resolve(main)
    assert cfg.visualizer.vis_backends == [{"type": "TensorboardVisBackend"}]
    assert "WandbVisBackend is left out: wandb is not installed" in capsys.readouterr().out


def test_the_recipes_learning_rate_is_the_zoos_in_proportion_to_the_batch(tmp_path: Path) -> None:
    """0.01 at a global batch of 16, so 0.005 on 2 GPUs with 4 images each."""
    cfg = config.resolve(session(tmp_path))
    rate = cfg.optim_wrapper.optimizer.lr / cfg.auto_scale_lr.base_batch_size
    assert (rate * 16, rate * 2 * cfg.train_dataloader.batch_size) == (0.01, 0.005)


def test_the_recipe_starts_from_the_weights_of_its_own_backbone(tmp_path: Path) -> None:
    cfg = config.resolve(session(tmp_path))
    assert (cfg.model.pretrained, cfg.model.backbone.type) == ("open-mmlab://resnet50_v1c", "ResNetV1c")


def test_exactness_is_put_into_a_copy(tmp_path: Path) -> None:
    two = session(tmp_path)
    cfg = config.resolve(two)
    prepared = config.prepare(cfg, two, global_batch=8)
    assert prepared.train_cfg.type == "ExactEpochLoop"
    assert prepared.train_dataloader.sampler.seed == 5
    assert prepared.train_dataloader.sampler.rounds == 1
    assert prepared.model_wrapper_cfg.device_ids is None
    kinds = [step["type"] for step in prepared.train_dataloader.dataset.dataset.pipeline]
    assert "FastRandomCrop" in kinds
    assert cfg.train_dataloader.sampler.type == "DefaultSampler"
    assert "pin_memory" not in prepared.train_dataloader
    # Half the ranks: twice the rounds.
    one = session(tmp_path, ranks=1)
    assert config.prepare(cfg, one, global_batch=8).train_dataloader.sampler.rounds == 2


def test_batches_for_a_gpu_are_pinned_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    here = session(tmp_path, ranks=1, val_dataloader__pin_memory=False)
    here.device = "cuda:0"
    prepared = config.prepare(config.resolve(here), here, global_batch=4)
    assert (prepared.train_dataloader.pin_memory, prepared.val_dataloader.pin_memory) == (True, False)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"baton__save_second": 3}, "did you mean save_seconds"),
        ({"resume": True}, "remove it"),
        ({"train_cfg__type": "MyLoop"}, "MyLoop"),
        ({"train_dataloader__sampler__type": "MySampler"}, "MySampler .* use sampler=dict"),
        ({"train_dataloader__sampler__weights": [1, 2]}, "takes no weights"),
        ({"default_hooks__checkpoint__type": "MyCheckpointHook"}, "MyCheckpointHook"),
        ({"default_hooks__checkpoint__out_dir": "/elsewhere"}, "out_dir .* run's own directory"),
        ({"default_hooks__checkpoint__filename_tmpl": "x_{}.pth"}, "filename_tmpl .* epoch_N.pth"),
        ({"default_hooks__checkpoint__published_keys": ["state_dict"]}, "published_keys"),
        ({"default_hooks__checkpoint__save_optimizer": False}, "save_optimizer"),
        ({"default_hooks__checkpoint__save_best": ["mIoU", "aAcc"]}, "name one"),
        ({"default_hooks__checkpoint__rule": "more"}, "'greater' or 'less'"),
        ({"default_hooks__checkpoint__keep": 3}, "unknown default_hooks.checkpoint.keep"),
    ],
)
def test_what_cannot_work_is_said(overrides: dict, words: str, tmp_path: Path) -> None:
    here = session(tmp_path, **overrides)
    with pytest.raises(UserError, match=words):
        everything(here)


def test_the_checkpoint_hooks_options_are_honoured(tmp_path: Path) -> None:
    options: dict[str, Any] = {"interval": 7, "by_epoch": False, "save_begin": 3, "max_keep_ckpts": 2}
    options |= {"save_best": ["aAcc"], "rule": ["less"], "save_optimizer": True}
    options |= {"out_dir": None, "save_last": True}
    here = session(tmp_path, **{f"default_hooks__checkpoint__{key}": value for key, value in options.items()})
    found = config.saving(config.resolve(here))
    assert (found.interval, found.by_epoch, found.save_begin, found.max_keep_ckpts) == (7, False, 3, 2)
    assert (found.save_best, found.rule) == ("aAcc", "less")


def everything(here: Session) -> None:
    cfg = config.resolve(here)
    config.saving(cfg)
    config.prepare(cfg, here, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = dict(", "cannot be read"),
        ("x = 1 / 0", "cannot be read"),
        ("import sys\nsys.exit(0)", r"cannot be read: .*SystemExit: 0"),
        ("x = 1", "no model"),
    ],
)
def test_files_that_are_no_training_config(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        config.resolve(session(tmp_path, "mine.py"))
    with pytest.raises(UserError, match="there is no config"):
        config.resolve(session(tmp_path, "none.py"))


PURE = "from mmseg.models import FCNHead\nmodel = dict(type=FCNHead)\n"


def test_a_config_in_pure_python_may_call_the_standard_library(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"from copy import deepcopy\nimport os.path as osp\nfrom mmengine.config import read_base\n{PURE}"
        "model = dict(deepcopy(model), channels=8, init_cfg=osp.join('a', 'b'))\n"
    )
    assert config.read(mine).model == {
        "type": "mmseg.models.FCNHead",
        "channels": 8,
        "init_cfg": "a/b",
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x = FCNHead(channels=8)", "RuntimeError (only what is imported from the standard library can"),
        ("x = [1][2]", "IndexError: list index out of range"),
    ],
)
def test_what_a_config_in_pure_python_raises_is_said_with_its_line(
    line: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "base.py").write_text(f"{PURE}{line}\n")
    mine = tmp_path / "mine.py"
    mine.write_text("from mmengine.config import read_base\nwith read_base():\n    from .base import *\n")
    with pytest.raises(UserError) as error:
        config.read(mine)
    assert f"{mine} cannot be read: base.py, line 3: {line}: {said}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_half_precision_without_a_gpu_is_said_to_be_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str | None
) -> None:
    main = session(tmp_path, optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype=dtype)
    main.rank = 0
    prepared = config.prepare(config.resolve(main), main, 8)
    assert prepared.optim_wrapper.type == "CpuAmpOptimWrapper"
    said = capsys.readouterr().out.count("mixed precision is bfloat16 instead of float16")
    assert said == (dtype != "bfloat16")


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (True, {"dynamic": False}),
        ({"backend": "eager"}, {"dynamic": False, "backend": "eager"}),
        ({"dynamic": True}, {"dynamic": True}),
        (False, False),
    ],
)
def test_what_is_compiled_depends_on_no_earlier_batch(tmp_path: Path, given: object, made: object) -> None:
    here = session(tmp_path, compile=given)
    assert config.prepare(config.resolve(here), here, 8).compile == made


def test_what_mmengine_writes_into_inherited_dicts_is_nobodys_mistake(tmp_path: Path) -> None:
    """`_scope_` in all that `mmseg::` brings, a `_delete_` that had nothing to delete."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(
        "_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'\n"
        "extra = dict(_delete_=True, a=1)\n"
        "train_dataloader = dict(sampler=dict(seed=3))\n"
    )
    here = session(tmp_path, "mine.py")
    cfg = config.resolve(here)
    assert not re.search("_scope_|_delete_", cfg.pretty_text)
    assert (cfg.extra, config.saving(cfg).interval) == ({"a": 1}, 16000)
    assert config.prepare(cfg, here, global_batch=4).train_dataloader.sampler.seed == 3


def test_the_mark_of_another_scope_stays_where_a_type_needs_it(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(
        f"_base_ = '{ROOT / ZOO}'\nmodel = dict(neck=dict(type='FPN', _scope_='mmdet'))\n"
        "default_hooks = dict(checkpoint=dict(_scope_='mmdet'))\n"
        "train_dataloader = dict(sampler=dict(_scope_='mmengine'))\n"
    )
    here = session(tmp_path, "mine.py")
    cfg = config.resolve(here)
    assert cfg.model.neck["_scope_"] == "mmdet"
    assert config.saving(cfg).save_best == "mIoU"
    assert config.prepare(cfg, here, global_batch=4).train_dataloader.sampler.seed == 5


def test_what_the_runner_reads_is_what_it_takes() -> None:
    from mmengine.runner import Runner

    taken = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
    assert set(supported.RUNNER) == taken
    told = inspect.getsource(Runner)
    looked_up = set(re.findall(r"self\.cfg\.get\(\s*'(\w+)'", told))
    assert looked_up <= {*supported.RUNNER, *supported.LOOKED_UP}


def test_a_start_refuses_an_override_that_nothing_reads(tmp_path: Path) -> None:
    """As the login node does, where it can read the config's bases."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "configs").symlink_to(ROOT / "configs")
    with pytest.raises(UserError, match="nothing reads optim_wraper: did you mean optim_wrapper"):
        config.resolve(session(tmp_path, optim_wraper__optimizer__lr=0.1))
    with pytest.raises(UserError, match="crop_size is a variable of the config's file"):
        config.resolve(session(tmp_path, ZOO, crop_size=(64, 64)))


def test_a_start_takes_a_variable_where_code_of_the_users_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text(f"_base_ = '{ROOT / ZOO}'\nimport beside_the_config\n")
    here = session(tmp_path, "mine.py", crop_size=(64, 64))
    monkeypatch.syspath_prepend(code)
    (code / "beside_the_config.py").write_text("")  # which may register what asks for it
    assert config.resolve(here).crop_size == (64, 64)
    (code / "mine.py").write_text(f"_base_ = '{ROOT / ZOO}'\n")
    (code / "beside_the_config.py").unlink()
    with pytest.raises(UserError, match="crop_size is a variable of the config's file"):
        config.resolve(here)


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    imports = {"imports": ["no_such_module.net"]}
    with pytest.raises(
        UserError, match=r"custom_imports names no_such_module\.net: no_such_module is not inst"
    ):
        config.resolve(session(tmp_path, custom_imports=imports))
    config.resolve(session(tmp_path, custom_imports=imports | {"allow_failed_imports": True}))


BY_ITSELF = "import sys\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise KeyError('size')", r"KeyError: 'size' \({}\.py:2\)$"),
        ("sys.exit()", r"SystemExit \({}\.py:2\)$"),
        ("sys.exit('needs --lr')", r"SystemExit: needs --lr \({}\.py:2\)$"),
        ("x = (", r"SyntaxError: .*\({}\.py, line 2\)$"),
        ("from json import net", r"cannot import name 'net' from 'json' .*\({}\.py:2\)$"),
    ],
)
def test_what_the_import_of_a_module_of_the_users_raises_is_said_with_its_line(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"net_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(BY_ITSELF + line)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=f"custom_imports names {name}.*{said.format(name)}"):
        config.resolve(session(tmp_path, custom_imports={"imports": [name]}))


@pytest.mark.parametrize(
    "line", ["raise RuntimeError('No CUDA GPUs are available')", "raise OSError(116, 'Stale file handle')"]
)
def test_a_fault_of_the_machine_while_a_module_is_imported_may_have_gone_by_the_next_start(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_of_a_node.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises((RuntimeError, OSError)):
        config.resolve(session(tmp_path, custom_imports={"imports": ["net_of_a_node"]}))


def test_kernels_are_kept_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_FX_GRAPH_CACHE"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    # As torch itself does when it is asked before.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_somebody")
    here = session(tmp_path, compile=True)
    config.prepare(config.resolve(here), here, 8)
    folder = here.run.path / "compiled" / "1"  # the rank's own
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_kernels_are_kept_where_the_user_says(tmp_path: Path) -> None:
    given = {"TORCHINDUCTOR_CACHE_DIR": "/scratch/mine", "TRITON_CACHE_DIR": "/scratch/triton"}
    kernels.keep(Run(tmp_path), 0, environ := dict(given))
    assert environ == given | {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    assert not (tmp_path / "compiled").exists()


def test_kernels_are_kept_on_the_machine_where_the_run_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    environ: dict[str, str] = {}
    kernels.keep(Run(tmp_path / "run"), 0, environ)
    there = tmp_path / f"baton-{os.geteuid()}" / "inductor"
    assert environ["TORCHINDUCTOR_CACHE_DIR"] == str(there)
    assert f"kept in {there}, for this machine: [Errno {errno.ENOLCK}]" in capsys.readouterr().err
