"""A slow shared file system, as it is without and with few files: environment, checkout, data and runs lie on
one whose metadata calls take a millisecond longer each (FUSE, seen by the measured commands alone).

  as it is   the tree of files that prepare.py leaves, ranks run from .venv
  few files  `prepare.py --pack`, `--stage` on the node's own disk, `environment: image`; with and without
             `baton.stage_decoded`

Measured in turn: a resumed start, from the command to the end of its first step, on a node that has the
copies; one epoch of the recipe's input pipeline with its 4 workers; both on the local disk, too; and the time
that 4 preemptions cost a training, its first start on a node without copies included. Needs root, for the
mounts, and libfuse (apt-get install libfuse3-3).

examples:
  python benchmarks/few_files.py
  python benchmarks/few_files.py --rounds 1 --images 60 --life 4     a quick look
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repository

from benchmarks import harness
from benchmarks.on_slurm import data
from benchmarks.slow_files import mount
from benchmarks.trainings import start
from jobs.prepare.packed import convert
from jobs.run import image, packed, staged
from jobs.run.directory import Run
from jobs.run.errors import run_command
from jobs.run.exit_codes import FINISHED, RESUME
from launch.submit import code_image

ROOT: Path = repository.ROOT

CONFIG = "tests/support/configs/tiny_trace.py"
INTERRUPTIONS = 4
STEP = 0.2
"""Seconds of a step of CONFIG, which pads them."""
BATCH = 4
WHOLE = 10_582
"""Images of the recipe's training: a start reads the directory of all that are packed."""
OF_WHOLE = f"of {WHOLE:,} images"
WHAT = {"ours": "few files", "peer": "as it is"}


class Side:
    """One of WHAT on one disk: `through` is what puts a command on the slow one."""

    def __init__(self, folder: Path, data: Path, stage: Path | None, through: list[str]) -> None:
        self.folder, self.data, self.stage = folder, data, stage
        from_image: list[str] = []
        if stage is not None:
            # As a batch script starts a task with `environment: image`, and a submission leaves it.
            from_image = ["-S", "-c", image.START, str(stage)]
            code_image.compile_start(ROOT)
        self.usual = [*through, sys.executable]
        self.python = [*self.usual, *from_image]

    def make_run(self, name: str, **settings: Any) -> Run:
        run = start.make_run(self.folder / name, self.data, CONFIG, settings.pop("hook"), **settings)
        request = run.request()
        request.set["custom_imports"]["imports"] += ["benchmarks.on_slurm.step_log"]
        request.cluster.stage = str(self.stage or "")
        run.write_request(request)
        return run

    @property
    def training(self) -> list[str]:
        return [*self.python, "-u", "-m", "jobs.train"]


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--life", type=float, default=12.0, help="seconds of steps before an interruption")
    parser.add_argument("--milliseconds", type=float, default=1.0, help="that a metadata call takes longer")
    arguments = parser.parse_args()
    harness.restart_with(OMP_NUM_THREADS="1")
    environment = Path(image.beside(Path(sys.executable)))
    made_here = not environment.exists()
    folders = functools.partial(tempfile.TemporaryDirectory, prefix="few-files-")
    with folders(dir=ROOT / "logs") as shared, folders() as local:
        folder, node = Path(shared), Path(local)
        pair, whole = dataset(folder / "part", arguments.images), dataset(folder / "whole", WHOLE)
        try:
            if made_here:
                subprocess.run(["sh", ROOT / "env/pack.sh", environment.with_suffix("")], check=True)
            places = [ROOT, Path(sys.prefix), Path(sys.base_prefix)]
            with mount.slow(node, places, arguments.milliseconds) as through:
                stage = node / "stage"
                on_slow_disk(
                    sides(folder / "slow", *pair, stage, through),
                    sides(folder / "slow-starts", *whole, stage, through),
                    arguments.rounds,
                    arguments.images,
                )
                on_local_disk(
                    sides(folder / "near", *pair, stage, []),
                    sides(folder / "near-starts", *whole, stage, []),
                    arguments.rounds,
                    arguments.images,
                )
                traces(
                    sides(folder / "traces", *pair, node / "new", through), arguments.images, arguments.life
                )
        finally:
            if made_here:
                environment.unlink(missing_ok=True)
    return 0


