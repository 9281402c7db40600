"""Every way in which Slurm ends a job: none loses a run, and it ends with the weights of a run left alone,
bit for bit. On one rank, and on two nodes with two ranks each.

The cases run side by side on two clusters (with and without the user signal), each on nodes of its own, for
most of their time is waiting: Slurm looks at limits and grace times every 30 seconds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import ROOT

from jobs.run import events
from jobs.run.directory import Run
from tests.support import tiny
from tests.support.slurm import Slurm, wait_for

pytestmark = pytest.mark.slow

SHAPES = {"1": (1, 1), "2x2": (2, 2)}
HELD = 4
"""The step before which runs are held; an epoch has 6."""


class Case(msgspec.Struct, kw_only=True):
    """One way to be interrupted."""

    do: Callable[[Slurm, Run, str], object] = lambda *_: None
    """What is done to the job, once it is held."""
    fault: str | None = "hold"
    cluster: str = "user signal"
    partition: str = "gpu"
    options: tuple[str, ...] = ()
    resumed: bool = True
    """It goes on from the step where it was; otherwise from the last checkpoint, or from the beginning."""
    at_start: bool = False
    """Do it as soon as the tasks are there, not at a step. What comes before there is a handler is ignored:
    the run may not even notice."""
    successor: bool = False
    rank: int | None = None


def preempt(slurm: Slurm, run: Run, job: str) -> None:  # noqa: ARG001
    slurm.preempt(job)


def requeue(slurm: Slurm, run: Run, job: str) -> None:  # noqa: ARG001
    slurm.run("scontrol", "requeue", job)


def user_signal(slurm: Slurm, run: Run, job: str) -> None:  # noqa: ARG001
    slurm.run("scancel", "--signal=USR2", job)


def lose_a_node(slurm: Slurm, run: Run, job: str) -> None:  # noqa: ARG001
    slurm.kill_node(slurm.nodes_of(job)[-1])


def oom_then_user_signal(slurm: Slurm, run: Run, job: str) -> None:  # noqa: ARG001
    slurm.run("scancel", "--signal=USR2", job, check=False)


CASES = {
    "preempted without grace or user signal": Case(do=preempt, cluster="plain"),
    "preempted without grace, with user signal": Case(do=preempt),
    "preempted with grace, no user signal": Case(do=preempt, partition="low", cluster="plain"),
    "preempted with grace and user signal": Case(do=preempt, partition="low"),
    "preempted where jobs are cancelled": Case(do=preempt, partition="lowcan"),
    "preempted where requeueing is forbidden": Case(
        do=preempt, partition="low", cluster="no requeue", successor=True
    ),
    "a save longer than the grace": Case(do=preempt, partition="low", fault="slow", resumed=False),
    "user signal before there is a handler": Case(do=user_signal, fault=None, at_start=True, resumed=False),
    "time limit": Case(options=("--time=4", "--signal-delay=120")),
    # Killed in it: a successor goes on, submitted in advance, or the batch script lives to requeue the job.
    "a save longer than the time limit": Case(
        options=("--time=3", "--signal-delay=60"), fault="slow", resumed=False
    ),
    "scontrol requeue by hand": Case(do=requeue),
    "a node dies": Case(do=lose_a_node, resumed=False),
    "a rank raises": Case(fault="raise", rank=-1, resumed=False),
    "a rank exits": Case(fault="exit", rank=-1, resumed=False),
    "a rank is killed": Case(fault="kill", rank=-1, resumed=False),
    "a rank crashes": Case(fault="segv", rank=-1, resumed=False),
    "a rank is killed, then the user signal comes": Case(
        do=oom_then_user_signal, fault="kill", rank=-1, resumed=False
    ),
}


def submit(
    slurm: Slurm, place: Path, name: str, shape: str, case: Case | None, data: Path
) -> tuple[Run, str]:
    """Submits a training by the command users type. Returns the run and its job id."""
    nodes, gpus = SHAPES[shape]
    plan = []
    if case and case.fault:
        rank = case.rank if case.rank is None else nodes * gpus + case.rank
        plan = [{"step": HELD, "do": case.fault, "rank": rank}]
    overrides = {
        "train_dataloader.batch_size": 4 // (nodes * gpus),
        "custom_imports": {"imports": ["tests.support.slurm_faults"], "allow_failed_imports": False},
        "custom_hooks": [{"type": "Fault", "plan": plan}],
    }
    partition = case.partition if case else "gpu"
    command = [
        *(
            sys.executable,
            str(ROOT / "launch/train.py"),
            "--config",
            str(ROOT / "tests/support/configs/tiny.py"),
        ),
        *("--run", name, "--data-root", str(data), "--cluster", "slurm", "--json", "--no-evaluation"),
        *("--nodes", str(nodes), "--gpus", str(gpus), "--cpus-per-gpu", "1", "--partition", partition),
        *("--sbatch", "exclusive=true"),  # what is done to its nodes is to hit no other case
        *(case.options if case else ()),
        *("--set", *(f"{key}={value!r}" for key, value in overrides.items())),
    ]
    environment = {"BATON_RUNS": str(place), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = json.loads(slurm.run(*command, env=environment, cwd=ROOT))
    run = Run(place / name)
    submitted = [e for e in events.read(run.events) if e["event"] == "submitted" and e["stage"] == "train"]
    assert answer, "train.py --json prints what it did"
    return run, submitted[-1]["job"]


def play(slurm: Slurm, place: Path, name: str, shape: str, case: Case | None, data: Path) -> Run:
    """Submits a run, interrupts it as the case says, and waits until its training is finished."""
    run, job = submit(slurm, place, name, shape, case, data)
    if case:
        nodes, gpus = SHAPES[shape]
        if case.at_start:
            wait_for(lambda: tasks(slurm, job) >= nodes * gpus, f"{name}: its tasks are there", 900)
        elif case.rank is not None:
            last = run.job / f"held-{nodes * gpus + case.rank}"
            wait_for(last.exists, f"{name}: the rank is at its fault", 900)
        else:
            held = [run.job / f"held-{rank}" for rank in range(nodes * gpus)]
            wait_for(lambda: all(file.exists() for file in held), f"{name}: held at step {HELD}", 900)
        at_work = slurm.nodes_of(job)
        case.do(slurm, run, job)
        if case.do is lose_a_node:
            wait_for(lambda: slurm.job(job)["Restarts"] != "0", f"{name}: Slurm misses the node", 300)
            slurm.revive_node(at_work[-1])
    wait_for(lambda: finished(slurm, run, job), f"{name} finishes", 900)
    last_job = [e["job"] for e in events.read(run.events) if e["event"] == "finished"][-1]
    assert slurm.wait_ended(last_job) == "COMPLETED"
    for one in {job, last_job}:
        slurm.wait_no_processes(one)
    return run


def tasks(slurm: Slurm, job: str) -> int:
    """How many tasks of the training have come up; srun's own command line is not one."""
    found = [c for c in slurm.processes_of(job) if "-m jobs.train " in c and not c.startswith("srun")]
    return len(found)


