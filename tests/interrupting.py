"""A hook that interrupts a training at an exact place, by a real signal to its own process.

The environment variable INTERRUPT holds the plan, JSON: {"at": "step" | "validate" | "PHASE", "step": N or
[N, …], "signal": "SIGUSR2" | "SIGTERM" | "SIGKILL", "rank": R or null for all}. With "pause": PATH it
first makes the file PATH and goes on once that is gone. PHASE is one of a checkpoint's write
(`checkpoints.on_phase`); "step" then counts the saves of this start. A list of plans is all of them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from jobs.engine import checkpoints


def pause(path: Path) -> None:
    path.touch()
    while path.exists():
        time.sleep(0.01)


@HOOKS.register_module(force=True)
class Interrupt(Hook):
    def __init__(self) -> None:
        plans = json.loads(os.environ.get("INTERRUPT", "[]")) or []
        self.plans = plans if isinstance(plans, list) else [plans]
        self.phases: list[str] = []
        self.asked = lambda: True
        checkpoints.on_phase = self.on_phase

    def before_run(self, runner: Any) -> None:
        self.asked = lambda: runner.survival.preempted.asked

    def strike(self, place: str, step: int) -> None:
        for plan in self.plans:
            steps = plan["step"] if isinstance(plan["step"], list) else [plan["step"]]
            if plan["at"] != place or step not in steps:
                continue
            if plan.get("rank") not in (None, int(os.environ["RANK"])):
                continue
            if "pause" in plan:
                pause(Path(plan["pause"]))
            if "signal" in plan:
                os.kill(os.getpid(), getattr(signal, plan["signal"]))
                while place == "step" and not self.asked():
                    time.sleep(0.001)

    def on_phase(self, phase: str) -> None:
        """On the thread that writes."""
        self.phases.append(phase)
        self.strike(phase, self.phases.count(phase))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        self.strike("step", runner.iter + 1)

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        if batch_idx == 1:
            self.strike("validate", runner.iter)


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
        train_step = model.train_step
        rounds: list[None] = []

        def recording(data: Any, optim_wrapper: Any) -> Any:
            weights = batches.weights(runner.iter)
            names = [Path(sample.img_path).stem for sample in data["data_samples"]]
            if weights[len(rounds) % len(weights)]:
                with path.open("a") as file:
                    file.write(json.dumps({"step": runner.iter + 1, "names": names}) + "\n")
            rounds.append(None)
            return train_step(data, optim_wrapper=optim_wrapper)

        model.train_step = recording


@HOOKS.register_module(force=True)
class RecordMaps(Hook):
    """Writes down which checkpoints are mapped into memory at the first step: RUN/job/maps-START-RANK."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        path = runner.session.run.job / f"maps-{runner.session.start}-{runner.rank}"
        if not path.exists():
            maps = Path("/proc/self/maps").read_text().splitlines()
            path.write_text("".join(f"{line}\n" for line in maps if ".pth" in line))


@HOOKS.register_module(force=True)
class RecordDraws(Hook):
    """Writes down what it draws by chance: RUN/job/draws-START-RANK.jsonl."""

    def record(self, runner: Any, kind: str, step: int) -> None:
        session = runner.session
        line = json.dumps({"kind": kind, "step": step, "draw": np.random.random()})
        with (session.run.job / f"draws-{session.start:03}-{session.rank}.jsonl").open("a") as file:
            file.write(f"{line}\n")

    def before_train_epoch(self, runner: Any) -> None:
        self.record(runner, "epoch", runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        self.record(runner, "before", runner.iter)

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        self.record(runner, "after", runner.iter)


@HOOKS.register_module(force=True)
class SignalTheNewborn(Hook):
    """Signals the workers of a validation as soon as they are born, before they can do anything about it."""

    def before_val_epoch(self, runner: Any) -> None:  # noqa: ARG002
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGUSR2))


@HOOKS.register_module(force=True)
class Remember(Hook):
    """Keeps the numbers of the steps, as what `kind` names: set, array, or deque (refused in a state)."""

    def __init__(self, kind: str) -> None:
        made: dict[str, Any] = {"set": set(), "array": np.zeros(18, np.uint16), "deque": deque()}
        self.steps = made[kind]

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        if isinstance(self.steps, set):
            self.steps.add(runner.iter)
        else:
            self.steps[runner.iter] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
