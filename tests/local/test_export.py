"""export.py: a small folder that infer.py takes anywhere, and ONNX that gives what PyTorch gives."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.run import events, exported, output
from jobs.run.digests import digest
from jobs.run.directory import Run
from tests.conftest import ROOT

NO_ONNX = any(importlib.util.find_spec(name) is None for name in exported.ONNX_PACKAGES)
needs_onnx = pytest.mark.skipif(NO_ONNX, reason="env/setup.sh --with onnx installs what this needs")


def call(runs: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments), "--cluster", "local"], cwd=ROOT,
        env=kept | {"BATON_RUNS": str(runs)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def run(random_run: Run, tmp_path: Path) -> Run:
    """The run, its weights in a checkpoint with what a training's has beside them."""
    import torch

    from jobs.mmseg import compat

    own = Run(tmp_path / "runs" / "first")
    own.path.parent.mkdir()
    shutil.copytree(random_run.path, own.path, symlinks=True, ignore=shutil.ignore_patterns("eval", "infer"))
    content = compat.load(random_run.path / "weights.pth")
    content |= {"optimizer": {"state": torch.zeros(500_000)}, "message_hub": {}}
    (own.path / "weights.pth").unlink()
    torch.save(content, own.path / "weights.pth")
    return own


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


def export(run: Run, folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return call(
        run.path.parent, "export", run.name, "--checkpoint", run.path / "weights.pth", "--out", folder, *more,
        "--wait",
    )  # fmt: skip


def test_the_folder_alone_segments_as_the_run_does(run: Run, image: Path, tmp_path: Path) -> None:
    """Elsewhere: the run and its dataset are gone."""
    runs, folder = run.path.parent, tmp_path / "model"
    folder.mkdir()
    for name in (output.MARK, exported.ONNX):
        (folder / name).touch()
    done = export(run, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / exported.ONNX).exists()  # another checkpoint's
    assert [e["event"] for e in events.read(run.events) if e.get("stage") == "export"] == [
        "submitted",
        "finished",
    ]
    record = exported.read(folder)
    assert record is not None
    assert (record["run"], len(record["classes"])) == ("first", 21)
    assert sorted(record["sha256"]) == ["config.py", "weights.pth"]
    assert (folder / "weights.pth").stat().st_size < 200_000 < (run.path / "weights.pth").stat().st_size
    by_run = call(
        runs, "infer", "first", image, "--checkpoint", run.path / "weights.pth", "--out", tmp_path / "a",
        "--wait",
    )  # fmt: skip
    assert by_run.returncode == 0, by_run.stdout + by_run.stderr

    moved, elsewhere = tmp_path / "elsewhere" / "model", tmp_path / "other runs"
    moved.parent.mkdir()
    folder.rename(moved)
    runs.rename(tmp_path / "gone")
    by_folder = call(elsewhere, "infer", moved, image, "--out", tmp_path / "b", "--wait")
    assert by_folder.returncode == 0, by_folder.stdout + by_folder.stderr
    masks = [np.asarray(Image.open(tmp_path / where / "picture.png")) for where in "ab"]
    assert len(np.unique(masks[0])) > 1
    assert (masks[0] == masks[1]).all()
    assert [path.name for path in elsewhere.iterdir() if not path.name.startswith(".")] == ["model-1"]

    # A file that is not as it was written is noticed before there is a job, or a run.
    content = (moved / "weights.pth").read_bytes()
    (moved / "weights.pth").write_bytes(content[:-1])
    damaged = call(elsewhere, "infer", moved, image, "--out", tmp_path / "c")
    assert damaged.returncode == 2
    assert re.fullmatch(
        r"error: .*weights\.pth is damaged, or was changed since the export.*\n", damaged.stderr
    )
    assert len(list(elsewhere.iterdir())) == 1


def test_modules_of_the_users_go_along(run: Run, image: Path, tmp_path: Path) -> None:
    text = run.config.read_text()
    run.code.joinpath("my_parts.py").write_text(
        "from mmseg.models.decode_heads import FCNHead\n"
        "from mmseg.registry import MODELS\n"
        "@MODELS.register_module()\n"
        "class MyHead(FCNHead): pass\n"
    )
    imports = "\ncustom_imports = dict(imports=['my_parts'], allow_failed_imports=False)\n"
    run.config.write_text(text.replace("FCNHead", "MyHead") + imports)
    (run.code / "tests").unlink()  # in a real run no user's module
    done = export(run, tmp_path / "model")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(run.path)
    done = call(tmp_path / "others", "infer", tmp_path / "model", image, "--out", tmp_path / "a", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "a" / "picture.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--check", "x.png"), "--check is for --onnx"),
        (("--checkpoint", "gone.pth"), "gone.pth"),
        (("--out", "FULL"), "contains other files"),
    ],
)
def test_a_mistake_is_one_line_and_no_job(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    given = [str(full) if one == "FULL" else one for one in arguments]
    weights = () if "--checkpoint" in given else ("--checkpoint", run.path / "weights.pth")
    before = events.read(run.events)
    done = call(run.path.parent, "export", "first", *weights, *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    assert events.read(run.events) == before


def test_an_older_runs_code_is_said_to_know_no_export(run: Run) -> None:
    (run.code / "jobs").unlink()
    (run.code / "jobs").mkdir()
    weights = run.path / "weights.pth"
    for script, more in (("export", ()), ("evaluate", ("--tta",))):
        done = call(run.path.parent, script, "first", "--checkpoint", weights, *more)
        assert done.returncode == 2
        assert "continues with the code that it was made with, which does not know" in done.stderr


@pytest.mark.skipif(not NO_ONNX, reason="the packages are there")
def test_without_the_packages_it_is_said_how_to_get_them(run: Run, tmp_path: Path) -> None:
    done = export(run, tmp_path / "model", "--onnx")
    assert done.returncode == 2
    wanted = "--onnx needs onnx and onnxruntime, not installed here: env/setup.sh --with onnx installs them"
    assert done.stderr.splitlines()[-1] == f"error: {wanted}"
    assert not (tmp_path / "model").exists()


@needs_onnx
def test_onnx_gives_what_pytorch_gives(run: Run, tmp_path: Path) -> None:
    import onnxruntime

    folder = tmp_path / "model"
    done = export(run, folder, "--onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    record: Any = exported.read(folder)
    found = record["onnx"]
    assert found["free"] == ["batch", "height", "width"]
    assert found["images"] == 6
    assert found["output"]["threshold"] is None
    assert 0 < found["max_difference"] < 1e-5 * found["largest_score"]
    assert found["changed"] < 0.001
    assert "largest difference" in done.stdout
    assert "model.onnx" in record["sha256"]
    # By the record alone, as somebody without PyTorch uses it, at a size of its own.
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 40, 72)).astype(np.float32)
    mean, std = (np.array(found["input"][key], np.float32)[:, None, None] for key in ("mean", "std"))
    session = onnxruntime.InferenceSession(str(folder / exported.ONNX), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {found["input"]["name"]: (pixels[:, ::-1] - mean) / std})
    assert scores.shape == (3, 21, 40, 72)


@needs_onnx
def test_a_graph_that_gives_something_else_is_no_export(tmp_path: Path) -> None:
    """What the tracer has frozen is noticed: first at other sizes, at last altogether."""
    import torch

    from jobs.export import to_onnx
    from jobs.run.errors import UserError

    class Model(torch.nn.Module):
        calls = 0

        def encode_decode(self, inputs: torch.Tensor, metas: list[Any]) -> torch.Tensor:  # noqa: ARG002
            Model.calls += 1
            frozen = torch.ones(int(inputs.shape[2]), int(inputs.shape[3]))  # of this size alone
            return inputs * frozen + (Model.calls if self.drifts else 0)

        drifts = False

    images = [torch.randn(1, 3, 8, 12), torch.randn(1, 3, 10, 6)]
    found = to_onnx.export(Model(), tmp_path / "a.onnx", images)
    assert found["free"] == ["batch"]
    # Also where no two images differ in a side, as all of a dataset may.
    for other in ((8, 12), (8, 20), (16, 12)):
        found = to_onnx.export(Model(), tmp_path / "a.onnx", [images[0], torch.randn(1, 3, *other)])
        assert (found["free"], found["images"]) == (["batch"], 2)
    Model.drifts = True
    with pytest.raises(
        UserError, match="cannot be exported as ONNX: what onnxruntime gives differs by up to"
    ):
        to_onnx.export(Model(), tmp_path / "b.onnx", images)
    assert not (tmp_path / "b.onnx").exists()


@needs_onnx
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_not_passed_over(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN is larger than nothing: a graph that gave some differed by 0 from PyTorch."""
    import onnxruntime
    import torch

    from jobs.export import to_onnx
    from jobs.run.errors import UserError

    class Model(torch.nn.Module):
        def encode_decode(self, inputs: torch.Tensor, metas: list[Any]) -> torch.Tensor:  # noqa: ARG002
            return torch.where(inputs > 0, inputs, -float("inf"))  # as of a class that is masked out

    class Session(onnxruntime.InferenceSession):
        def run(self, *arguments: Any) -> list[Any]:
            (scores,) = super().run(*arguments)
            scores.flat[0] = value
            return [scores]

    images = [torch.randn(1, 3, 8, 12), torch.randn(1, 3, 10, 6)]
    assert 0 < to_onnx.export(Model(), tmp_path / "a.onnx", images)["largest_score"] < 10
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(UserError, match="cannot be exported as ONNX: some scores are NaN, or infinite in"):
        to_onnx.export(Model(), tmp_path / "a.onnx", images)
    assert not (tmp_path / "a.onnx").exists()


@needs_onnx
def test_of_one_output_the_models_threshold_makes_the_class(tmp_path: Path) -> None:
    import torch

    from jobs.export import to_onnx

    class Model(torch.nn.Module):
        out_channels = 1

        class decode_head:
            threshold = 0.3

        def encode_decode(self, inputs: torch.Tensor, metas: list[Any]) -> torch.Tensor:  # noqa: ARG002
            return inputs[:, :1] * 2.0

    found = to_onnx.export(Model(), tmp_path / "a.onnx", [torch.randn(1, 3, 8, 12)])
    assert (found["images"], found["changed"]) == (1, 0)
    scores = np.array([[[[-0.9, -0.8, 0.1]]]], np.float32)  # the sigmoid is 0.3 at -0.847
    above = to_onnx.threshold(Model())
    assert to_onnx.classes(scores, above).tolist() == [[[False, True, True]]]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (7, None), 5])
def test_pooling_by_a_product_is_adaptive_pooling(size: Any) -> None:
    import torch

    from jobs.export import to_onnx

    images = torch.randn(2, 3, 11, 17, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool2d(images, size)
    torch.testing.assert_close(to_onnx.average(images, size), expected)


def test_the_record_says_what_a_later_version_wrote(tmp_path: Path) -> None:
    from jobs.run.errors import UserError

    assert exported.read(tmp_path) is None
    (tmp_path / "weights.pth").write_bytes(b"w")
    (tmp_path / "config.py").write_bytes(b"c")
    digests = {name: digest(tmp_path / name, "sha256") for name in ("weights.pth", "config.py")}
    for record, message in (
        ({"format": 2, "sha256": digests}, "by a newer version"),
        ({"format": 1}, "is damaged"),
        ({"format": 1, "sha256": digests | {"../x": "0"}}, "is missing"),
    ):
        (tmp_path / "export.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=message):
            exported.read(tmp_path)
