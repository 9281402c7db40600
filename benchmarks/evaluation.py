"""Evaluation against mmseg's: the metric alone, and the whole test by as many processes of either kind.

The metric: figures of generated label maps of VOC's size (500 × 375, 21 classes), from class numbers to
mIoU, one core. The whole test: both commands from start to end, on the same generated pictures, the same
processes and the same weights (the demo's network, with random weights, and the recipe's test transforms);
both must find the same figures. Timed is CPU time, which other work on the machine does not lengthen; where
ours goes (model, loading, counting) is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from benchmarks import harness, pipeline  # noqa: E402
from jobs import compat  # noqa: E402
from jobs.run_directory import Request, Run  # noqa: E402

CLASSES = 21
WEIGHTS = "weights.pth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        stock_test(Run(arguments.peer))
        return
    metric_alone(arguments.rounds)
    whole_test(arguments.images, arguments.processes, arguments.rounds)


def metric_alone(rounds: int, images: int = 50) -> None:
    compat.prepare()
    import torch
    from mmengine.logging import MMLogger
    from mmseg.evaluation import IoUMetric

    from jobs.evaluate.metric import FastIoUMetric

    torch.set_num_threads(1)
    MMLogger.get_instance("benchmark", log_level="ERROR")  # no tables
    maps = [(label_map(2 * number, 255), label_map(2 * number + 1, 0)) for number in range(images)]
    samples = [
        {
            "gt_sem_seg": {"data": torch.from_numpy(truth.astype(np.int64))[None]},
            "pred_sem_seg": {"data": torch.from_numpy(prediction.astype(np.int64))[None]},
        }
        for truth, prediction in maps
    ]
    found: dict[str, Any] = {}

    def images_a_second(kind: type[IoUMetric]) -> float:
        metric = kind()
        metric.dataset_meta = {"classes": [str(number) for number in range(CLASSES)]}
        begin = time.process_time()
        for sample in samples:
            metric.process({}, [sample])
        found[kind.__name__] = metric.evaluate(len(samples))
        return images / (time.process_time() - begin)

    harness.compare(
        "evaluation_metric",
        "evaluation metric (IoU, accuracy, per class), one core",
        lambda: images_a_second(FastIoUMetric),
        lambda: images_a_second(IoUMetric),
        against="mmseg's IoUMetric",
        goal=1.5,
        unit="images/s",
        better="higher",
        rounds=rounds,
        note="label maps of VOC's size; same figures",
    )
    ours, theirs = found["FastIoUMetric"], found["IoUMetric"]
    if any(abs(ours[key] - theirs[key]) > 0.0101 for key in theirs):  # both are rounded, float64 and float32
        raise AssertionError(f"the figures differ: {found}")


def label_map(number: int, border: int) -> np.ndarray[Any, Any]:
    """Labels (375 × 500, uint8): some rectangles on background, their borders marked with `border`."""
    random = np.random.default_rng(number)
    labels = np.zeros((375, 500), np.uint8)
    for _ in range(3):
        top, left = random.integers(0, 300), random.integers(0, 400)
        height, width = random.integers(40, 200, 2)
        labels[top : top + height, left : left + width] = border
        labels[top + 3 : top + height - 3, left + 3 : left + width - 3] = random.integers(1, CLASSES)
    return labels


def whole_test(images: int, processes: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), images)
        command = [sys.executable, "-m", "jobs.evaluate", str(run.path), "--again", "--pictures", "0"]
        command += ["--checkpoint", str(run.path / WEIGHTS), "--out", str(run.path / "ours")]
        peer_command = [sys.executable, str(Path(__file__)), "--peer", str(run.path)]
        harness.compare(
            "evaluation",
            f"whole test of {images} images, {processes} processes on the CPU",
            lambda: start(command, processes, run),
            lambda: start(peer_command, processes, run),
            against="mmseg's test",
            goal=1 / 1.5,
            unit="CPU seconds of all processes",
            better="lower",
            rounds=rounds,
            note="the demo's network; start-up of the processes included",
            details={"processes": processes},
        )
        ours = json.loads((run.path / "ours" / "metrics.json").read_text())
        theirs = json.loads((run.path / "theirs.json").read_text())
        print("seconds of rank 0 by part:", ours["seconds_rank_0"])
        for key in ("mIoU", "mAcc", "aAcc"):
            if abs(ours[key] - theirs[key]) > 0.0051:
                raise AssertionError(f"{key}: {ours[key]} here, {theirs[key]} by mmseg")


def make_run(folder: Path, images: int) -> Run:
    """A run directory with the demo's network, random weights, and a validation set of `images` pictures."""
    compat.prepare()
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    from jobs import model as models

    base = folder / "data" / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    for number in range(images):
        sample = pipeline.make_sample(folder, number)
        for key, target in (("img_path", "JPEGImages"), ("seg_map_path", "SegmentationClass")):
            path = Path(sample[key])
            path.rename(base / target / path.name)
    names = "".join(f"{number}\n" for number in range(images))
    (base / "ImageSets/Segmentation/val.txt").write_text(names)

    run = Run(folder / "run")
    run.code.mkdir(parents=True)
    (run.code / "data").symlink_to(folder / "data")
    for name in ("jobs", "configs", "benchmarks"):
        (run.code / name).symlink_to(ROOT / name)
    run.write_request(
        Request(name="run", config="configs/demo.py", data_root=str(folder / "data"), created="")
    )
    cfg = Config.fromfile(str(ROOT / "configs/demo.py"))
    recipe = Config.fromfile(str(ROOT / pipeline.RECIPE))
    cfg.test_dataloader.dataset.pipeline = recipe.test_dataloader.dataset.pipeline
    # Each process has one core; workers would only take it from the model.
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    models.synchronised_to_plain(cfg.model)
    cfg.dump(str(run.config))
    register_all_modules()
    init_default_scope("mmseg")
    torch.manual_seed(0)
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, run.path / WEIGHTS)
    return run


