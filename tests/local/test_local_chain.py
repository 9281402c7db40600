"""The chain of stages on one machine, with real processes and a stand-in for the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events, place
from jobs.run.directory import Run
from jobs.supervise.local import _FreeGpus, visible_gpus
from tests.stages import ROOT, make_run, of, processes_of, train_command, wait_until

EVALUATE = """
import sys
from jobs.run import events
from pathlib import Path
file = Path(sys.argv[1]) / "events.jsonl"
events.append(file, "evaluated", stage="evaluate", checkpoint="c", metrics={}, path="eval")
"""
CHAIN = """
import json, sys
from jobs.run.errors import run_command
from jobs.supervise.local import Stage, chain
stages = [Stage(**stage) for stage in json.loads(sys.argv[2])]
run_command(lambda: chain(sys.argv[1], stages))
"""


def start_chain(run: Run, stages: list[dict[str, Any]] | None = None, **env: str) -> subprocess.Popen[bytes]:
    """By default: a preparation, a training on two ranks, an evaluation."""
    if not (run.code / "jobs").exists():
        (run.code / "jobs").symlink_to(ROOT / "jobs")
    stages = stages or [prepare("print('prepared')"), train(run), evaluate(run)]
    command = [sys.executable, "-c", CHAIN, str(run.path), json.dumps(stages)]
    with (run.job / "chain.out").open("ab") as log:
        return subprocess.Popen(command, cwd=run.code, env={**os.environ, **env}, stdout=log, stderr=log)


def prepare(code: str) -> dict[str, Any]:
    return {"name": "prepare", "command": [sys.executable, "-c", code]}


def train(run: Run) -> dict[str, Any]:
    return {"name": "train", "command": train_command(run), "tasks": 2}


def evaluate(run: Run, code: str = EVALUATE) -> dict[str, Any]:
    return {"name": "evaluate", "command": [sys.executable, "-c", code, str(run.path)]}


def story(run: Run) -> list[str]:
    told = ("started", "preempted", "requeued", "failed", "stopped", "finished", "evaluated", "cancelled")
    return [record["event"] for record in events.read(run.events) if record["event"] in told]


def test_through_failures_and_a_preemption_to_one_evaluation(tmp_path: Path) -> None:
    faults = [{"start": 1, "rank": 1, "step": 8, "do": "kill"}]
    run = make_run(tmp_path / "run", steps=150, seconds=0.02, faults=faults)
    chain = start_chain(run)
    wait_until(lambda: len(of(run, "resumed")) == 1)
    wait_until(lambda: of(run, "checkpoint")[-1]["step"] > 10)
    chain.send_signal(signal.SIGUSR2)
    assert chain.wait(timeout=60) == 0
    assert story(run) == [
        "started",
        "failed",
        "started",
        "preempted",
        "requeued",
        "started",
        "finished",
        "evaluated",
    ]
    logs = {path.name for path in run.job.glob("*_log.out")}
    job = f"local-{chain.pid}"
    assert logs == {f"{job}-{name}_log.out" for name in ("prepare_0", "train_0", "train_1", "evaluate_0")}
    assert not processes_of(run)
    # Once more: there is nothing left to do.
    assert start_chain(run).wait(timeout=60) == 0
    assert len(of(run, "evaluated")) == 1


def test_a_cancelled_chain_saves_and_can_be_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=150, seconds=0.02)
    chain = start_chain(run)
    wait_until(lambda: of(run, "checkpoint"))
    me = json.loads((run.job / "local.json").read_text())
    assert me == {
        "pid": chain.pid,
        "start_time": place.process_start(chain.pid),
        "job": f"local-{chain.pid}",
        **place.here(),
    }
    chain.terminate()
    assert chain.wait(timeout=60) == 85
    assert story(run) == ["started", "cancelled", "preempted"]
    assert not processes_of(run)
    events.append(run.events, "submitted", stage="train", executor="local")
    assert start_chain(run).wait(timeout=60) == 0
    assert story(run)[3:] == ["started", "finished", "evaluated"]
    assert of(run, "resumed")[0]["step"] == of(run, "preempted")[0]["step"]


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    faults = [
        {"start": 1, "rank": "*", "step": 3, "do": "deaf"},
        {"start": 1, "rank": 0, "step": 6, "do": "hang"},
    ]
    run = make_run(tmp_path / "run", faults=faults)
    chain = start_chain(run)
    wait_until(lambda: of(run, "checkpoint"))
    chain.terminate()
    wait_until(lambda: of(run, "cancelled"))
    chain.terminate()
    assert chain.wait(timeout=60) == 85
    assert not processes_of(run)


def test_a_killed_chain_leaves_nothing_and_can_be_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=150, seconds=0.02)
    chain = start_chain(run)
    wait_until(lambda: of(run, "checkpoint"))
    chain.kill()
    chain.wait()
    wait_until(lambda: not processes_of(run))
    assert start_chain(run).wait(timeout=60) == 0
    assert of(run, "resumed")


def test_a_failed_preparation_ends_the_chain(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    stages = [prepare("raise ValueError('no archives')"), train(run), evaluate(run)]
    assert start_chain(run, stages).wait(timeout=60) == 1
    (failed,) = of(run, "failed")
    assert (failed["stage"], failed["error"]) == ("prepare", "ValueError: no archives")
    assert (run.path / failed["log"]).exists()
    assert not of(run, "started")


def test_a_hopeless_training_stops_and_is_not_evaluated(tmp_path: Path) -> None:
    faults = [{"start": "*", "rank": 0, "step": 2, "do": "raise"}]
    run = make_run(tmp_path / "run", faults=faults)
    assert start_chain(run).wait(timeout=60) != 0
    assert story(run) == ["started", "failed", "started", "failed", "stopped"]


def test_a_failed_evaluation_is_told_and_can_be_done_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert start_chain(run, [train(run), evaluate(run, "raise SystemExit(5)")]).wait(timeout=60) == 5
    assert of(run, "failed")[0]["stage"] == "evaluate"
    assert start_chain(run).wait(timeout=60) == 0
    assert len(of(run, "evaluated")) == 1


def test_one_chain_at_a_time(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100000)
    first = start_chain(run)
    wait_until(lambda: of(run, "started"))
    assert start_chain(run).wait(timeout=60) == 2
    assert "is already running on this machine" in (run.job / "chain.out").read_text()
    first.kill()
    first.wait()


# GPUs: a program in nvidia-smi's place answers for three of them, one of which is busy.

NVIDIA_SMI = """#!/bin/sh
case $1 in
--query-gpu*) printf '0, GPU-a\\n1, GPU-b\\n2, GPU-c\\n' ;;
--query-compute-apps*) printf 'GPU-b\\n' ;;
esac
"""


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class Owner:
    cancelled = 0
    run_directory = Run("runs/first")

    def wait(self, _: float) -> None:
        self.cancelled = 1

    def take_signals(self, _: object) -> bool:
        return False


@pytest.mark.usefixtures("three_gpus")
def test_free_gpus_are_chosen_and_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _FreeGpus(1, Owner()) as one, _FreeGpus(1, Owner()) as other:  # type: ignore[arg-type]
        assert (one.numbers, other.numbers) == ("0", "2")
        owner = Owner()
        with _FreeGpus(1, owner):  # type: ignore[arg-type]
            assert owner.cancelled  # it had to wait
    said = capsys.readouterr().out
    assert f"waiting for 1 free GPUs (0: first (process {os.getpid()} on " in said
    assert "1: something computes on it; 2: first" in said
    with _FreeGpus(2, Owner()) as two, _FreeGpus(0, Owner()) as none:  # type: ignore[arg-type]
        assert (two.numbers, none.numbers) == ("0,2", "")
    monkeypatch.setenv("BATON_VISIBLE_GPUS", "2,GPU-b")
    assert list(visible_gpus()) == ["GPU-c", "GPU-b"]
    with _FreeGpus(1, Owner()) as limited:  # type: ignore[arg-type]
        assert limited.numbers == "2"
    monkeypatch.setenv("BATON_VISIBLE_GPUS", "")
    with _FreeGpus(2, Owner()) as hidden:  # type: ignore[arg-type]
        assert hidden.numbers == ""


LEAVES_ONCE = """
import signal, sys
from pathlib import Path
here = Path(sys.argv[1])
if (here / "told").exists():
    (here / "done").touch()
    sys.exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
