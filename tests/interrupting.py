"""A hook that interrupts a training at an exact place, by a real signal to its own process.

The environment variable INTERRUPT holds the plan, JSON: {"at": "step" | "validate", "step": N or [N, …],
"signal": "SIGUSR2" | "SIGTERM" | "SIGKILL", "rank": R or null for all}. With "pause": PATH instead of a
signal it makes the file PATH and goes on once that is gone.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def pause(path: Path) -> None:
    path.touch()
    while path.exists():
        time.sleep(0.01)


@HOOKS.register_module(force=True)
class Interrupt(Hook):
    def __init__(self) -> None:
        self.plan = json.loads(os.environ.get("INTERRUPT", "{}"))

    def strike(self, runner: Any, place: str, step: int) -> None:
        plan = self.plan
        if not plan or plan["at"] != place or plan.get("rank") not in (None, runner.rank):
            return
        if step in (plan["step"] if isinstance(plan["step"], list) else [plan["step"]]):
            if "pause" in plan:
                pause(Path(plan["pause"]))
            else:
                os.kill(os.getpid(), getattr(signal, plan["signal"]))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        self.strike(runner, "step", runner.iter + 1)

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        if batch_idx == 1:
            self.strike(runner, "validate", runner.iter)


@HOOKS.register_module(force=True)
class RecordSamples(Hook):
    """Writes down which samples each step really trained on: RUN/job/samples-START-RANK.jsonl.

    What the hooks of an iteration see are its first round's data, so it listens to the model. A slot that
    repeats a sample, its loss weighted with 0, is left out.
    """

    def before_train(self, runner: Any) -> None:
        session = runner.session
        path = session.run.job / f"samples-{session.start}-{session.rank}.jsonl"
        model, batches = runner.model, runner.train_loop.batches
        train_step, rounds = model.train_step, []

        def recording(data: Any, optim_wrapper: Any) -> Any:
            weights = batches.weights(runner.iter)
            names = [Path(sample.img_path).stem for sample in data["data_samples"]]
            if weights[len(rounds) % len(weights)]:
                with path.open("a") as file:
                    file.write(json.dumps({"step": runner.iter + 1, "names": names}) + "\n")
            rounds.append(None)
            return train_step(data, optim_wrapper=optim_wrapper)

        model.train_step = recording
