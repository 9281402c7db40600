"""What a start imports and does not use is not imported, and is whole for whoever uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run import events
from jobs.run.exit_codes import FINISHED, RESUME
from tests.support import tiny

pytestmark = pytest.mark.slow

NEEDLESS = {"torch._dynamo", "torch._inductor", "matplotlib"}
SHARDING = {"torch.distributed.fsdp", "torch.distributed.optim"}
TORCHS_OWN = """
import sys
import torch, torch.distributed, torch.nn.parallel, torch.utils.tensorboard
print(*sys.modules)
"""
BROUGHT = """
import sys
from jobs.mmseg import compat
compat.prepare()
import mmengine.runner, mmseg.models
print(*sys.modules)
"""


def test_a_resumed_start_imports_nothing_needless(tmp_path: Path) -> None:
    data = tiny.make_data(tmp_path / "data", 8, 2)
    result = tmp_path / "modules.json"
    run = tiny.make_run(
        tmp_path / "run",
        data,
        train_cfg__max_epochs=2,
        train_dataloader__num_workers=1,
        val_cfg=None,
        val_dataloader=None,
        val_evaluator=None,
        default_hooks__checkpoint__save_best=None,
        custom_imports={
            "imports": ["tests.interrupting", "tests.loaded_modules"],
            "allow_failed_imports": False,
        },
        custom_hooks=[{"type": "Interrupt"}, {"type": "LoadedModules", "result": str(result)}],
    )
    plan = {"at": "step", "step": 2, "signal": "SIGUSR2", "rank": 0}
    assert tiny.start_commands(run, 1, plan) == [RESUME], tiny.log_of(run, 1)
    result.unlink()
    assert tiny.start_commands(run) == [FINISHED], tiny.log_of(run, 2)
    assert "resumed" in [event["event"] for event in events.read(run.events)]
    loaded = set(json.loads(result.read_text()))
    assert {"torch", "mmengine.runner", "mmseg.models"} <= loaded
    # An old torch brings its compiler along with mmengine's own imports.
    brought = set(run_program(BROUGHT, BATON_IMPORT_ALL="1").split())
    assert loaded & (NEEDLESS - brought) == set()
    assert "matplotlib" not in brought
    assert brought >= SHARDING | {"ftfy", "scipy.ndimage", "scipy.optimize", "scipy.interpolate"}
    assert loaded & (SHARDING - set(run_program(TORCHS_OWN).split())) == set()
    assert not {"ftfy", "scipy"} & loaded


WHOLE = """
import sys
from jobs.mmseg import compat, late
compat.prepare()
compat.prepare()
import mmengine.runner, mmseg.models
import numpy as np

# Drawing.
from mmengine.visualization import Visualizer
class Mine(Visualizer): pass
assert "matplotlib" not in sys.modules
picture = (np.random.default_rng(0).random((9, 9, 3)) * 255).astype(np.uint8)
late_one, at_once = Mine("late"), Visualizer("at once", image=picture)
late_one.set_image(picture)
for one in (late_one, at_once):
    one.draw_bboxes(np.array([1, 1, 5, 5]))
assert (late_one.get_image() == at_once.get_image()).all()
assert late_one.dpi == at_once.dpi and late_one.fig_save is late_one.fig_save_canvas.figure
assert not hasattr(late_one, "nothing")

# One that brings a `__getattr__`, or a figure, of its own.
class Other(Visualizer):
    def __getattr__(self, name): raise AttributeError(name)
assert Other("other").dpi == at_once.dpi