def start(command: list[str], processes: int, run: Run) -> float:
    """Runs the command once a rank, waits for all, returns their CPU seconds (each has one thread).

    Raises RuntimeError if one fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in range(processes):
        place = {"JOB_ID": str(os.getpid()), "NTASKS": str(processes), "GLOBALID": str(rank)}
        env = {f"SUBMITIT_LOCAL_{key}": value for key, value in (place | {"LOCALID": str(rank)}).items()}
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        log = (run.path / f"{rank}.log").open("w")
        started.append(subprocess.Popen(command, cwd=run.code, env=os.environ | env, stdout=log, stderr=log))
    codes = [process.wait() for process in started]
    if any(codes):
        logs = "\n".join((run.path / f"{rank}.log").read_text()[-2000:] for rank in range(processes))
        raise RuntimeError(f"{' '.join(command)} failed with {codes}:\n{logs}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stock_test(run: Run) -> None:
    """mmseg's own test of the run's config and weights, as its tools/test.py does it; writes theirs.json."""
    compat.prepare()
    import torch.distributed as dist
    from mmengine.config import Config
    from mmengine.runner import Runner

    cfg = Config.fromfile(str(run.config))
    cfg.work_dir = str(run.path / "peer")
    cfg.load_from = str(run.path / WEIGHTS)
    if int(os.environ["WORLD_SIZE"]) > 1:
        # mmengine's own launcher asks for a GPU.
        dist.init_process_group("gloo")
        cfg.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    # Collecting the environment fails where torchvision does not fit torch; without it the peer is faster.
    Runner._log_env = lambda *_: None
    found = Runner.from_cfg(cfg).test()
    if int(os.environ["RANK"]) == 0:
        (run.path / "theirs.json").write_text(json.dumps({key: float(found[key]) for key in found}))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
