"""`python -m jobs.evaluate`: two processes give the figures of one, pictures of what is asked for, once."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.evaluate import per_image
from jobs.run import events
from jobs.run.directory import Run
from launch.observe.report import data as report_data


def evaluate(
    run: Run, *arguments: str, processes: int = 1, job: int | None = None
) -> list[subprocess.CompletedProcess[str]]:
    tasks = []
    for rank in range(processes):
        place = {"JOB_ID": str(job or os.getpid()), "NTASKS": str(processes), "GLOBALID": str(rank)}
        place |= {"LOCALID": str(rank), "NODEID": "0", "JOB_NUM_NODES": "1"}
        environment = os.environ | {f"SUBMITIT_LOCAL_{key}": value for key, value in place.items()}
        command = [sys.executable, "-m", "jobs.evaluate", str(run.path)]
        tasks.append(
            subprocess.Popen(
                [*command, "--checkpoint", "../weights.pth", *arguments],
                cwd=run.code,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    done = []
    for task in tasks:
        out, err = task.communicate(timeout=180)
        done.append(subprocess.CompletedProcess(task.args, task.returncode, out, err))
    return done


MORE = """
custom_imports = dict(imports=['tests.own_metrics'], allow_failed_imports=False)
test_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore']),
    dict(type='InOrder'),
    dict(type='IoUMetric', ignore_index=0, prefix='figures only'),
    dict(type='Broken'),
    dict(type='NoSuchMetric'),
]
"""


def with_more(run: Run, folder: Path, text: str) -> Run:
    """The run again, with more in its config."""
    own = Run(folder / "run")
    shutil.copytree(run.path, own.path, symlinks=True, ignore=shutil.ignore_patterns("eval", "infer"))
    own.config.write_text(run.config.read_text() + "\n" + text)
    return own


def figures(folder: Path) -> dict[str, Any]:
    """metrics.json without what tells the processes apart."""
    found = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in TIMINGS}


TIMINGS = {"processes", "seconds", "seconds_rank_0"}
TABLES = ("confusion.csv", "per_class.csv", "per_image.csv")


def test_two_processes_count_as_one(random_run: Run, tmp_path: Path) -> None:
    run = with_more(random_run, tmp_path, MORE)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = evaluate(run, "--out", str(out), "--pictures", "all", processes=processes)
        assert [one.returncode for one in done] == [0] * processes, done[0].stderr
        assert "mIoU" in done[0].stdout
        assert len(list((out / "pictures").iterdir())) == 6
        width, height = Image.open(next((out / "pictures").iterdir())).size
        assert (width, height) == (3 * 80 + 2 * 4, 60)
        assert (
            "not computed: Broken: ZeroDivisionError: nothing to divide by (own_metrics.py:" in done[0].stdout
        )
    one = figures(tmp_path / "1")
    assert one == figures(tmp_path / "2")
    assert sum(c["pixels"] for c in one["classes"]) == 6 * 60 * 80
    for table in TABLES:
        assert (tmp_path / "1" / table).read_bytes() == (tmp_path / "2" / table).read_bytes()
    counts = [dict(np.load(tmp_path / str(n) / "per_image.npz", allow_pickle=False)) for n in (1, 2)]
    assert all((counts[0][key] == counts[1][key]).all() for key in ("names", *per_image.KINDS))
    assert len(set(counts[0]["names"])) == 6
    assert counts[0]["truth"].sum(0).tolist() == [c["pixels"] for c in one["classes"]]
    assert 100 * counts[0]["hits"].sum() / counts[0]["truth"].sum() == pytest.approx(one["aAcc"])
    assert [e["event"] for e in events.read(run.events)].count("evaluated") == 2

    # The config's other metrics, and what is said of those that cannot be had.
    assert (one["own/images"], one["own/classes"]) == (6, 21)  # mmengine cuts results to the images' number
    assert one["figures only/aAcc"] != one["aAcc"]
    assert [why.partition(":")[0] for why in one["not_computed"]] == ["Broken", "NoSuchMetric"]
    told = events.read(run.events)[-1]["metrics"]
    assert told["own/digest"] == one["own/digest"]
    # Intervals hold what they are of.
    for name in ("mIoU", "aAcc", "fwIoU", "mBoundaryIoU", "mFscore"):
        low, high = one["intervals"][name]
        assert low <= one[name] <= high
        assert low < high


def test_several_at_once_count_as_one_by_one(random_run: Run, tmp_path: Path) -> None:
    """Also images of two sizes, in turn, and other metrics, whose results stay in the images' order."""
    run = with_more(random_run, tmp_path, MORE)
    folder = (run.code / "data").resolve() / "VOCdevkit/VOC2012"
    data = tmp_path / "data/VOCdevkit/VOC2012"
    shutil.copytree(folder, data)
    for number, name in enumerate((data / "ImageSets/Segmentation/val.txt").read_text().split()):
        for path in (data / f"JPEGImages/{name}.jpg", data / f"SegmentationClass/{name}.png"):
            if number % 2:
                Image.open(path).resize((64, 48), Image.Resampling.NEAREST).save(path)
    (run.code / "data").unlink()
    (run.code / "data").symlink_to(tmp_path / "data")
    for batch in (1, 2):
        out = str(tmp_path / str(batch))
        (done,) = evaluate(run, "--out", out, "--pictures", "0", "--batch", str(batch))
        assert done.returncode == 0, done.stderr
    one, two = figures(tmp_path / "1"), figures(tmp_path / "2")
    assert (one["batch"], two["batch"]) == (1, 2)
    for name in ("mIoU", "aAcc", "mBoundaryIoU", "own/images", "own/classes"):
        assert two[name] == pytest.approx(one[name], abs=0.05), name
    counts = [dict(np.load(tmp_path / str(n) / "per_image.npz", allow_pickle=False)) for n in (1, 2)]
    assert (counts[0]["truth"] == counts[1]["truth"]).all()
    assert (counts[0]["names"] == counts[1]["names"]).all()
    wrong = np.abs(counts[0]["hits"].astype(int) - counts[1]["hits"].astype(int)).sum()
    assert wrong < counts[0]["truth"].sum() / 500


