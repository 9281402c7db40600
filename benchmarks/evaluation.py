"""Evaluation against mmseg's: the metric alone, and the whole test by as many processes of either kind.

The metric: figures of generated label maps of VOC's size (500 × 375, 21 classes), from class numbers to
mIoU, one core. The whole test: both commands from start to end, on the same generated pictures, the same
processes and the same (random) weights, with the recipe's test transforms; both must find the same figures.
On a CPU the network, which is the same on both sides, takes most of the time even if it is the demo's small
one, and nearly all if it is the recipe's; so what the test costs beside the network (loading and counting:
what the processor does while a GPU computes) is a line of its own, with the goal for it. Timed is CPU time,
which other work on the machine does not lengthen; where it goes is kept with the results.

examples:
  python benchmarks/evaluation.py
  python benchmarks/evaluation.py --rounds 1 --images 60 --large 2     a quick look
"""

import contextlib
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import repository

import numpy as np

from benchmarks import harness, pipeline
from jobs.mmseg import compat
from jobs.run.directory import Request, Run
from tests.support import tiny

ROOT: Path = repository.ROOT

CLASSES = 21
WEIGHTS = "weights.pth"
Figure = Callable[[], float]


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        stock_test(Run(sys.argv[2]))
        return
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=400, help="for the demo's network")
    parser.add_argument("--large", type=int, default=16, help="images for the recipe's network")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    harness.restart_with(OMP_NUM_THREADS="1")
    metric_alone(arguments.rounds)
    with whole_test("configs/demo.py", arguments.images, arguments.processes) as (ours, peer, details, _):
        harness.compare(
            "evaluation",
            f"whole test of {arguments.images} images, demo's network, {arguments.processes} CPU processes",
            ours,
            peer,
            against="mmseg's test",
            goal=1.0,
            unit="CPU seconds of all processes",
            better="lower",
            rounds=arguments.rounds,
            note="start-up included; the network, the same on both sides, takes most of it",
            details=details,
        )
        parts = details["seconds_rank_0"]
        around = {
            "ours": [part["loading"] + part["counting"] for part in parts["ours"]],
            "peer": [part["all"] - part["model"] - part["collecting"] for part in parts["peer"]],
        }
        harness.record(
            "evaluation_around",
            "the same test without start-up and network: loading and counting",
            harness.ratio(around["ours"], around["peer"]),
            against="mmseg's test",
            goal=1 / 1.5,
            better="lower",
            raw={"seconds_rank_0": around},
        )
    with whole_test(pipeline.RECIPE, arguments.large, arguments.processes) as (ours, peer, details, _):
        harness.compare(
            "evaluation_recipe",
            f"whole test of {arguments.large} images, recipe's network, {arguments.processes} CPU processes",
            ours,
            peer,
            against="mmseg's test",
            goal=1.0,
            unit="CPU seconds of all processes",
            better="lower",
            rounds=min(2, arguments.rounds),
            note="on a CPU the network takes nearly all of it",
            details=details,
        )


def metric_alone(rounds: int) -> None:
    compat.prepare()
    import torch
    from mmengine.logging import MMLogger
    from mmseg.evaluation import IoUMetric

    from jobs.mmseg.evaluator import FastIoUMetric

    torch.set_num_threads(1)
    MMLogger.get_instance("benchmark", log_level="ERROR")  # no tables
    maps = [(label_map(2 * number, 255), label_map(2 * number + 1, 0)) for number in range(50)]
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
        return len(samples) / (time.process_time() - begin)

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


@contextlib.contextmanager
def whole_test(
    config: str, images: int, processes: int, workers: int = 0, forked: bool = False
) -> Iterator[tuple[Callable[..., float], Figure, dict[str, Any], Run]]:
    """The two sides of a whole test, to run within the block (ours with more options, if given), the details
    that they collect, and the run, with our result in `ours/`.

    `workers`: that load, a process. Where each process has one core, they would only take it from the model.
    `forked`: from a process that has imported what either side imports; on one rank, and no CPU seconds.
    Raises AssertionError at its end if the two found different figures.
    """
    with tempfile.TemporaryDirectory() as folder:
        if forked:
            tiny.call(Path(folder, "log"), make_run, Path(folder), config, images, workers)
            run = Run(Path(folder, "run"))
        else:
            run = make_run(Path(folder), config, images, workers)
        command = [sys.executable, "-m", "jobs.evaluate", str(run.path), "--again", "--pictures", "0"]
        command += ["--checkpoint", str(run.path / WEIGHTS), "--out", str(run.path / "ours")]
        peer_command = [sys.executable, str(Path(__file__)), "--peer", str(run.path)]
        begin = start_forked if forked else start
        details: dict[str, Any] = {"processes": processes, "seconds_rank_0": {"ours": [], "peer": []}}

        def ours(*more: str) -> float:
            seconds = begin([*command, *more], processes, run)
            details["seconds_rank_0"]["ours"].append(found("ours/metrics.json")["seconds_rank_0"])
            return seconds

        def peer() -> float:
            seconds = begin(peer_command, processes, run)
            details["seconds_rank_0"]["peer"].append(found("theirs.json")["seconds_rank_0"])
            return seconds

        def found(name: str) -> Any:
            return json.loads((run.path / name).read_text())

        yield ours, peer, details, run
        for key in ("mIoU", "mAcc", "aAcc"):
            a, b = found("ours/metrics.json")[key], found("theirs.json")[key]
            if abs(a - b) > 0.0051:
                raise AssertionError(f"{key}: {a} here, {b} by mmseg")


