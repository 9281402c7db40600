"""The table of all runs where there are many: sweeps as a line, a screen that is never too small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.observe import folding
from launch.observe.states import Status
from tests.unit.made_runs import common, made_run, started, write
from tests.unit.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]


def status(name: str, state: str = "finished", **more: object) -> Status:
    return Status(name=name, state=state, words=state, **more)  # type: ignore[arg-type]


def sweep(states: list[str], name: str = "lr") -> list[Status]:
    return [status(f"{name}-{number}", state, sweep=name) for number, state in enumerate(states)]


def test_a_sweep_is_a_line() -> None:
    elements = sweep(["running", "finished", "failed", "finished", "queued"])
    elements[0] = status(
        "lr-0", "running", sweep="lr", step=50, max_steps=100, best_mIoU=40.0, interruptions=2,
        eta_seconds=600.0, efficiency=0.5, job="12_0",
    )  # fmt: skip
    elements[1] = status(
        "lr-1",
        sweep="lr",
        step=100,
        max_steps=100,
        best_mIoU=45.0,
        mIoU=44.0,
        interruptions=1,
        efficiency=0.9,
    )
    shown = folding.lines([status("new"), *elements, status("old")])
    assert [line.cells[0] for line in shown] == ["new", "lr (5 runs)", "old"]
    line = shown[1]
    assert line.cells[1] == "1 failed, 1 running, 1 queued, 2 finished"
    assert line.state == "failed", "it is in its colour"
    assert line.cells[3:] == ["150/500", "", "45.00", "44.00", "3×", "0.70", "10 min", "12"]
    assert len(folding.lines(elements, fold=False)) == 5
    assert folding.lines(elements[:1])[0].cells[0] == "lr-0", "of one run nothing is folded"


def test_what_fits_on_a_screen_is_what_matters() -> None:
    states = ["finished"] * 50 + ["running"] * 5 + ["failed"] * 2 + ["finished"] * 43
    table = folding.lines([status(f"r{number}", state) for number, state in enumerate(states)])
    kept, more = folding.fitting(table, 10)
    assert [line.cells[0] for line in kept] == ["r0", "r1", "r2", *(f"r{number}" for number in range(50, 57))]
    assert more == "90 more lines: 90 finished"
    assert folding.fitting(table, 100) == (table, "")
    assert folding.fitting(table, 3)[1] == "97 more lines: 4 running, 93 finished"
    assert len(folding.fitting(table, -4)[0]) == 1


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 runs: a sweep of 60 and 140 others, of which two have failed long ago."""
    runs = tmp_path_factory.mktemp("runs")
    for number in range(60):
        run = made_run(runs / f"grid-{number}", sweep="grid")
        write(run, 5000, "submitted", stage="train", job=f"local-{number}", executor="local", element=number)
        started(run, 5001, 1, job=f"local-{number}")
        write(run, 5060, "finished", step=9, epoch=1, **common(1, f"local-{number}"))
    for number in range(140):
        run = made_run(runs / f"single-{number:03d}")
        write(run, number, "submitted", stage="train", job=f"local-9{number}", executor="local")
        end = "stopped" if number in (3, 77) else "finished"
        fields = (
            {"reason": "a very long reason that no screen has the room for" * 3} if end == "stopped" else {}
        )
        write(run, number + 1, end, **(fields or {"step": 9, "epoch": 1}), **common(1, f"local-9{number}"))
    return runs


def call(runs: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "launch/status.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"BATON_RUNS": str(runs)}, check=True,
    )  # fmt: skip
    return done.stdout


def test_sweeps_are_folded_and_unfolded(many: Path) -> None:
    names = [line.split()[0] for line in call(many).splitlines()]
    assert names[1] == "grid"
    assert sum(name.startswith("grid") for name in names) == 1
    assert sum(name.startswith("single") for name in names) == 140
    assert sum(line.startswith("grid-") for line in call(many, "--all").splitlines()) == 60
    elements = [line.split()[0] for line in call(many, "grid").splitlines() if line.startswith("grid-")]
    assert elements == [f"grid-{number}" for number in range(60)]
    found = json.loads(call(many, "--json"))["runs"]
    assert len(found) == 200, "a script sees them all"
    assert {one["sweep"] for one in found} == {"", "grid"}


def test_watch_fits_on_the_screen(many: Path) -> None:
    """40 lines of 100 characters. What needs somebody is among them, although it is old."""
    command = [sys.executable, str(ROOT / "launch/status.py"), "--watch", "0.1"]
    environment = os.environ | {"BATON_RUNS": str(many), "NO_COLOR": "1"}
    with Terminal(command, environment, columns=100) as terminal:
        terminal.until(r"one run: (.|\n)*one run: ")
    clear = "\x1b[2J\x1b[H"
    screen = terminal.text.split(clear)[1].replace("\r", "")
    lines = screen.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("200 runs: 2 stopped, 198 finished")
    text = "\n".join(lines)
    assert "grid (60 runs)" in text
    assert "single-003" in text
    assert "single-077" in text
    assert re.search(r"^\d+ more lines: \d+ finished; python launch/status.py lists all$", text, re.MULTILINE)
