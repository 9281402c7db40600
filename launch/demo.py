"""The main job from end to end on this machine: generate data in the real formats, prepare, train, evaluate.

It runs the very commands a user would type and prints each. Every run gets a name of its own, so it can be
run again; the generated dataset is made once.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import checkout

from launch.submit import machine, runs

EXAMPLES = """\
  make demo                          sets up first, then runs this
  python launch/demo.py --gpus 1     one process instead of two
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    gpus = min(2, machine.local_gpus() or 2)
    parser.add_argument(
        "--gpus", type=int, default=gpus, help=f"processes to train with (default here {gpus})"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="epochs to train (default the config's; fewer learn less)"
    )
    parser.add_argument(
        "--data-root", type=Path, default=runs.CHECKOUT / "data" / "demo", help="where the data go"
    )
    arguments = parser.parse_args()
    data = arguments.data_root.resolve()
    archives = data / "archives"
    name = time.strftime("demo-%Y%m%d-%H%M%S")

    shortened: list[str] = []
    if arguments.epochs:
        end = f"param_scheduler.0.end={arguments.epochs}"
        shortened = ["--set", f"train_cfg.max_epochs={arguments.epochs}", end]
    begin = time.monotonic()
    if not (archives / "SHA256SUMS").exists():
        step(
            "Generate a small dataset as the two real archives",
            ["-m", "jobs.prepare.synthetic", str(archives), "--train", "64", "--val", "16", "--size", "128"],
        )
    step(
        "Prepare it: read both archives once, convert, verify",
        [*local("launch/prepare.py", data), "--archives", str(archives), "--no-weights"],
    )
    step(
        "Train a small UPerNet, then evaluate it in the dependent job",
        [
            *local("launch/train.py", data),
            *("--config", "configs/demo.py", "--run", name, "--gpus", str(arguments.gpus), *shortened),
        ],
    )
    images = sorted((data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[:3]
    step(
        "Segment images with the trained model",
        ["launch/infer.py", name, "--cluster", "local", "--wait", *map(str, images)],
    )
    step("Where it stands, and the report", ["launch/status.py", name])
    step("", ["launch/report.py", name])
    print(f"\nDone in {time.monotonic() - begin:.0f} s. Everything lies in {runs.runs_root() / name}")
    return 0


def local(script: str, data_root: Path) -> list[str]:
    return [script, "--cluster", "local", "--data-root", str(data_root), "--wait"]


def step(title: str, command: list[str]) -> None:
    """Runs one of our commands; if it fails, ends the demo with its exit code."""
    if title:
        print(f"\n== {title}", flush=True)
    print(f"$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=runs.CHECKOUT, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    checkout.run(main)
