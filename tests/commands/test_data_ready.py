"""Which datasets a config needs, and whether they are ready, on their way or missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.catalog import manifest
from jobs.catalog.manifest import Manifest
from jobs.prepare import lock
from jobs.run import events
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from launch.observe import liveness
from launch.submit import configs, data_ready

ROOT = Path(__file__).resolve().parents[2]
MODEL = "model = dict(decode_head=dict())\ntrain_cfg = dict()\n"
ZOO = "mmseg::_base_/datasets/"


def chain(tmp_path: Path, text: str, overrides: dict[str, str] | None = None) -> configs.Chain:
    file = tmp_path / "config.py"
    file.write_text(MODEL + text)
    return configs.check(file, overrides, evaluated=False)


def needs(tmp_path: Path, text: str, **overrides: str) -> list[str]:
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return data_ready.paths(chain(tmp_path, text, given))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"_base_ = '{ZOO}ade20k.py'", ["ade/ADEChallengeData2016"]),
        (f"_base_ = '{ZOO}cityscapes.py'", ["cityscapes"]),
        # Two lists in a ConcatDataset, by names.
        (f"_base_ = '{ZOO}pascal_voc12_aug.py'", ["VOCdevkit/VOC2012"]),
        # The nearest file decides, loader by loader.
        (
            f"_base_ = '{ZOO}ade20k.py'\ntrain_dataloader = dict(dataset=dict(data_root='data/mine/a'))",
            ["ade/ADEChallengeData2016", "mine/a"],
        ),
        (
            f"_base_ = '{ZOO}ade20k.py'\ntrain_dataloader = {{'batch_size': 2}}\n"
            "root = 'data/cityscapes/'\nval_dataloader = {'dataset': {'data_root': root}}",
            ["ade/ADEChallengeData2016", "cityscapes"],
        ),
        # Not written out, or not below data/: left to the job.
        (
            f"_base_ = '{ZOO}ade20k.py'\ntrain_dataloader = dict(dataset=dict(_delete_=True, type='Mine'))\n"
            "val_dataloader = dict(dataset=dict(data_root='/scratch/mine'))",
            [],
        ),
        (
            f"_base_ = '{ZOO}ade20k.py'\nimport os\n"
            "train_dataloader = dict(dataset=dict(data_root=os.environ['HOME']))\n"
            "val_dataloader = dict()\nval_dataloader['dataset'] = train_dataloader",
            # Merged over what the base has there, which stays.
            ["ade/ADEChallengeData2016"],
        ),
    ],
)
def test_the_data_roots_of_a_config(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert needs(tmp_path, text) == expected


def test_a_relative_data_root_means_nothing_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    monkeypatch.chdir(tmp_path)
    text = (
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(data_root='./datasets/')))\n"
        "val_dataloader = dict(dataset=dict(data_root='ROOT'))"
    )
    with pytest.raises(UserError) as error:
        data_ready.check_relative(chain(tmp_path, text.replace("ROOT", "./datasets/")))
    keys = "train_dataloader.dataset.dataset.data_root", "val_dataloader.dataset.data_root"
    whole = " ".join(f"{key}={tmp_path}/datasets" for key in keys)
    assert str(error.value).endswith(f"its absolute path: --set {whole}")
    other = "train_dataloader = dict()\nval_dataloader = dict(dataset=dict(data_root='ROOT'))"
    for root in ("../data/mine", "~/mine"):
        with pytest.raises(UserError, match=f"the config reads {root}, but a job runs in its own directory"):
            data_ready.check_relative(chain(tmp_path, other.replace("ROOT", root)))
    for root in ("data/mine", "./data", "/scratch/mine", "", "configs/lists"):
        data_ready.check_relative(chain(tmp_path, other.replace("ROOT", root)))


def test_set_wins_over_the_config(tmp_path: Path) -> None:
    text = f"_base_ = '{ZOO}ade20k.py'"
    both = {
        "train_dataloader__dataset__data_root": "data/a",
        "val_dataloader__dataset__data_root": "data/b/c",
    }
    assert needs(tmp_path, text, **both) == ["a", "b/c"]


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_the_recipes_need_voc(config: Path) -> None:
    assert data_ready.paths(configs.check(config)) == ["VOCdevkit/VOC2012"]


# --- ready, on its way, missing ---

ADE, CITY, VOC = (f"_base_ = '{ZOO}{name}.py'" for name in ("ade20k", "cityscapes", "pascal_voc12_aug"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path / "runs"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def made(data: Path, folder: str) -> None:
    (data / folder).mkdir(parents=True)
    content = manifest.to_json(Manifest(folder, "", 0, 0, ""))
    (data / folder / manifest.MANIFEST).write_bytes(content)


def prerequisites(data: Path, text: str, executor: str = "slurm") -> data_ready.Prerequisites:
    return data_ready.wait_for(data, executor, chain(data.parent, text))


def test_one_dataset_that_is_ready_is_not_another(data: Path) -> None:
    made(data, "ade")
    assert prerequisites(data, ADE) == data_ready.Prerequisites()
    with pytest.raises(UserError, match=r"VOCdevkit: python launch/prepare.py --data-root \S+ makes it"):
        prerequisites(data, VOC)
    with pytest.raises(UserError, match="--dataset cityscapes makes it"):
        prerequisites(data, CITY)
    made(data, "VOCdevkit")
    assert prerequisites(data, VOC) == data_ready.Prerequisites()
    with pytest.raises(UserError, match=r"no prepared dataset in \S+/cityscapes"):
        prerequisites(data, CITY)


def test_data_of_the_users_own_are_taken_as_they_are(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = "train_dataloader = dict(dataset=dict(data_root='data/mine/x'))"
    with pytest.raises(UserError, match="the config reads data/mine/x, and there is no"):
        prerequisites(data, mine)
    (data / "mine/x").mkdir(parents=True)
    assert prerequisites(data, mine) == data_ready.Prerequisites()
    assert prerequisites(data, "train_dataloader = dict()") == data_ready.Prerequisites()
    assert capsys.readouterr().err == ""
    # Converted by hand, years ago.
    (data / "cityscapes").mkdir()
    assert prerequisites(data, CITY) == data_ready.Prerequisites()
    assert "not made by launch/prepare.py" in capsys.readouterr().err
    # VOC made by hand lacks 330 masks of its own list, mostly.
    (data / "VOCdevkit/VOC2012").mkdir(parents=True)
    with pytest.raises(UserError, match="not made by prepare"):
        prerequisites(data, VOC)
    context = f"_base_ = '{ZOO}pascal_context.py'"
    with pytest.raises(UserError, match="VOC2010"):
        prerequisites(data, context)
    (data / "VOCdevkit/VOC2010").mkdir()
    assert prerequisites(data, context) == data_ready.Prerequisites()


def request(name: str, data: Path, dataset: str, verify: str = "", **more: Any) -> Run:
    run = Run(data.parent / "runs" / "prepare" / name)
    run.job.mkdir(parents=True, exist_ok=True)
    run.write_request(
        Request(name=name, config="", data_root=str(data), created="", dataset=dataset, verify=verify, **more)
    )
    return run


def test_a_preparation_on_its_way_is_that_of_its_dataset(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(liveness, "is_alive", lambda _, job: job in ("41", "42", f"local-{os.getpid()}"))
    (data.parent / "link").symlink_to(data.parent)  # another way to write the same folder
    run = request("prepare-1", data, "ade20k")
    events.append(run.events, "submitted", stage="prepare", job="41", executor="slurm")
    looks = request("prepare-2", data, "", verify="deep")
    events.append(looks.events, "submitted", stage="prepare", job="42", executor="slurm")
    found = data_ready.wait_for(data.parent / "link/data", "slurm", chain(data.parent, ADE))
    assert found.dependency == "41"
    # Neither a preparation of another dataset nor a look at this one makes it.
    with pytest.raises(UserError, match="there is no prepared dataset"):
        prerequisites(data, VOC)
    with pytest.raises(UserError, match="by 41, which no local run can wait for"):
        prerequisites(data, ADE, "local")

    voc = request("prepare-3", data, "voc")
    events.append(voc.events, "submitted", stage="prepare", job=f"local-{os.getpid()}", executor="local")
    found = prerequisites(data, VOC, "local")
    assert found.jobs == []
    assert found.stages == [["--data-root", str(data), "--dataset", "voc", "--wait-only", str(os.getpid())]]
    with pytest.raises(UserError, match="which no Slurm job can wait for"):
        prerequisites(data, VOC)
    both = f"{VOC}\nval_dataloader = dict(dataset=dict(data_root='data/ade'))"
    events.append(voc.events, "submitted", stage="prepare", job="42", executor="slurm")
    assert prerequisites(data, both).dependency == "42:41"


def test_a_colleagues_preparation_is_no_reason_to_refuse(data: Path) -> None:
    """In a checkout that several use. A damaged request stands for one that its owner alone can read."""
    theirs = request("prepare-1", data, "voc")
    events.append(theirs.events, "submitted", stage="prepare", job="41", executor="slurm")
    theirs.request_file.write_bytes(bytes(30))
    request("prepare-2", data, "voc").events.mkdir()
    assert data_ready.preparing(data, "VOCdevkit") is None
    with pytest.raises(UserError, match="there is no prepared dataset"):
        prerequisites(data, VOC)


def test_weights_still_on_their_way_are_waited_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preparation fetches them when the dataset is there."""

    monkeypatch.setattr(liveness, "is_alive", lambda _, job: job == "42")
    made(data, "VOCdevkit")
    needy = f"{VOC}\nmodel = dict(decode_head=dict(), pretrained='open-mmlab://resnet50_v1c')"
    with pytest.raises(UserError, match=r"resnet50_v1c-2cccc1ad\.pth"):
        prerequisites(data, needy)
    run = request("prepare-1", data, "voc")
    events.append(run.events, "submitted", stage="prepare", job="42", executor="slurm")
    assert prerequisites(data, needy).dependency == "42"
    assert prerequisites(data, VOC) == data_ready.Prerequisites()


