"""The table of all runs where there are many: sweeps as a line, a screen that is never too small."""

from __future__ import annotations

from collections import Counter

from jobs.run.metrics import Figure
from launch.observe import figures, folding
from launch.observe.states import Status


def status(name: str, state: str = "finished", **more: object) -> Status:
    return Status(name=name, state=state, words=state, **more)  # type: ignore[arg-type]


def sweep(states: list[str]) -> list[Status]:
    return [status(f"lr-{number}", state, sweep="lr") for number, state in enumerate(states)]


def lines(found: list[Status], fold: bool = True) -> list[folding.Line]:
    return folding.lines(found, figures.heads(found), fold)


def test_a_sweep_is_a_line() -> None:
    elements = sweep(["running", "finished", "failed", "finished", "queued"])
    elements[0] = status(
        "lr-0", "running", sweep="lr", step=50, max_steps=100, best=Figure("mIoU", 40.0), interruptions=2,
        eta_seconds=600.0, efficiency=0.5, job="12_0",
    )  # fmt: skip
    elements[1] = status(
        "lr-1",
        sweep="lr",
        step=100,
        max_steps=100,
        best=Figure("mIoU", 45.0),
        evaluated=Figure("mIoU", 44.0),
        interruptions=1,
        efficiency=0.9,
    )
    shown = lines([status("new"), *elements, status("old")])
    assert [line.cells[0] for line in shown] == ["new", "lr (5 runs)", "old"]
    line = shown[1]
    assert line.cells[1] == "1 failed, 1 running, 1 queued, 2 finished"
    assert line.state == "failed", "it is in its colour"
    assert line.cells[3:] == ["150/500", "", "45.00", "44.00", "3×", "0.70", "10 min", "12"]
    assert len(lines(elements, fold=False)) == 5
    assert lines(elements[:1])[0].cells[0] == "lr-0", "of one run nothing is folded"
    for state in ("failed", "stuck", "stopped", "unreadable", "unknown"):
        assert lines(sweep(["finished", "running", state]))[0].state == state, "somebody must look at it"


def test_what_fits_on_a_screen_is_what_matters() -> None:
    states = ["finished"] * 50 + ["running"] * 5 + ["failed"] * 2 + ["finished"] * 43
    table = lines([status(f"r{number}", state) for number, state in enumerate(states)])
    kept, more = folding.fitting(table, 10)
    assert [line.cells[0] for line in kept] == ["r0", "r1", "r2", *(f"r{number}" for number in range(50, 57))]
    assert more == "90 more lines: 90 finished"
    assert folding.fitting(table, 100) == (table, "")
    assert folding.fitting(table, 3)[1] == "97 more lines: 4 running, 93 finished"
    assert len(folding.fitting(table, -4)[0]) == 1


def test_many_old_failures_do_not_hide_what_runs() -> None:
    states = ["running"] * 2 + ["failed"] * 40 + ["running"] * 30 + ["finished"] * 5
    table = lines([status(f"r{number}", state) for number, state in enumerate(states)])
    kept, more = folding.fitting(table, 11)
    assert [line.state for line in kept] == ["running"] * 2 + ["failed"] * 6 + ["running"] * 3
    assert [line.cells[0] for line in kept if line.state == "failed"] == [
        f"r{number}" for number in range(2, 8)
    ]
    assert more == "66 more lines: 34 failed, 27 running, 5 finished"
    assert Counter(line.state for line in folding.fitting(table[:42], 11)[0]) == {"running": 2, "failed": 9}
