"""launch/evaluate.py with a checkpoint as the model zoo publishes them, and nothing trained."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.run.directory import Run
from tests.support import tiny

CONFIG = f"""\
_base_ = {str(tiny.ROOT / "tests" / "support" / "configs" / "tiny.py")!r}
train_dataloader = dict(dataset=dict(data_root="data/mine"))
val_dataloader = dict(dataset=dict(data_root="data/mine"))
test_dataloader = val_dataloader
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tiny.make_data(tmp_path / "data")
    (root / "VOCdevkit" / "VOC2012").rename(root / "mine")
    return root


@pytest.fixture
def published(random_run: Run, tmp_path: Path) -> Iterator[str]:
    """The address of the random run's weights as mmseg 0.x saved them: in torch's format before 1.6, from
    inside a wrapper for several GPUs, with classes and palette, without anything about versions; called by
    the beginning of their digest."""
    weights = torch.load(random_run.path / "weights.pth", weights_only=True)["state_dict"]
    old = OrderedDict(
        (f"module.{name}", value) for name, value in weights.items() if "num_batches" not in name
    )
    meta = {"mmseg_version": "0.5.0", "CLASSES": ("a", "b"), "PALETTE": [[0, 0, 0], [1, 2, 3]]}
    folder = tmp_path / "published"
    folder.mkdir()
    file = folder / "file"
    torch.save({"meta": meta, "state_dict": old}, file, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(folder / f"tiny_20200617_165330-{digest[:8]}.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/tiny_20200617_165330-{digest[:8]}.pth"
    server.shutdown()
    server.server_close()


def evaluate(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    command = [sys.executable, "launch/evaluate.py", *map(str, arguments), "--cluster", "local", "--wait"]
    return subprocess.run(
        command, cwd=tiny.ROOT, env=kept | {"BATON_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def metrics(tmp_path: Path) -> dict[str, object]:
    (file,) = (tmp_path / "runs").glob("*/eval/*/metrics.json")
    found = json.loads(file.read_text())
    return {key: found[key] for key in ("mIoU", "mAcc", "aAcc", "images", "classes")}


def test_a_published_checkpoint_has_the_figures_of_its_weights(
    random_run: Run, data: Path, published: str, tmp_path: Path
) -> None:
    config = tmp_path / "mine.py"
    config.write_text(CONFIG)
    common = ("--config", config, "--data-root", data)
    done = evaluate(tmp_path / "address", *common, "--checkpoint", published, "--gpus", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    fetched = data / "pretrained" / published.rpartition("/")[2]
    assert fetched.is_file()
    done = evaluate(tmp_path / "file", *common, "--checkpoint", random_run.path / "weights.pth")
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path / "address") == metrics(tmp_path / "file")
    assert metrics(tmp_path / "file")["images"] == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a run to evaluate, or a config"),
        (("first", "--config", "x.py"), "one of the two"),
        (("first", "--data-root", "x"), "--data-root is for --config"),
        (("--config", "tests/support/configs/tiny.py"), "--config needs --checkpoint"),
        (("--config", "tests/support/configs/tiny.py", "--checkpoint", "http://x/y.html"), "ends in .pth"),
        (("--config", "tests/support/configs/tiny.py", "--checkpoint", "http://x/y.pth",
          "--data-root", "/nowhere"),
         "there is no prepared dataset in /nowhere/VOCdevkit"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = evaluate(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