def test_weights_that_no_preparation_fetches_are_missed_however_that_was_said(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request says which are fetched; an option may be abbreviated, or have its value behind a `=`."""

    monkeypatch.setattr(liveness, "is_alive", lambda _, job: job == "42")
    made(data, "VOCdevkit")
    run = request("prepare-1", data, "voc", weights=[], command=["launch/prepare.py", "--no-w"])
    events.append(run.events, "submitted", stage="prepare", job="42", executor="slurm")
    needy = f"{VOC}\nmodel = dict(decode_head=dict(), pretrained='open-mmlab://resnet101_v1c')"
    with pytest.raises(UserError, match=r"resnet101_v1c-"):
        prerequisites(data, needy)
    reference = "open-mmlab://resnet101_v1c"
    request("prepare-1", data, "voc", weights=[reference], command=["prepare.py", f"--weights={reference}"])
    assert prerequisites(data, needy).dependency == "42"


def test_the_lock_says_which_dataset_is_being_prepared(data: Path) -> None:
    with lock.hold(data, folder="ade"):
        found = prerequisites(data, ADE, "local")
        assert found.stages == [["--data-root", str(data), "--dataset", "ade20k", "--wait-only", "0"]]
        with pytest.raises(UserError, match=r"no prepared dataset in \S+/VOCdevkit"):
            prerequisites(data, VOC, "local")


# --- waiting, in the chain ---


def test_who_only_waits_makes_nothing(data: Path) -> None:
    """It returns when the dataset has come, and says so when whoever was to make it has gone."""
    wait = [sys.executable, "-m", "jobs.prepare", "--data-root", str(data), "--dataset", "ade20k"]
    gone = subprocess.run([*wait, "--wait-only"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert gone.returncode == 2
    assert "has ended without finishing: python launch/prepare.py" in gone.stderr
    assert list(data.iterdir()) == []

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as preparer:
        waiting = subprocess.Popen(
            [*wait, "--wait-only", str(preparer.pid)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert waiting.stdout
        assert "is being prepared; waiting" in waiting.stdout.readline()
        (data / "ade").mkdir()
        (data / "ade" / manifest.FILES).write_bytes(b"")
        content = Manifest("ade20k", "", 0, 0, manifest.table_digest(b""))
        (data / "ade" / manifest.MANIFEST).write_bytes(manifest.to_json(content))
        second = subprocess.Popen(
            [*wait[:-1], "cityscapes", "--wait-only", str(preparer.pid)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert second.stdout
        second.stdout.readline()
        # It may have more to do when the dataset is there.
        assert waiting.poll() is None
        os.kill(preparer.pid, signal.SIGKILL)
        preparer.wait()
        assert waiting.wait(30) == 0
        _, said = second.communicate(timeout=30)
        assert second.returncode == 2
        assert "cityscapes that was waited for has ended without finishing" in said