def finished(slurm: Slurm, run: Run, job: str) -> bool:
    """Whether the training is finished. Fails at once if it was given up, or if no job of it is left."""
    story = events.read(run.events)
    assert story[-1]["event"] != "stopped", story[-1]["reason"]
    if any(event["event"] == "finished" for event in story):
        return True
    left = [[job, *(event["successor"] for event in story if event.get("successor"))][-1]]
    if (reserve := run.job / f"presubmitted-{left[0]}").exists():
        # A job that was able to requeue itself cancels its successor before it writes that it is requeued.
        left.append(reserve.read_text())
    states = {one: slurm.state(one) for one in left}
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
    ended = all(state in over for state in states.values())
    # What the job did last may have been written after the story was read.
    assert not ended or events.read(run.events) != story, f"lost: nothing follows of {states}"
    return False


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest,
    variant: Callable[..., Slurm],
    voc_small: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, str], Future[Run]]]:
    """All cases that are to be tested, on their way side by side, and the runs that are left alone."""
    items: list[Any] = request.session.items
    wanted = {
        (item.callspec.params["case"], item.callspec.params["shape"])
        for item in items
        if item.module is request.module and "case" in getattr(item, "callspec", item).params
    }
    clusters = {"user signal": variant("--user-signal", "--grace", "10", "--nodes", "14")}
    used = {CASES[case].cluster for case, _ in wanted}
    if "plain" in used:
        clusters["plain"] = variant("--grace", "10", "--nodes", "6", "--no-accounting")
    if "no requeue" in used:
        clusters["no requeue"] = variant("--user-signal", "--no-requeue", "--grace", "30")
    place = tmp_path_factory.mktemp("runs")
    # Four starts at once keep two cores busy; the rest of the time is Slurm's.
    with ThreadPoolExecutor(int(os.environ.get("ACCEPTANCE_AT_ONCE", "8"))) as pool:

        def begin(name: str, shape: str, case: Case | None) -> Future[Run]:
            slurm = clusters[case.cluster if case else "user signal"]
            label = f"{name.replace(' ', '-').replace(',', '')}-{shape}"
            return pool.submit(play, slurm, place, label, shape, case, voc_small)

        # The long ones first.
        order = sorted(wanted, key=lambda key: (CASES[key[0]].resumed, list(CASES).index(key[0]), key[1]))
        futures = {("alone", shape): begin("alone", shape, None) for shape in {shape for _, shape in wanted}}
        futures |= {(name, shape): begin(name, shape, CASES[name]) for name, shape in order}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_no_run_is_lost(case: str, shape: str, played: dict[tuple[str, str], Future[Run]]) -> None:
    run = played[case, shape].result()
    alone = played["alone", shape].result()
    assert tiny.differences(tiny.final_state(run), tiny.final_state(alone)) == []
    story = events.read(run.events)
    starts = [e["start"] for e in story if e["event"] == "started"]
    assert len(starts) >= 2 or CASES[case].at_start, "it was not interrupted at all"
    resumed = [e for e in story if e["event"] == "resumed"]
    if CASES[case].resumed:
        left = [e["step"] for e in story if e["event"] == "preempted" and e["step"]]
        assert left, "it never left at a step of its own will"
        assert [e["step"] for e in resumed] == left, "finished steps were lost"
    if CASES[case].successor:
        assert any(e.get("successor") for e in story if e["event"] == "requeued")
    if CASES[case].rank is not None:
        assert_first_error(story, CASES[case], SHAPES[shape])


def assert_first_error(story: list[dict[str, Any]], case: Case, shape: tuple[int, int]) -> None:
    """The failure that the user reads is the broken rank's, not the echo of it on another."""
    failed = next(e for e in story if e["event"] == "failed")
    assert failed["rank"] == shape[0] * shape[1] + (case.rank or 0)
    word = {"raise": "a bad batch", "exit": "3", "kill": "SIGKILL", "segv": "SIGSEGV"}[case.fault or ""]
    assert word in failed["error"]