# The compiler: optimizers need none; whoever uses it has it, and then it is told what torch tells it.
import torch
from torch import optim
def stepped(kind, compiled=False):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], lr=0.5)
    weight.sum().backward()
    step = torch.compile(lambda: optimizer.step(), backend="eager") if compiled else optimizer.step
    step()
    again = kind([weight], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
    assert weight.grad is None and torch.is_grad_enabled()
    return weight.tolist()
kinds = [optim.SGD, optim.Adam, optim.AdamW]
there = "torch._dynamo" in sys.modules
late_ones = [stepped(kind) for kind in kinds]
assert ("torch._dynamo" in sys.modules) == there
assert late_ones[0] == [0.5, 0.5]
import torch._dynamo
told, disable = [], torch._dynamo.disable
torch._dynamo.disable = lambda one, *rest, **more: told.append(one) or disable(one, *rest, **more)
compiled = torch.compile(lambda x: torch.sin(x) + 1, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(2)), torch.sin(torch.ones(2)) + 1)
assert [stepped(kind) for kind in kinds] == late_ones
assert stepped(optim.SGD, compiled=True) == late_ones[0]
assert there or optim.Optimizer.zero_grad.__wrapped__.__wrapped__ in told
print("whole")
"""


def run_program(program: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tiny.ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_imported_late_is_whole() -> None:
    assert run_program(WHOLE).splitlines()[-1] == "whole"


EVERYTHING = """
import sys
from jobs.mmseg import compat
compat.prepare()
from mmengine.visualization import Visualizer
Visualizer("one")
assert "matplotlib" in sys.modules
import torch
weight = torch.nn.Parameter(torch.ones(2))
weight.sum().backward()
torch.optim.SGD([weight], lr=0.5).step()
print("torch._dynamo" in sys.modules)
"""


def test_everything_is_imported_where_that_is_asked_for() -> None:
    assert run_program(EVERYTHING, BATON_IMPORT_ALL="1").split()[-1] == "True"


OWN = """
import sys
import {module}
assert "jobs.mmseg.late" not in sys.modules
from jobs.mmseg import compat
compat.prepare()
assert sys.modules["{module}"] is {module}
print("real")
"""


SHARDED = """
import sys
from jobs.mmseg import compat, late
compat.prepare()
import mmengine.runner
import torch
import torch.distributed as dist
from mmengine.model import is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIMIZERS, STRATEGIES
from mmseg.registry import OPTIMIZERS as OURS
assert not is_model_wrapper(torch.nn.Linear(2, 2))
late_ones = [("ZeroRedundancyOptimizer", OURS), ("MMFullyShardedDataParallel", MODEL_WRAPPERS)]
late_ones += [("FSDPStrategy", STRATEGIES)]
assert all(registry.get(name).__module__ == "jobs.mmseg.late" for name, registry in late_ones)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
weight = torch.nn.Parameter(torch.ones(2))
{first}
built = OURS.build(dict(type="ZeroRedundancyOptimizer", params=[weight], optimizer_type="SGD", lr=0.5))
from torch.distributed.optim import ZeroRedundancyOptimizer as Torchs
assert isinstance(built, Torchs)
weight.sum().backward()
built.step()
assert weight.tolist() == [0.5, 0.5]
from mmengine.optim import ZeroRedundancyOptimizer
from mmengine.model.wrappers.fully_sharded_distributed import MMFullyShardedDataParallel
import mmengine.model
from torch.distributed.fsdp import FullyShardedDataParallel
assert type(built) is ZeroRedundancyOptimizer is OPTIMIZERS.get("ZeroRedundancyOptimizer")
assert mmengine.model.MMFullyShardedDataParallel is MMFullyShardedDataParallel
assert MODEL_WRAPPERS.get("MMFullyShardedDataParallel") is MMFullyShardedDataParallel
assert issubclass(MMFullyShardedDataParallel, FullyShardedDataParallel)
from mmengine._strategy import FSDPStrategy
assert STRATEGIES.get("FSDPStrategy") is FSDPStrategy
assert not hasattr(mmengine.model, "Nothing")
dist.destroy_process_group()
print("sharded")
"""


@pytest.mark.parametrize("first", ["", "class Mine(mmengine.optim.ZeroRedundancyOptimizer): pass"])
def test_ways_to_shard_are_there_for_who_names_them(first: str) -> None:
    assert run_program(SHARDED.format(first=first)).split()[-1] == "sharded"


TOKENS = """
import sys
from jobs.mmseg import compat
compat.prepare()
import mmseg.models
from mmseg.utils import tokenize, tokenizer
assert "ftfy" not in sys.modules
if {asked}:
    assert tokenizer.SimpleTokenizer.__module__ == "mmseg.utils.tokenizer"
