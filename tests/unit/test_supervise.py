"""What rank 0's supervisor decides, without processes: see tests/local/test_supervision.py for those."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.run.exit_codes import FAILED, SUPERSEDED
from jobs.supervise.coordinate import SILENT_SECONDS, Coordinator, Rank


def coordinator(ranks: int = 3) -> tuple[Coordinator, list[dict[str, Any]], list[dict[str, Any]]]:
    orders: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = []
    made = Coordinator(
        ranks=[Rank(f"n{number}", 0.0, 0.0) for number in range(ranks)],
        order=orders.append,
        write=lambda event, **fields: written.append({"event": event, **fields}),
        hang_seconds=600.0,
    )
    return made, orders, written


def test_the_cause_comes_after_its_echo() -> None:
    """Rank 0 notices a lost connection before the exit of the rank that broke it is seen."""
    made, orders, written = coordinator()
    made.handle(0, {"exit": {"code": 1, "error": "RuntimeError: [gloo] Connection closed by peer"}}, 1.0)
    assert not orders
    made.handle(2, {"exit": {"code": 1, "error": "ValueError: the real one"}}, 1.5)
    assert orders == [{"do": "kill"}]
    made.handle(1, {"exit": {"code": 137, "signal": "SIGKILL", "error": "killed"}}, 1.6)
    made.tick(1.7)
    assert made.code == FAILED
    assert [(e["event"], e["rank"], e["error"]) for e in written] == [
        ("failed", 2, "ValueError: the real one")
    ]


ABORTED = {"code": 134, "signal": "SIGABRT", "error": "was aborted (SIGABRT)"}


@pytest.mark.parametrize(
    ("ends", "blamed"),
    [
        ([(0, ABORTED), (1, {"code": 1, "error": "ValueError: x"})], 1),
        ([(0, ABORTED), (1, {"code": 137, "signal": "SIGKILL", "error": "killed"})], 1),
        ([(0, {"code": 1, "error": "RuntimeError: Connection reset by peer"}), (1, ABORTED)], 1),
        ([(0, ABORTED), (1, ABORTED)], 0),
        ([(0, ABORTED), (1, ABORTED | {"error": "Device-side assertion (was aborted (SIGABRT))"})], 1),
    ],
)
def test_an_abort_may_be_the_watchdogs_and_then_another_rank_is_the_cause(
    ends: list[tuple[int, dict[str, Any]]], blamed: int
) -> None:
    made, orders, written = coordinator(2)
    for number, (rank, end) in enumerate(ends):
        assert not orders
        made.handle(rank, {"exit": end}, 1.0 + number / 2)
    made.tick(2.0)
    assert made.code == FAILED
    assert [event["rank"] for event in written] == [blamed]


def test_a_node_that_is_lost_is_blamed_and_not_the_rank_that_felt_it_first() -> None:
    made, orders, written = coordinator(2)
    made.handle(0, {"exit": ABORTED}, 1.0)
    for now in range(2, 40):
        made.tick(float(now))
    assert orders == [{"do": "kill"}]
    assert [(event["rank"], event["host"]) for event in written] == [(1, "n1")]


def test_an_echo_without_a_cause_is_reported_itself() -> None:
    made, orders, written = coordinator(2)
    made.handle(0, {"exit": {"code": 1, "error": "NCCL error"}}, 1.0)
    made.tick(1.5)
    assert not orders
    made.tick(3.5)
    assert orders == [{"do": "kill"}]
    made.handle(1, {"exit": {"code": 137, "error": "killed"}}, 3.6)
    made.tick(3.7)
    assert written[-1]["error"] == "NCCL error"


def test_a_start_that_was_fenced_off_is_no_failure() -> None:
    """Whatever the other ranks die of meanwhile."""
    made, orders, written = coordinator()
    made.handle(1, {"exit": {"code": 1, "error": "RuntimeError: [gloo] Connection closed by peer"}}, 1.0)
    made.handle(0, {"exit": {"code": SUPERSEDED, "by": 7}}, 1.5)
    assert orders == [{"do": "kill"}]
    made.handle(2, {"exit": {"code": 137, "signal": "SIGKILL", "error": "killed"}}, 1.6)
    made.tick(1.7)
    assert made.code == SUPERSEDED
    assert written == [{"event": "superseded", "by": 7}]


def test_a_validation_may_take_longer_and_its_patience_counts_for_all() -> None:
    made, _, written = coordinator(2)
    made.handle(0, {"phase": "validate", "step": 9}, 0.0)
    made.handle(1, {"phase": "train", "step": 9}, 0.0)
    for now in range(0, 1500, 5):
        for rank in (0, 1):
            made.handle(rank, {"alive": True}, float(now))
        made.tick(float(now))
    assert not written
    made.handle(0, {"phase": "train", "step": 10}, 1500.0)
    made.handle(1, {"alive": True}, 1500.0)
    made.tick(1500.0)
    assert [event["event"] for event in written] == ["hang"]
    assert written[0]["rank"] == 1


def test_a_suspended_job_has_not_hung() -> None:
    made, _, written = coordinator(2)
    for rank in (0, 1):
        made.handle(rank, {"phase": "train", "step": 1}, 0.0)
    made.tick(0.0)
    made.tick(100000.0)
    assert not written


def test_a_silent_supervisor_is_lost() -> None:
    made, _, _ = coordinator(2)
    made.handle(0, {"alive": True}, 0.0)
    now = 0.0
    while now < SILENT_SECONDS + 5:
        now += 5
        made.handle(0, {"phase": "train", "step": int(now)}, now)
        made.tick(now)
    assert made.failures[0]["rank"] == 1
    assert "not heard of" in made.failures[0]["error"]


def test_a_failure_is_at_the_step_of_the_rank_that_failed() -> None:
    """The others may or may not have begun the next: the same failure must look the same each time."""
    made, _, written = coordinator(2)
    made.handle(0, {"phase": "train", "step": 3}, 0.5)
    made.handle(1, {"exit": {"code": 1, "error": "ValueError: a bad batch", "step": 2}}, 1.0)
    made.handle(0, {"exit": {"code": 137, "signal": "SIGKILL", "error": "killed", "step": 3}}, 1.1)
    made.tick(1.2)
    assert (written[-1]["rank"], written[-1]["step"]) == (1, 2)


def test_a_suspension_that_all_ranks_report_is_written_once() -> None:
    made, _, written = coordinator(2)
    for rank in (0, 1):
        made.handle(rank, {"phase": "train", "step": 1}, 0.0)
    made.handle(1, {"suspended": 500.0}, 600.0)
    made.handle(0, {"suspended": 500.3}, 600.4)
    assert written == [{"event": "suspended", "seconds": 500.0, "rank": 1, "host": "n1"}]
    # Its clocks are set forward: what is left until a hang is what was left before.
    assert [rank.beat for rank in made.ranks] == [500.0, 500.0]
    made.handle(0, {"suspended": 20.0}, 610.0)
    assert written[-1]["seconds"] == pytest.approx(10.0)
