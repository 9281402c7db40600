"""Real supervisors with stand-in workers: who failed first, nobody left behind, signals, hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events
from jobs.run.exit_codes import FAILED, FINISHED, RESUME, SUPERSEDED, USER_ERROR
from tests.stages import ROOT, end_of, make_run, of, processes_of, start_ranks, train_command, wait_until
from tests.support import tiny


def fault(do: str, rank: int | str, step: int, start: int | str = 1) -> dict[str, Any]:
    return {"start": start, "rank": rank, "step": step, "do": do}


def test_all_ranks_finish(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert end_of(start_ranks(run, 3)) == [0, 0, 0]
    (started,) = of(run, "started")
    assert (started["world_size"], started["ranks_per_node"], started["start"]) == (3, 3, 1)
    assert len(of(run, "finished")) == 1
    assert json.loads((run.job / "start-1").read_text())["job"] == "local-1"
    assert not processes_of(run)


@pytest.mark.parametrize(
    ("do", "code", "error"),
    [
        ("raise", FAILED, "ValueError: a bad batch in rank 2 (stand_in_worker.py:"),
        ("exit 0", FAILED, "exit code 0 before the training was finished"),
        ("exit 87", FAILED, "exit code 87, but no later start is to be seen"),
        ("exit 3", 3, "exit code 3"),
        ("kill", 137, "SIGKILL, probably for want of memory"),
        ("segv", 139, "segmentation fault (SIGSEGV) in native code (stand_in_worker.py:"),
        ("abort", 134, "Device-side assertion `t >= 0 && t < n_classes' failed. (was aborted (SIGABRT)"),
        ("cublas", FAILED, "Assertion `t < n_classes` failed. (RuntimeError: CUDA error: CUBLAS_STATUS_"),
        ("babble", 3, "exit code 3"),
    ],
)
def test_a_dead_rank_ends_all_and_leaves_nothing(tmp_path: Path, do: str, code: int, error: str) -> None:
    """With children and grandchildren, in sessions of their own, on every rank."""
    run = make_run(tmp_path / "run", steps=1000, faults=[fault("fork", "*", 1), fault(do, 2, 4)])
    assert end_of(start_ranks(run, 4)) == [FAILED] * 4
    (failed,) = of(run, "failed")
    assert (failed["rank"], failed["exit_code"]) == (2, code)
    assert error in failed["error"]
    assert failed["log"] == "job/local-1-train_2_log.out"
    assert len(list(run.job.glob("child-1-*"))) == 4
    assert not processes_of(run)


def test_the_users_mistake_has_its_own_exit_code(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", faults=[fault("exit 2", 0, 0)])
    assert end_of(start_ranks(run, 2)) == [USER_ERROR] * 2


def test_two_ranks_with_one_gpu_are_a_mistake_and_no_fault_of_the_machine(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", faults=[fault("nccl", 1, 1)])
    assert end_of(start_ranks(run, 2)) == [USER_ERROR] * 2
    (failed,) = of(run, "failed")
    assert "were given the same GPU" in failed["error"]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_supervisor_takes_all_with_it(tmp_path: Path, victim: int) -> None:
    run = make_run(tmp_path / "run", steps=100000)
    ranks = start_ranks(run, 3)
    wait_until(lambda: of(run, "checkpoint"))
    ranks[victim].kill()
    codes = end_of(ranks)
    assert codes == [-signal.SIGKILL if rank == victim else FAILED for rank in range(3)]
    (failed,) = of(run, "failed")
    assert failed["rank"] == victim
    assert "supervisor" in failed["error"]
    wait_until(lambda: not processes_of(run))


def test_submitted_twice_the_later_start_goes_on_and_the_earlier_ends_for_good(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=300)
    first = start_ranks(run, 2)
    wait_until(lambda: of(run, "checkpoint"))
    second = start_ranks(run, 2, SUBMITIT_LOCAL_JOB_ID="2")
    assert end_of(first) == [SUPERSEDED] * 2
    assert end_of(second) == [FINISHED] * 2
    assert [(e["start"], e["by"]) for e in of(run, "superseded")] == [(1, 2)]
    assert not of(run, "failed")
    assert not processes_of(run)


def test_the_real_worker_that_is_fenced_off_says_so_by_its_exit_code(tmp_path: Path) -> None:
    data = tiny.make_data(tmp_path / "data")
    run = tiny.make_run(
        tmp_path / "run",
        data,
        custom_imports={"imports": ["tests.interrupting"], "allow_failed_imports": False},
        custom_hooks=[{"type": "Interrupt"}],
    )
    here = tmp_path / "here"
    with ThreadPoolExecutor(1) as thread:
        # An epoch, and so the next save, ends after 6 steps.
        started = thread.submit(tiny.start, run, 1, {"at": "step", "step": 4, "pause": str(here)})
        wait_until(lambda: here.exists() or started.done(), 60)
        tiny.claim(run)
        here.unlink()
        assert started.result() == [SUPERSEDED]
    assert not list(run.checkpoints.glob("*.pth"))


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_reaches_the_worker_which_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    run = make_run(tmp_path / "run", steps=100000)
    ranks = start_ranks(run, 2)
    wait_until(lambda: of(run, "checkpoint"))
    for rank in ranks:
        rank.send_signal(number)
    assert end_of(ranks) == [RESUME] * 2
    (event,) = of(run, "signal")
    assert event["signal"] == number.name
    assert of(run, "checkpoint")[-1]["why"] == "preempted"
    assert not of(run, "failed")


LAST_MOMENT = """
import os, signal, sys

