"""What several of the local tests need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run.directory import Run
from tests.support import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the tiny config with random weights as its checkpoint."""
    folder = tmp_path_factory.mktemp("infer run; 'quoted'")
    run = tiny.make_run(folder / "run", tiny.make_data(folder / "data"))
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from jobs.mmseg import compat; compat.prepare()\n"
        "from mmengine.config import Config\n"
        "from mmengine.registry import init_default_scope\n"
        "from mmseg.registry import MODELS\n"
        "import mmseg.models\n"
        "cfg = Config.fromfile('tests/support/configs/tiny.py'); cfg.dump(sys.argv[1])\n"
        "init_default_scope('mmseg'); torch.manual_seed(0)\n"
        "model = MODELS.build(cfg.model)\n"
        # Of the classes that the data has, so that some of it is right.
        "model.decode_head.conv_seg.bias.data[5:] = -1e3\n"
        "torch.save({'state_dict': model.state_dict()}, sys.argv[2])\n"
    )
    arguments = [str(run.config), str(run.path / "weights.pth")]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=run.code, check=True, timeout=300)
    return run