found = tokenize(["a cat"])[0, :4].tolist()
assert found == tokenizer.tokenize(["a cat"])[0, :4].tolist()
import mmseg.utils.tokenizer as real
assert real.tokenize is sys.modules["mmseg.utils.tokenizer"].tokenize
print(found)
"""


@pytest.mark.parametrize("asked", [True, False])
def test_the_tokenizer_reads_its_words_when_it_is_called(asked: bool) -> None:
    assert run_program(TOKENS.format(asked=asked)).splitlines()[-1] == "[49406, 320, 2368, 49407]"


CALLED = """
import inspect, sys
from jobs.mmseg import compat
{before}
compat.prepare()
compat.prepare()
import mmseg.datasets, mmseg.models
assert "scipy" not in sys.modules or {before!r}
from mmseg.datasets.transforms import BioMedicalGaussianBlur, transforms
from mmseg.models.assigners import hungarian_assigner
from mmseg.models.backbones import beit
from mmseg.models.losses import huasdorff_distance_loss
import numpy as np
picture = np.random.default_rng(0).random((1, 9, 9)).astype(np.float32)
blur = BioMedicalGaussianBlur(prob=1.0, sigma_range=(1.0, 1.0), prob_per_channel=1.0)
blurred = blur(dict(img=picture.copy()))
import scipy.interpolate, scipy.ndimage, scipy.optimize
assert (blurred["img"][0] == scipy.ndimage.gaussian_filter(picture[0], 1.0, order=0)).all()
assign = (hungarian_assigner.linear_sum_assignment, scipy.optimize.linear_sum_assignment)
assert np.array_equal(*(one(picture[0]) for one in assign))
distances = (huasdorff_distance_loss.distance, scipy.ndimage.distance_transform_edt)
assert np.array_equal(*(one(picture[0] > 0.5) for one in distances))
assert beit.interpolate.CubicSpline is scipy.interpolate.CubicSpline
for module in (transforms, hungarian_assigner, beit, huasdorff_distance_loss):
    assert module.__spec__.loader is module.__loader__ and "class " in inspect.getsource(module)
print("called")
"""


@pytest.mark.parametrize("before", ["", "import scipy.ndimage"])
def test_mmseg_calls_scipys_own_functions(before: str) -> None:
    assert run_program(CALLED.format(before=before)).split()[-1] == "called"


NAMES_THEM = """
import sys
sys.path.insert(0, {folder!r})
from jobs.mmseg import compat
compat.prepare()
from mmseg.datasets.transforms import transforms
assert transforms.ALBU_INSTALLED
print(*sys.modules["albumentations"].join("a", "b"))
"""


def test_who_names_the_arguments_of_an_import_gets_it_too(tmp_path: Path) -> None:
    """As albumentations does, which one of mmseg's modules imports; it is not to use the network."""
    imports = 'join = __import__("os.path", fromlist=["join"], level=0).join\nclass Compose: pass\n'
    asks = "from os import environ\n"
    asks += 'assert environ["NO_ALBUMENTATIONS_UPDATE"] == environ["ALBUMENTATIONS_OFFLINE"] == "1"\n'
    (tmp_path / "albumentations.py").write_text(imports + asks)
    assert run_program(NAMES_THEM.format(folder=str(tmp_path))).split()[-3:] == ["a", "/", "b"]


@pytest.mark.parametrize("module", ["torch._dynamo", "matplotlib"])
def test_what_is_there_already_is_left_alone(module: str) -> None:
    assert run_program(OWN.format(module=module)).split()[-1] == "real"
