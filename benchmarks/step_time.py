"""The time of a training step with everything on, against plain mmengine with the same config and data.

Everything: exact sampling, seeding of each sample and step, the ranks' agreement, metrics, progress,
asynchronous saves. Each side trains in a fresh process; only steps are timed, start-up is left out.

examples:
  python benchmarks/step_time.py
  python benchmarks/step_time.py --steps 20 --rounds 1     a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.harness import compare  # noqa: E402
from tests import tiny  # noqa: E402

CONFIG = "tests/configs/tiny_wide.py"
WARM_UP = 10
SAMPLES, BATCH = 64, 4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="steps timed in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        train(arguments.side, arguments.run, timer := StepTimer())
        write_result(arguments.run, timer.seconds())
        return 0

    with tempfile.TemporaryDirectory(prefix="step-time-") as folder:
        data = tiny.make_data(Path(folder) / "data", SAMPLES, 4)
        settings = config(arguments.steps + WARM_UP + 1)
        compare(
            "step_time",
            "time of a training step, everything on",
            lambda: in_process(__file__, "ours", Path(folder), data, settings),
            lambda: in_process(__file__, "peer", Path(folder), data, settings),
            against="mmengine's own runner",
            goal=1.01,
            unit="seconds",
            better="lower",
            rounds=arguments.rounds,
        )
    return 0


# --------------------------------------------------- also for save_stall.py and resume_start.py


def config(steps: int, width: int = 32, save_every: int = 0) -> dict[str, Any]:
    """Overrides of `CONFIG`: `steps` iterations, by epoch. `width`: channels of the backbone's first stage.
    `save_every`: iterations between saves (0: an epoch)."""
    epochs = -(-steps * BATCH // SAMPLES)
    return {
        "model__backbone__base_channels": width,
        "model__backbone__stem_channels": width,
        "model__decode_head__in_channels": width * 8,
        "train_cfg__max_epochs": epochs,
        "param_scheduler__0__end": epochs,
        "default_hooks__checkpoint__by_epoch": save_every == 0,
        "default_hooks__checkpoint__interval": save_every or 1,
    }


def in_process(script: str, side: str, folder: Path, data: Path, settings: dict[str, Any]) -> float:
    """One figure: `script` trains one side in a process of its own."""
    number = len(list(folder.glob("run-*")))
    run = tiny.make_run(folder / f"run-{number}", data, CONFIG, **settings)
    return start(script, side, run.path)


def start(script: str, side: str, run: Path) -> float:
    log = run / "log.out"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEGAN": repr(time.time())}
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, str(Path(script).resolve()), "--side", side, "--run", str(run)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    result = run / "result.json"
    if done.returncode or not result.exists():
        raise RuntimeError(f"{side} ended with {done.returncode}: {log.read_text()[-3000:]}")
    figure = float(json.loads(result.read_text()))
    result.unlink()
    return figure


def write_result(run: Path, figure: float) -> None:
    (run / "result.json").write_text(json.dumps(figure))


def train(side: str, run: Path, *hooks: Any, prepare: Callable[[Any], None] = lambda _: None) -> None:
    """Trains a run to its end in this process, with `hooks` besides; `prepare` sees the runner before."""
    os.chdir(run / "code")
    (ours if side == "ours" else peer)(run, hooks, prepare)


def ours(run: Path, hooks: tuple[Any, ...], prepare: Callable[[Any], None]) -> None:
    """As `python -m jobs.train.rank RUN`, in this process."""
    from jobs import compat

    number = tiny.claim(tiny.Run(run))
    os.environ.update(tiny.environments(1, number, None)[0])
    from jobs.train import rank, session

    compat.prepare()
    rank.PREEMPTED.listen()
    from jobs.train import runner

    build = runner.build

    def with_hooks(*arguments: Any) -> Any:
        built = build(*arguments)
        for hook in hooks:
            built.register_hook(hook)
        prepare(built)
        return built

    runner.build = with_hooks  # type: ignore[assignment]
    rank.train(session.from_environment(tiny.Run(run)))


def peer(run: Path, hooks: tuple[Any, ...], prepare: Callable[[Any], None]) -> None:
    """mmengine's runner, as mmsegmentation's tools/train.py uses it."""
    from jobs import compat

    compat.prepare()
    # mmengine looks at its version, and dies of one that does not fit torch; without any it goes on.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from mmengine.config import Config
    from mmengine.runner import Runner

    request = tiny.Run(run).request()
    cfg = Config.fromfile(request.config)
    cfg.merge_from_dict(request.set)
    cfg.work_dir = str(run / "mmengine")
    cfg.resume = any((run / "mmengine").glob("*.pth"))
    built = Runner.from_cfg(cfg)
    for hook in hooks:
        built.register_hook(hook)
    prepare(built)
    built.train()


class StepTimer:
    """Set as a hook: when each step began. (mmengine asks hooks for every method, so it inherits them.)"""

    def __new__(cls) -> Any:
        from jobs import compat

        compat.prepare()
        from mmengine.hooks import Hook

        class Timer(Hook):
            priority = "VERY_HIGH"

            def __init__(self) -> None:
                self.times: list[float] = []

            def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
                self.times.append(time.perf_counter())

            def seconds(self) -> float:
                """Mean of a step, data and saves and all between the steps included."""
                return (self.times[-1] - self.times[WARM_UP]) / (len(self.times) - 1 - WARM_UP)

        return Timer()


if __name__ == "__main__":
    sys.exit(main())