def make_run(folder: Path, config: str, images: int, workers: int) -> Run:
    """A run directory with a config's network, random weights, and a validation set of `images` pictures."""
    compat.prepare()
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    from jobs.mmseg import model as models

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
    run.write_request(Request(name="run", config=config, data_root=str(folder / "data"), created=""))
    cfg = Config.fromfile(str(ROOT / config))
    cfg.model.pretrained = None
    recipe = Config.fromfile(str(ROOT / pipeline.RECIPE))
    cfg.test_dataloader.dataset.pipeline = recipe.test_dataloader.dataset.pipeline
    cfg.test_dataloader.update(num_workers=workers, persistent_workers=False)
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
        env = place(rank, processes) | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        log = (run.path / f"{rank}.log").open("w")
        started.append(subprocess.Popen(command, cwd=run.code, env=os.environ | env, stdout=log, stderr=log))
    codes = [process.wait() for process in started]
    if any(codes):
        logs = "\n".join((run.path / f"{rank}.log").read_text()[-2000:] for rank in range(processes))
        raise RuntimeError(f"{' '.join(command)} failed with {codes}:\n{logs}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def place(rank: int, processes: int) -> dict[str, str]:
    """What tells either side's process which it is."""
    ours = {"JOB_ID": os.getpid(), "NTASKS": processes, "GLOBALID": rank, "LOCALID": rank}
    peer = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    both = {f"SUBMITIT_LOCAL_{key}": value for key, value in ours.items()} | peer
    return {key: str(value) for key, value in both.items()}


def start_forked(command: list[str], processes: int, run: Run) -> float:
    assert processes == 1
    tiny.call(run.path / "0.log", as_command, command[1:], str(run.code))
    return 0.0


def as_command(arguments: list[str], folder: str) -> None:
    """What Python does with these arguments in `folder`."""
    os.environ.update(place(0, 1))
    os.chdir(folder)
    sys.argv = arguments
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def stock_test(run: Run) -> None:
    """mmseg's own test of the run's config and weights, as its tools/test.py does it; writes theirs.json."""
    compat.prepare()
    import torch.distributed as dist
    from mmengine.config import Config
    from mmengine.runner import Runner

    cfg = Config.fromfile(str(run.config))
    cfg.work_dir = str(run.path / "peer")
    cfg.load_from = str(run.path / WEIGHTS)
    # TensorBoard, which takes seconds to import, is this project's addition to the config.
    cfg.visualizer.vis_backends = [{"type": "LocalVisBackend"}]
    if int(os.environ["WORLD_SIZE"]) > 1:
        # mmengine's own launcher asks for a GPU. The samplers and the metric find the group by themselves.
        dist.init_process_group("gloo")
    # Collecting the environment fails where torchvision does not fit torch; without it the peer is faster.
    Runner._log_env = lambda *_: None
    runner = Runner.from_cfg(cfg)
    spent: dict[str, float] = {}
    for name, owner, method in (
        ("model", runner.model, "test_step"),
        ("counting", runner.test_loop.evaluator, "process"),
        ("collecting", runner.test_loop.evaluator, "evaluate"),
        ("all", runner.test_loop, "run"),
    ):
        setattr(owner, method, measured(getattr(owner, method), name, spent))
    found = {key: float(value) for key, value in runner.test().items()}
    if int(os.environ["RANK"]) == 0:
        (run.path / "theirs.json").write_text(json.dumps(found | {"seconds_rank_0": spent}))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def measured(method: Any, name: str, spent: dict[str, float]) -> Any:
    """`method`, its seconds added to `spent[name]`."""

    def call(*arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin

    return call


if __name__ == "__main__":
    main()