def test_the_worst_images_come_first(random_run: Run, tmp_path: Path) -> None:
    run = with_more(random_run, tmp_path, "")
    drawn = {}
    for number, processes in (("2", 2), ("all", 1)):
        out = run.eval / number
        done = evaluate(run, "--out", str(out), "--pictures", number, processes=processes)
        assert [one.returncode for one in done] == [0] * processes, done[0].stderr
        drawn[number] = sorted(path.name for path in (out / "pictures").iterdir())
    table = list(csv.DictReader((run.eval / "all" / "per_image.csv").read_text().splitlines()))
    scores = [float(row["mIoU"]) for row in table]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]
    assert [row["picture"] for row in table] == drawn["all"]
    assert [Path(row["image"]).stem for row in table] == [name[2:-4] for name in drawn["all"]]
    assert drawn["2"] == drawn["all"][:2]
    for name in drawn["2"]:
        assert (run.eval / "2/pictures" / name).read_bytes() == (
            run.eval / "all/pictures" / name
        ).read_bytes()
    found = report_data.evaluation_of(run)
    assert found is not None
    captions = [f"{name[2:-4]} · mIoU {score:.2f}" for name, score in zip(drawn["all"], scores, strict=True)]
    assert [caption for caption, _ in found.pictures] == captions


@pytest.mark.parametrize("given", [True, False], ids=["the config's", "by default"])
def test_augmentation_is_the_same_on_two_processes(random_run: Run, tmp_path: Path, given: bool) -> None:
    run = with_more(random_run, tmp_path, TTA if given else "")
    evaluate(run, "--out", str(tmp_path / "plain"), "--pictures", "0")
    for processes in (1, 2):
        out = str(tmp_path / str(processes))
        done = evaluate(run, "--out", out, "--pictures", "1", "--tta", processes=processes)
        assert [one.returncode for one in done] == [0] * processes, done[0].stderr
    one, plain = figures(tmp_path / "1"), figures(tmp_path / "plain")
    assert one == figures(tmp_path / "2")
    assert (one["augmented"], plain["augmented"]) == ("the config's" if given else "6 scales, flipped", None)
    assert one["mIoU"] != plain["mIoU"]
    # The annotation is not augmented.
    pixels = [[c["pixels"] for c in found["classes"]] for found in (one, plain)]
    assert pixels[0] == pixels[1]
    if given:  # one image, not changed at all: the model's own result
        assert one["aAcc"] == pytest.approx(plain["aAcc"])


TTA = """
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=(64, 48), keep_ratio=True)],
        [dict(type='RandomFlip', prob=1.0, direction='horizontal'), dict(type='RandomFlip', prob=0.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]),
]
"""


def test_an_evaluation_has_a_folder_of_its_own_with_augmentation(random_run: Run, tmp_path: Path) -> None:
    run = with_more(random_run, tmp_path, "")
    for arguments in ((), ("--tta",), ("--tta",)):
        (done,) = evaluate(run, "--pictures", "0", *arguments)
        assert done.returncode == 0, done.stderr
    assert "has already been evaluated" in done.stdout
    plain, augmented = sorted(run.eval.iterdir())
    assert augmented.name == f"{plain.name}-tta"


def test_results_that_cannot_be_sent_are_named(random_run: Run, tmp_path: Path) -> None:
    metric = "test_evaluator = [test_evaluator, dict(type='Unsendable')]\n"
    imports = "custom_imports = dict(imports=['tests.own_metrics'], allow_failed_imports=False)\n"
    run = with_more(random_run, tmp_path, imports + metric)
    for processes in (1, 2):
        out = str(tmp_path / str(processes))
        done = evaluate(run, "--out", out, "--pictures", "0", processes=processes)
        assert [one.returncode for one in done] == [0] * processes, done[0].stderr
    one = figures(tmp_path / "1")
    assert (one["images"], one["Unsendable/images"]) == (6, 6)
    (why,) = figures(tmp_path / "2")["not_computed"]
    assert why.startswith(
        "Unsendable: what one rank tells the others (a metric's results, say) holds a builtins"
    )


