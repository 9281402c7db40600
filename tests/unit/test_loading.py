"""Files of weights that would run code: attacked through every door by which a training loads one."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.mmseg import compat
from jobs.run.errors import UserError

compat.prepare()

from mmengine.runner import CheckpointLoader, load_checkpoint  # noqa: E402
from mmengine.runner.checkpoint import load_url  # noqa: E402

from jobs.prepare import weights  # noqa: E402


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark; a file with code in it lies wherever a training would look for one."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data" / "pretrained"
    place.mkdir(parents=True)
    for name in ("resnet50_v1c-2cccc1ad.pth", "resnet50-0676ba61.pth", "evil.pth", "vgg16.pth"):
        torch.save({"state_dict": {"x": Evil(tmp_path / "ran")}}, place / name)
    (place / "old.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    return tmp_path / "ran"


REFERENCES = (
    *("open-mmlab://resnet50_v1c", "openmmlab://resnet50_v1c", "mmcls://vgg16", "mmcls://data/pretrained/evil.pth"),
    *("torchvision://resnet50", "modelzoo://resnet50", "http://h/evil.pth", "https://h/d/evil.pth?x=1"),
    *("data/pretrained/evil.pth", "data/pretrained/old.pth"),
)  # fmt: skip


@pytest.mark.parametrize("reference", REFERENCES)
def test_no_scheme_runs_what_is_in_a_file(reference: str, evil: Path) -> None:
    for load in (
        lambda: CheckpointLoader.load_checkpoint(reference, map_location="cpu"),
        lambda: load_checkpoint(torch.nn.Linear(1, 1), reference),
    ):
        with pytest.raises(UserError, match="it holds more than weights"):
            load()
        assert not evil.exists()


def test_every_scheme_of_mmengine_is_ours() -> None:
    loaders = CheckpointLoader._schemes
    assert {"", "http://", "https://", "pavi://", "torchvision://", "modelzoo://"} <= loaders.keys()
    ours = {compat.load_named, compat.load_backbone}
    assert {prefix: loader for prefix, loader in loaders.items() if loader not in ours} == {}


@pytest.mark.parametrize(
    "reference", ["pavi://x/y", "s3://bucket/evil.pth", "a:petrel://b/evil.pth", "ftp://h/x"]
)
def test_a_scheme_that_no_preparation_fetches_is_refused(reference: str, evil: Path) -> None:
    with pytest.raises(UserError, match="unknown pretrained weights"):
        CheckpointLoader.load_checkpoint(reference)
    assert not evil.exists()


@pytest.mark.parametrize("unsafe", [{}, {"weights_only": False}, {"weights_only": None}])
def test_torch_load_itself_runs_nothing(unsafe: dict[str, Any], evil: Path) -> None:
    """As a backbone that loads for itself calls it, by path and by an open file."""
    for name in ("evil.pth", "old.pth"):
        path = Path("data/pretrained") / name
        for source in (path, str(path), io.BytesIO(path.read_bytes())):
            with pytest.raises(pickle.UnpicklingError):
                torch.load(source, **unsafe)
            assert not evil.exists()
    torch.save({"a": torch.arange(3)}, "good.pth")
    for good in (Path("good.pth"), io.BytesIO(Path("good.pth").read_bytes())):
        assert torch.load(good, map_location="cpu", **unsafe)["a"].tolist() == [0, 1, 2]


def test_a_job_downloads_nothing(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(evil.parent / "torch"))
    for load in (
        lambda: torch.hub.load_state_dict_from_url("http://127.0.0.1:9/evil-00000000.pth"),
        lambda: load_url("http://127.0.0.1:9/evil.pth"),
        lambda: torch.hub.load("someone/something:main", "model", trust_repo=True, skip_validation=True),
    ):
        with pytest.raises(UserError, match=r"jobs download nothing.*prepare\.py --weights http"):
            load()
    # What is in torch's cache already is read like any other file.
    cached = Path(torch.hub.get_dir()) / "checkpoints" / "evil-00000000.pth"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes((Path("data/pretrained") / "evil.pth").read_bytes())
    with pytest.raises(pickle.UnpicklingError):
        torch.hub.load_state_dict_from_url("http://127.0.0.1:9/evil-00000000.pth", weights_only=False)
    assert not evil.exists()


@pytest.mark.usefixtures("evil")
def test_what_is_missing_names_the_command_that_fetches_it() -> None:
    with pytest.raises(UserError, match=r"prepare\.py --weights https://h/absent\.pth fetches them"):
        CheckpointLoader.load_checkpoint("https://h/absent.pth")


@pytest.mark.parametrize("name", ["evil.pth", "old.pth", "cut.pth"])
def test_a_preparation_sets_aside_what_no_training_would_load(name: str, evil: Path) -> None:
    place = Path("data/pretrained")
    torch.save({"state_dict": {"x": torch.zeros(3)}}, place / "good.pth")
    (place / "cut.pth").write_bytes((place / "good.pth").read_bytes()[:-300])
    weights.check_content(place / "good.pth")
    with pytest.raises(UserError, match=rf"{name}\.damaged holds more than weights, or is damaged"):
        weights.check_content(place / name)
    assert not (place / name).exists()
    assert (place / f"{name}.damaged").exists()
    assert not evil.exists()


def test_the_file_of_the_attack_does_run_code_where_nothing_stops_it(evil: Path) -> None:
    """Or the tests above would prove nothing."""
    program = "import torch; torch.load('data/pretrained/evil.pth', weights_only=False)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert evil.exists()