def dataset(folder: Path, images: int) -> tuple[Path, Path]:
    """As a tree of files, and as few."""
    tree, few = data.prepared(folder, images, 8, 500, pool=16), folder / "packed"
    shutil.copytree(tree, few)
    convert.pack(few, "VOCdevkit")
    return tree, few


def sides(folder: Path, tree: Path, few: Path, stage: Path, through: list[str]) -> dict[str, Side]:
    stage.mkdir(exist_ok=True)
    return {
        "ours": Side(folder / "ours", few, stage, through),
        "peer": Side(folder / "peer", tree, None, through),
    }


# ------------------------------------------------------------------------------------- start and epoch


Measures = dict[str, Callable[[], float]]
Sides = dict[str, Side]


def on_slow_disk(there: Sides, starting: Sides, rounds: int, images: int) -> None:
    what = "resumed start to its first step, 1 ms a metadata call: packed, staged, environment as an image"
    compare("few_files_start", what, starts(starting), goal=0.5, rounds=rounds, note=OF_WHOLE)
    once, each = epochs(there, images)
    what = f"an epoch of the recipe's input pipeline there, {images} images, decoded once a node"
    note = "baton.stage_decoded, which starts no more workers than CPUs, 2; the recipe's 4 on the other side"
    compare("few_files_epoch", what, once, goal=0.5, rounds=2 * rounds, note=note)
    what = "the same epoch there with each image decoded every time"
    note = "4 workers on 2 cores, which the transforms take most of"
    compare("few_files_epoch_each", what, each, goal=1, rounds=rounds, note=note)


def on_local_disk(there: Sides, starting: Sides, rounds: int, images: int) -> None:
    # What is to be told apart is a hundredth of a start or an epoch, from which one differs by five.
    rounds *= 7
    what = "the same start on a local disk"
    compare("few_files_start_local", what, starts(starting), goal=1, rounds=rounds, note=OF_WHOLE)
    once, each = epochs(there, images)
    what = "the epoch on a local disk, decoded once a node"
    compare("few_files_epoch_local", what, once, goal=1, rounds=rounds, note="2 workers and 4, as above")
    what = "the epoch on a local disk, decoded every time"
    compare("few_files_epoch_each_local", what, each, goal=1, rounds=rounds)


AGAINST = "a tree of files and .venv"


def compare(name: str, what: str, pair: Measures, goal: float, rounds: int, note: str = "") -> None:
    harness.compare(
        name, what, pair["ours"], pair["peer"], against=AGAINST, goal=goal, unit="s",
        better="lower", rounds=rounds, note=note,
    )  # fmt: skip


def starts(there: Sides) -> Measures:
    """What measures a resumed start of each side; each once before it counts, in which files come into the
    node's memory."""
    found: Measures = {}
    for name, side in there.items():
        copy(side)
        found[name] = functools.partial(first_step, side, resumable(side))
        found[name]()
    return found


def epochs(there: Sides, images: int) -> tuple[Measures, Measures]:
    """What measures an epoch of each side, and one that decodes each image in any case; each once before it
    counts."""
    found: tuple[Measures, Measures] = ({}, {})
    for name, side in there.items():
        side.folder.mkdir(parents=True)
        copy(side)
        for measures, once in zip(found, (side.stage is not None, False), strict=True):
            measures[name] = functools.partial(epoch, side, images, once=once)
            measures[name]()
    return found