OWN = """
model['decode_head'].update(num_classes=2, out_channels=1)
model['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
model['data_preprocessor'].update(mean=[0.0] * {bands}, std=[1e4] * {bands}, bgr_to_rgb=False)
model['backbone']['in_channels'] = {bands}
test_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader['dataset'] = dict(
    type='BaseSegDataset', data_root='data/own', data_prefix=dict(img_path='img', seg_map_path='ann'),
    img_suffix='.tif', metainfo=dict(classes=('ground', 'thing'), palette=[[0, 0, 0], [0, 255, 0]]),
    pipeline=[
        dict(type='LoadImageFromFile', imdecode_backend='tifffile', to_float32=True),
        dict(type='LoadAnnotations'), dict(type='PackSegInputs'),
    ],
)
val_dataloader = test_dataloader
"""


@pytest.mark.parametrize("bands", [3, 5])
def test_a_binary_model_with_one_output_is_evaluated_and_drawn(
    bands: int, random_run: Run, tmp_path: Path
) -> None:
    import tifffile
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from jobs.mmseg import compat

    compat.prepare()
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    random = np.random.default_rng(0)
    for name in ("img", "ann"):
        (tmp_path / "own" / name).mkdir(parents=True)
    for number in range(3):
        pixels = random.integers(0, 1 << (8 if bands == 3 else 16), (48, 64, bands))
        tifffile.imwrite(
            tmp_path / f"own/img/{number}.tif", pixels.astype(np.uint8 if bands == 3 else np.uint16),
            photometric="rgb" if bands == 3 else "minisblack", planarconfig="contig",
        )  # fmt: skip
        Image.fromarray(random.integers(0, 2, (48, 64)).astype(np.uint8)).save(
            tmp_path / f"own/ann/{number}.png"
        )
    run = with_more(random_run, tmp_path, OWN.format(bands=bands))
    (run.code / "data").unlink()
    (run.code / "data").symlink_to(tmp_path)
    register_all_modules(init_default_scope=False)
    init_default_scope("mmseg")
    model = MODELS.build(Config.fromfile(run.config).model)
    torch.save({"state_dict": model.state_dict()}, run.path / "weights.pth")

    (done,) = evaluate(run, "--pictures", "all", "--out", str(run.eval / "own"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = figures(run.eval / "own")
    assert 0 < found["mIoU"] < 100
    assert [one["name"] for one in found["classes"]] == ["ground", "thing"]
    assert sum(1 for path in (run.eval / "own").rglob("*.jpg")) == 3
    assert "no picture of" not in done.stdout


def test_a_result_that_is_there_is_not_made_again(random_run: Run) -> None:
    (first,) = evaluate(random_run, "--pictures", "2")
    (folder,) = random_run.eval.iterdir()
    assert first.returncode == 0, first.stderr
    written = (folder / "metrics.json").stat().st_mtime_ns
    assert len(list((folder / "pictures").iterdir())) == 2
    # Killed before it could say so.
    lines = random_run.events.read_bytes().splitlines(keepends=True)
    random_run.events.write_bytes(b"".join(lines[:-1]))
    (second,) = evaluate(random_run)
    assert second.returncode == 0
    assert "has already been evaluated" in second.stdout
    assert (folder / "metrics.json").stat().st_mtime_ns == written
    evaluate(random_run)
    told = [e for e in events.read(random_run.events) if e.get("path") == str(folder)]
    first_time = json.loads(lines[-1])
    assert [{**e, "time": ""} for e in told] == [{**first_time, "time": ""}]
    # Another job, as after a training that was made longer and is no better: it has a result all the same.
    evaluate(random_run, job=17)
    told = [e["job"] for e in events.read(random_run.events) if e.get("path") == str(folder)]
    assert told == [first_time["job"], "local-17"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pictures", "2008_999999"), "no image 2008_999999"),
        (("--checkpoint", "gone.pth"), "there is no checkpoint gone.pth"),
    ],
)
def test_a_mistake_is_one_line(random_run: Run, arguments: tuple[str, ...], message: str) -> None:
    (done,) = evaluate(random_run, "--again", *arguments)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert message in error
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_model_is_refused(random_run: Run, tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": {"backbone.other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    (done,) = evaluate(random_run, "--checkpoint", str(tmp_path / "other.pth"))
    assert done.returncode == 2
    assert "does not fit the run's model" in done.stderr
    failed = events.read(random_run.events)[-1]
    assert (failed["event"], failed["stage"], failed["exit_code"]) == ("failed", "evaluate", 2)
    assert failed["reason"] in done.stderr
