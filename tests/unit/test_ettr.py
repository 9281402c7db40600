"""The trace of benchmarks/ettr.py, and its figures from a step log and Slurm's rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ettr


def test_the_trace_has_all_kinds_and_comes_again_from_its_seed() -> None:
    trace = ettr.trace(1, 10, 40.0)
    assert {one.kind for one in trace} == set(ettr.KINDS)
    assert all(ettr.SHORTEST <= one.life <= ettr.LONGEST for one in trace)
    assert trace == ettr.trace(1, 10, 40.0) != ettr.trace(2, 10, 40.0)


class Accounting:
    """sacct's answer, nothing else."""

    def __init__(self, *rows: str) -> None:
        self.rows = rows

    def run(self, *argv: str) -> str:
        assert argv[0] == "sacct"
        return "\n".join(self.rows)


def test_lost_is_what_is_not_different_steps(tmp_path: Path) -> None:
    """Twice 60 s in jobs, and 10 s in the queue each time; 40 and 45 steps of a second, 20 of them again."""
    begin = ettr.seconds_of("2026-01-01T00:00:10")
    arm = ettr.Arm(name="guide", folder=tmp_path, jobs=["7"])
    with arm.steps.open("w") as file:
        for pid, since, first, count in ((1, begin + 15, 1, 40), (2, begin + 80, 21, 45)):
            for number in range(count):
                line = {"time": since + number, "step": first + number, "pid": pid}
                file.write(json.dumps(line) + "\n")
    slurm = Accounting(
        "7|2026-01-01T00:00:00|2026-01-01T00:00:10|2026-01-01T00:01:10|REQUEUED",
        "7|2026-01-01T00:01:10|2026-01-01T00:01:20|2026-01-01T00:02:20|COMPLETED",
    )
    found = ettr.figures(slurm, arm)  # type: ignore[arg-type]
    assert (found["steps"], found["steps_done_again"], found["step"]) == (65, 20, 1.0)
    assert (found["productive"], found["in_jobs"], found["lost"]) == (65.0, 120.0, 55.0)
    assert found["ettr"] == pytest.approx(65 / 140)
    assert found["starting"] == [15.0, 10.0]