(here / "ready").touch()
signal.sigwait({signal.SIGUSR2})
(here / "told").touch()
sys.exit(85)
"""


def test_an_inference_that_leaves_when_asked_to_is_started_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stage = {"name": "infer", "command": [sys.executable, "-c", LEAVES_ONCE, str(tmp_path)]}
    with start_chain(run, [stage]) as chain:
        wait_until((tmp_path / "ready").exists)
        chain.send_signal(signal.SIGUSR2)
        assert chain.wait(60) == 0, (run.job / "chain.out").read_text()
    assert (tmp_path / "done").exists()
    assert [one["stage"] for one in events.read(run.events) if one["event"] == "requeued"] == ["infer"]


WAITS = """
import sys, time
from pathlib import Path
here = Path(sys.argv[1])
(here / "ready").touch()
while not (here / "go").exists():
    time.sleep(0.01)
"""


def test_a_preemption_that_comes_late_does_not_kill_the_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with start_chain(run, [evaluate(run, WAITS)]) as chain:
        wait_until((tmp_path / "ready").exists)
        chain.send_signal(signal.SIGUSR2)
        wait_until(lambda: not pending(chain.pid))
        (tmp_path / "go").touch()
        assert chain.wait(60) == 0, (run.job / "chain.out").read_text()


def pending(pid: int) -> bool:
    """Whether a process has signals that its kernel has not delivered yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(mask, 16) for mask in masks)