def resumable(side: Side) -> Run:
    """A run that has trained one epoch of three."""
    hook = {"type": "Steps", "result": str(side.folder / "made/result.json")}
    made = side.make_run("made", hook=hook, train_cfg__max_epochs=1)
    start.result("ours", made)  # from here and at once, whatever the side: what is measured begins with it
    hook = {"type": "FirstStep", "result": str(side.folder / "run/result.json")}
    run = side.make_run("run", hook=hook, train_cfg__max_epochs=3)
    shutil.copytree(made.checkpoints, run.checkpoints)
    return run


def first_step(side: Side, run: Run) -> float:
    run.events.unlink(missing_ok=True)
    found = start.result("ours", run, command=side.training)
    assert found["step"] == -(-WHOLE // BATCH) + 1, f"it began with step {found['step']}"
    return float(found["seconds"])


def epoch(side: Side, images: int, once: bool) -> float:
    result = side.folder / "epoch.txt"
    command = [*side.python, "-m", "benchmarks.slow_files.epoch", str(side.data), str(result)]
    command += ["decoded"] if once else []
    environment = os.environ | {staged.VARIABLE: str(side.stage or "")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds, count = result.read_text().split()
    assert int(count) == images, f"{count} of {images} images"
    return float(seconds)


def copy(side: Side) -> None:
    """What a first start has made beside it: another would begin to read the copy at any time."""
    if side.stage is None:
        return
    container = side.data / "VOCdevkit" / packed.NAME
    command = [*side.usual, "-m", "jobs.supervise.copier", str(container), str(side.stage), "1"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    event = json.loads(done.stdout)
    assert event["event"] == "staged", event


# ----------------------------------------------------------------------------------- interruptions


def traces(slow: Sides, images: int, life: float) -> None:
    found = {name: trace(side, images, life) for name, side in slow.items()}
    for name, one in found.items():
        print(f"{WHAT[name]}: ETTR {one['ettr']:.3f}, {one['lost']:.1f} s lost of {one['wall']:.1f} s")
    harness.record(
        "few_files_lost",
        f"time lost over a first start and {INTERRUPTIONS} preemptions there",
        found["ours"]["lost"] / found["peer"]["lost"],
        against=AGAINST,
        goal=0.5,
        better="lower",
        raw=found,
        note=f"ETTR {found['ours']['ettr']:.2f} and {found['peer']['ettr']:.2f}, "
        f"a preemption every {life:g} s of steps; without Slurm and its queue",
    )


def trace(side: Side, images: int, life: float) -> dict[str, Any]:
    """One training that is preempted after each `life` seconds of steps, and started again at once."""
    steps = side.folder / "steps.jsonl"
    hook = {"type": "StepLog", "seconds": STEP}
    of_an_epoch = images / BATCH
    epochs = int((INTERRUPTIONS + 1) * life / STEP / of_an_epoch) + 1
    run = side.make_run("trace", hook=hook, train_cfg__max_epochs=epochs)
    os.environ["STEP_LOG"] = str(steps)
    began = time.time()
    starting = []
    for number in range(INTERRUPTIONS + 1):
        known = len(lines(steps))
        (process,) = start.start("ours", run, command=side.training)
        asked = time.time()
        last = number == INTERRUPTIONS
        while process.poll() is None:
            mine = lines(steps)[known:]
            if not last and mine and mine[-1]["time"] - mine[0]["time"] >= life:
                process.send_signal(signal.SIGUSR2)
                break
            time.sleep(0.05)
        start.wait(run, [process])
        assert process.returncode == (FINISHED if last else RESUME), f"{run.path}: {process.returncode}"
        starting.append(lines(steps)[known]["time"] - asked)
    wall = time.time() - began
    productive = STEP * len({line["step"] for line in lines(steps)})
    lost = wall - productive
    return {"ettr": productive / wall, "lost": lost, "wall": wall, "starting": starting}


def lines(path: Path) -> list[dict[str, Any]]:
    """The step log's whole lines."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    run_command(main)