class Srun:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

sys.modules["srun"] = Srun()  # collected when Python, which has taken its handlers away, is all but gone
from jobs.train.__main__ import main
sys.exit(main())
"""


def test_a_signal_at_the_very_end_does_not_change_what_was_decided(tmp_path: Path) -> None:
    """Other ranks have left with 85 by then, so srun ends those that are left."""
    run = make_run(tmp_path / "run")
    command = train_command(run)
    command[1:3] = ["-c", LAST_MOMENT]
    environment = {**os.environ, "SUBMITIT_LOCAL_JOB_ID": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == FINISHED
    assert len(of(run, "finished")) == 1


def test_a_signal_before_the_first_step_does_not_wait_for_the_workers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", start_seconds=600)
    ranks = start_ranks(run, 2)
    wait_until(lambda: of(run, "started"))
    ranks[1].send_signal(signal.SIGTERM)
    assert end_of(ranks) == [RESUME] * 2
    assert len(of(run, "preempted")) == 1
    assert not processes_of(run)


def test_a_hang_is_found_and_every_rank_tells_where_it_stands(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", faults=[fault("hang", 1, 7)])
    assert end_of(start_ranks(run, 3, BATON_HANG_SECONDS="3")) == [FAILED] * 3
    (hang,) = of(run, "hang")
    assert hang["rank"] == 1
    stacks = [(run.job / f"stacks-1-{rank}.txt").read_text() for rank in range(3)]
    assert "in misbehave" in stacks[1]
    assert "in all_agree" in stacks[0]
    assert "in all_agree" in stacks[2]
    assert "no progress" in of(run, "failed")[0]["error"]
    assert not processes_of(run)


def test_a_rank_and_a_loader_that_stand_still_are_found_and_the_run_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    """The real training, started again as the batch script does."""
    data = tiny.make_data(tmp_path / "data")
    settings = {
        "custom_imports": {"imports": ["tests.standing_still"], "allow_failed_imports": False},
        "custom_hooks": [{"type": "StandStill"}],
        "train_dataloader.num_workers": 1,
        "train_dataloader.batch_size": 2,
    }
    run, alone = (tiny.make_run(tmp_path / name, data, **settings) for name in ("run", "alone"))
    # A start may take three times as long: enough for a busy machine to import torch.
    environment = {"BATON_HANG_SECONDS": "20", "STAND_STILL": "1", "OMP_NUM_THREADS": "1"}
    codes = [end_of(start_ranks(run, 2, real=True, **environment), 180) for _ in range(3)]
    assert codes == [[FAILED] * 2, [FAILED] * 2, [FINISHED] * 2]
    assert [e["start"] for e in of(run, "hang")] == [1, 2]
    # Between two steps the ranks look alike; who holds up whom is in their stacks.
    stacks = {(s, r): (run.job / f"stacks-{s}-{r}.txt").read_text() for s in (1, 2) for r in (0, 1)}
    assert "in before_train_iter" in stacks[1, 1]
    assert "in never_loads" in stacks[2, 1]  # the loader's own
    assert "in loaded" in stacks[2, 1]  # the rank that waits for it
    assert all("in step" in stacks[start, 0] for start in (1, 2))  # and the rank that waits for that
    assert not processes_of(run)
    assert tiny.start(alone, 2) == [FINISHED] * 2
    assert tiny.differences(tiny.final_state(run), tiny.final_state(alone)) == []


def test_a_start_over_the_budget_ends_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", faults=[fault("kill", 0, 0, "*")])
    for _ in range(3):
        assert end_of(start_ranks(run, 2)) == [FAILED] * 2
    assert not of(run, "stopped")
    assert end_of(start_ranks(run, 2)) == [FAILED] * 2
    (stopped,) = of(run, "stopped")
    assert "3 starts in a row" in stopped["reason"]
    assert len(of(run, "started")) == 3


def test_a_cancelled_run_does_not_train_again(tmp_path: Path) -> None:
    """Its job may have been in the queue already, for a requeue."""
    run = make_run(tmp_path / "run")
    (run.job / "cancelled").touch()
    assert end_of(start_ranks(run, 2)) == [FAILED] * 2
    assert events.read(run.events) == []
    assert "train.py --resume run goes on" in (run.job / "local-1-train_0_log.out").read_text()


def test_ranks_that_never_meet_are_a_failure_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first, second = start_ranks(run, 2, BATON_RENDEZVOUS_SECONDS="2")
    second.kill()
    second.wait()
    assert first.wait(timeout=60) == FAILED
    assert "for rank 1 of 2" in of(run, "failed")[0]["reason"]
