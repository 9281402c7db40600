"""The history that events tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run import story
from jobs.run.directory import Run
from jobs.run.metrics import Figure
from jobs.slurm.queries import Job, parse_sacct
from launch.observe import accounting, history
from tests.unit.made_runs import (
    T0,
    common,
    interrupted_run,
    made_run,
    started,
    submitted,
    write,
    write_progress,
)


def test_starts_end_for_the_reason_that_the_events_give(tmp_path: Path) -> None:
    past = history.read(interrupted_run(tmp_path / "run"))
    assert [one.ending for one in past.incarnations] == ["preempted", "killed", "finished"]
    assert "saved at step 150" in past.incarnations[0].why
    assert "without warning" in past.incarnations[1].why
    assert [one.resumed_step for one in past.incarnations] == [0, 150, 200]
    assert past.finished == T0 + 582
    assert past.best == Figure("mIoU", 55.25, 400)
    assert (past.preemptions, past.interruptions) == (1, 2)


def test_a_torn_line_hides_nothing_else(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    with run.events.open("a") as file:
        file.write('{"time": "2026-09-21T13:33:21Z", "event": "sta\n')
    started(run, 5, 1)
    with run.events.open("a") as file:
        file.write('{"time": "20')
    past = history.read(run)
    assert past.incarnations[0].first_step == T0 + 15


def test_the_newest_job_is_the_same_for_programs_and_for_people(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 5, 1)
    write(run, 50, "requeued", stage="train", job="12", how="successor", successor="13")
    assert newest(run) == "13"
    started(run, 60, 2, job="20")  # plain sbatch of the script: nobody announced it
    assert newest(run) == "20"
    started(run, 90, 3, job="13")
    assert newest(run) == "13"
    assert history.read(run).job_numbers() == {"12", "13", "20"}


def newest(run: Run) -> str:
    past = story.read(run.events)
    job = history.read(run).newest_job("train")
    assert job is not None
    assert job.id == past.newest["train"]
    return job.id


def test_what_earlier_starts_saved_is_no_progress_of_a_later_one(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    for start, step in ((1, 10), (2, 10), (3, 20)):
        started(run, start * 100, start)
        write(run, start * 100 + 50, "epoch", epoch=1, step=step, seconds=1.0, **common(start))
    past = story.read(run.events)
    assert [one.progress for one in past.starts()] == [True, False, True]
    assert past.trained(4) == (3 * 40, 3)
    assert past.last_start == 3
    submitted(run, 500, job="13")
    assert story.read(run.events).starts() == []


def test_what_a_start_did_that_nobody_announced_counts(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write(run, 5, "checkpoint", step=9, epoch=1, path="", bytes=1, seconds=1.0, why="epoch", **common(1))
    past = story.read(run.events)
    assert past.last_checkpoint() == (9, 1)
    assert past.trained(2) == (0, 1)


def test_a_start_that_another_followed_has_ended(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 0, 1)
    write(run, 50, "signal", signal="TERM", rank=0, host="n1", **common(1))
    started(run, 100, 2)
    first = history.read(run).incarnations[0]
    assert first.ended == T0 + 50
    assert "TERM" in first.why


def test_progress_tells_how_far_a_killed_start_came(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 0, 1)
    write_progress(run, 60, start=1, step=51, epoch=0)
    last = history.read(run).incarnations[0]
    assert (last.step, last.last_seen, last.ended) == (51, T0 + 60, None)


def test_accounting_says_why_a_start_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    run = interrupted_run(tmp_path / "run")
    past = history.read(run)
    rows = parse_sacct(
        "12|PREEMPTED|0:0|2026-09-21T14:13:40|2026-09-21T14:16:30|2026-09-21T14:13:20|n1|None\n"
        "12|NODE_FAIL|0:0|2026-09-21T14:16:51|2026-09-21T14:19:02|2026-09-21T14:13:20|n2|BeginTime\n"
    )
    assert [row.reason for row in rows] == ["", ""], "why it waited is not why it ended"
    # Slurm's times are local; whatever the zone of this machine, they shall be those of the run.
    shift = T0 + 20 - (rows[0].start or 0)
    moved = [_moved(row, shift) for row in rows]
    accounting.add(past, {"12": moved})
    assert past.incarnations[1].why == "the node failed on n2"
    assert past.incarnations[1].ended == pytest.approx(T0 + 342)


def test_several_starts_within_one_incarnation_of_a_job(tmp_path: Path) -> None:
    """A training that failed is started again in the same allocation; Slurm has one row for both."""
    run = made_run(tmp_path / "run")
    submitted(run)
    for start, at in ((1, 10), (2, 100), (3, 300), (4, 400)):
        started(run, at, start)
    past = history.read(run)

    def row(state: str, begin: float, end: float) -> Job:
        return Job(id="12", state=state, start=T0 + begin, end=T0 + end, nodes="n1")

    rows = [row("NODE_FAIL", 299, 350), row("TIMEOUT", 9, 200), row("RUNNING", 399, 500)]
    accounting.add(past, {"12": rows})
    assert [one.why for one in past.incarnations[:3]] == [
        "the time limit was reached on n1", "the time limit was reached on n1", "the node failed on n1",
    ]  # fmt: skip


def _moved(row, by):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(row, start=row.start + by, end=row.end + by)


def test_resuming_a_cancelled_run_takes_the_rest_out_of_its_time(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 10, 1)
    write(run, 100, "cancelled", by="me")
    assert history.read(run).cancelled == T0 + 100
    submitted(run, 1100, job="13")
    past = history.read(run)
    assert past.cancelled is None
    assert past.paused == 1000


def test_the_first_error_is_the_one_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 0, 1)
    write(
        run, 30, "failed", reason="rank 1 died", error="ZeroDivisionError: x", rank=1, host="n2", **common(1)
    )
    write(run, 31, "failed", reason="srun ended with 1", **common(1))
    past = history.read(run)
    assert past.failed is not None
    assert past.failed.error == "ZeroDivisionError: x"
    assert past.incarnations[0].why == "rank 1 on n2: ZeroDivisionError: x"
