"""`--wait`: whose end is taken for the end, and what a Slurm that cannot tell is taken for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from jobs.run import events
from jobs.run.directory import Run
from jobs.slurm import queries as slurm_queries
from launch.observe import waiting
from tests.stages import wait_until
from tests.unit.made_runs import made_run

METRICS = {"mIoU": 50.0}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_run(tmp_path / "mine")


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only `squeue`, which shows the lines of the file `queue`; no sacct. Returns that file."""
    bin, queue = tmp_path / "bin", tmp_path / "queue"
    bin.mkdir()
    (bin / "squeue").write_text(f'#!/bin/sh\necho asked >> "{tmp_path}/asked"\nexec /bin/cat "{queue}"\n')
    (bin / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin))
    monkeypatch.setattr(waiting, "ASK_SECONDS", 0.0)
    queue.write_text("")
    return queue


def alive(queue: Path, *jobs: str) -> None:
    """As squeue's lines in the format that slurm_queries asks for."""
    text = "".join(f"{job}|{job}|N/A|RUNNING|p|1|me|N/A|N/A|n1||None\n" for job in jobs)
    assert slurm_queries.parse_squeue(text).keys() == set(jobs)
    new = queue.with_suffix(".new")
    new.write_text(text)
    os.replace(new, queue)


def add(run: Run, event: str, stage: str, job: str, **fields: object) -> None:
    events.append(run.events, event, stage=stage, job=job, **fields)


class Waiter(threading.Thread):
    """`--wait` in a thread; `code` is what it returned, None while it waits."""

    def __init__(self, run: Run, jobs: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.code: int | None = None
        self.run_directory, self.jobs = run, jobs
        self.asked = run.path.parent / "asked"
        self.start()

    def run(self) -> None:
        self.code = waiting.wait(self.run_directory, self.jobs)

    def goes_on(self) -> bool:
        """Whether it is waiting yet after it has read all events and has asked Slurm thrice."""
        goal = self.times() + 3  # the first of them may have begun before
        wait_until(lambda: self.times() >= goal or not self.is_alive())
        return self.is_alive()

    def times(self) -> int:
        return len(self.asked.read_text().splitlines()) if self.asked.exists() else 0

    def end(self) -> int | None:
        self.join(30.0)
        return self.code


def submit(run: Run, **jobs: str) -> dict[str, str]:
    for stage, job in jobs.items():
        add(run, "submitted", stage, job, executor="slurm")
    return jobs


def evaluated(run: Run, job: str) -> None:
    add(run, "evaluated", "evaluate", job, checkpoint="a.pth", metrics=METRICS, path="eval")


def test_the_end_of_another_job_is_not_the_end(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """During a training, an evaluation by hand ends well and an inference by hand badly."""
    submit(run, evaluate="3")
    evaluated(run, "3")
    jobs = submit(run, train="5", evaluate="6")
    submit(run, evaluate="7", infer="8")
    evaluated(run, "7")
    add(run, "failed", "infer", "8", reason="no image", exit_code=2)
    alive(slurm, "5", "6")
    waiter = Waiter(run, jobs)
    add(run, "finished", "train", "5", step=4)
    assert waiter.goes_on()
    add(run, "evaluated", "evaluate", "6", checkpoint="b.pth", metrics=METRICS, path="eval")
    assert waiter.end() == 0
    told = capsys.readouterr().out
    assert "evaluated b.pth" in told
    assert "a.pth" not in told


def test_an_earlier_inference_is_not_this_one(run: Run, slurm: Path) -> None:
    submit(run, infer="3")
    add(run, "finished", "infer", "3")
    jobs = submit(run, infer="4")
    alive(slurm)
    assert Waiter(run, jobs).end() == 1


@pytest.mark.parametrize("how", ["event", "file"])
def test_a_successor_is_followed(how: str, run: Run, slurm: Path) -> None:
    """Named by the job that it goes on for, or, where that was killed without notice, by a file."""
    jobs = submit(run, train="5")
    if how == "event":
        add(run, "requeued", "train", "5", how="successor", successor="9")
    else:
        (run.job / "presubmitted-5").write_text("9")
    alive(slurm, "9")
    waiter = Waiter(run, jobs)
    assert waiter.goes_on()
    add(run, "finished", "train", "9", step=4)
    assert waiter.end() == 0


def test_a_successor_in_advance_that_was_withdrawn_is_not_waited_for(run: Run, slurm: Path) -> None:
    jobs = submit(run, train="5")
    file = run.job / "presubmitted-5"
    file.write_text("9")
    alive(slurm, "5", "9")
    waiter = Waiter(run, jobs)
    assert waiter.goes_on()
    file.unlink()
    alive(slurm, "5")
    assert waiter.goes_on()
    add(run, "finished", "train", "5", step=4)
    assert waiter.end() == 0


def test_without_sacct_a_job_that_squeue_does_not_name_has_gone(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive(slurm)
    assert Waiter(run, submit(run, train="5", evaluate="6")).end() == 1
    assert "train job 5 UNKNOWN, evaluate job 6 UNKNOWN" in capsys.readouterr().err
    alive(slurm, "5")
    assert not waiting._left_the_queue("5")
    slurm.unlink()  # squeue fails
    assert not waiting._left_the_queue("5")


def test_a_cancelled_run_ends_the_waiting_and_an_earlier_mark_does_not(run: Run, slurm: Path) -> None:
    events.append(run.events, "cancelled", by="me")
    jobs = submit(run, train="5")
    alive(slurm, "5")
    add(run, "finished", "train", "5", step=4)
    assert Waiter(run, jobs).end() == 0
    jobs = submit(run, train="6")
    events.append(run.events, "cancelled", by="me")
    assert Waiter(run, jobs).end() == 1


@pytest.mark.parametrize(("last", "code"), [(2, 2), (1, 1)])
def test_a_mistake_that_stops_a_training_has_its_exit_code(
    last: int, code: int, run: Run, slurm: Path
) -> None:
    jobs = submit(run, train="5")
    alive(slurm, "5")
    add(run, "failed", "train", "5", exit_code=3 - last, reason="x")
    add(run, "failed", "train", "5", exit_code=last, reason="y")
    add(run, "stopped", "train", "5", reason="y")
    assert Waiter(run, jobs).end() == code


def test_after_an_answer_in_json_the_events_are_on_stderr(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = submit(run, prepare="5")
    alive(slurm, "5")
    add(run, "prepared", "prepare", "5", data_root="/data")
    assert waiting.wait(run, jobs, as_json=True) == 0
    out, error = capsys.readouterr()
    assert out == ""
    assert "prepared" in error
    assert waiting.wait(run, jobs) == 0
    out, error = capsys.readouterr()
    assert "prepared" in out
    assert error == ""


def test_the_progress_line_of_a_job_that_is_no_training(run: Run) -> None:
    line = waiting._ProgressLine(run)
    line.stage, line.job = "evaluate", "6"
    assert line._last_words() == ""
    (run.job / "6_0_log.out").write_text("loading\nevaluating epoch_1.pth 40 of 1449\n\n")
    assert line._last_words() == "evaluating epoch_1.pth 40 of 1449"
