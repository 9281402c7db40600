"""The simulator agrees with the closed formulas and with a real run, or says that it does not."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import simulate
from launch.observe import efficiency
from tests.unit.made_runs import common, made_run, started, submitted, write

WORLD = simulate.World(
    save=2.0, written=2.0, leave=5.0, restart=60.0, queue=100.0, failures=3600.0, waves=math.inf, grace=0.0
)  # fmt: skip


def through(world: simulate.World, interval: float, seed: int) -> simulate.Outcome:
    return simulate.simulate(world, 50_000, interval, simulate.by_chance(world, seed))


def test_it_agrees_with_the_closed_formula() -> None:
    for row in simulate.check_formula(seeds=10):
        assert row["simulated"] == pytest.approx(row["formula"], abs=0.01)


def test_the_simulated_optimum_is_young_dalys() -> None:
    for row in simulate.check_optimum(seeds=10):
        assert row["simulated"] == pytest.approx(row["young"], rel=0.3)
        assert row["ettr_simulated"] - row["ettr_closed"] < 0.002


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (through(WORLD, 120, seed=3) for _ in range(2))
    assert one == other
    assert through(WORLD, 120, seed=4) != one
    assert one.productive == 50_000


def test_what_is_announced_in_time_loses_no_work() -> None:
    world = msgspec.structs.replace(WORLD, failures=1e12, waves=1800.0, grace=30.0)
    assert through(world, 600, seed=1).lost == 0
    unannounced = msgspec.structs.replace(world, grace=1.0)
    assert through(unannounced, 600, seed=1).lost > 0


def test_a_wave_hits_several_times_in_a_row() -> None:
    world = msgspec.structs.replace(WORLD, failures=1e12, waves=1e5, hits=4.0, gap=100.0)
    lives = [one.life for one in itertools.islice(simulate.by_chance(world, 1), 20_000)]
    waves = [life for life in lives if life > 2_000]
    assert len(lives) / len(waves) == pytest.approx(4.0, rel=0.1)
    assert sum(waves) / len(waves) == pytest.approx(1e5, rel=0.1)
    short = [life for life in lives if life <= 2_000]
    assert sum(short) / len(short) == pytest.approx(100, rel=0.1)


def test_given_interruptions_are_gone_through_to_the_second() -> None:
    """By hand: 10 s to start, 20 s of work to a save of 1 s."""
    world = msgspec.structs.replace(WORLD, save=1.0, written=1.0, leave=0.0, restart=10.0)
    interruptions = [
        simulate.Interruption(life=45.0, announced=False, queue=5.0),  # 34 s of work, 20 kept
        simulate.Interruption(life=8.0, announced=False, queue=6.0),  # never comes to a step
        simulate.Interruption(life=25.0, announced=True, queue=7.0),  # 15 s of work, kept
    ]
    found = simulate.simulate(world, 100, 20, interruptions)
    assert (found.lost, found.productive, found.interruptions) == (14, 100, 3)
    # 65 s are left, with three saves.
    assert found.wall == pytest.approx(45 + 5 + 8 + 6 + 25 + 7 + 10 + 65 + 3)


def test_saves_by_epoch_come_at_the_epochs_end_whenever_it_began() -> None:
    world = msgspec.structs.replace(WORLD, save=0.0, written=0.0, restart=10.0, by_epoch=True)
    told = simulate.Interruption(life=35.0, announced=True, queue=0.0)  # 25 s of work, kept
    killed = simulate.Interruption(life=27.0, announced=False, queue=0.0)  # 17 s more; saved at 40
    assert simulate.simulate(world, 100, 20, [told, killed]).lost == 2
    assert simulate.simulate(world, 100, 100, [told, killed]).lost == 17


def test_more_nodes_are_interrupted_more_often() -> None:
    few, many = (msgspec.structs.replace(WORLD, failures=8e6 / nodes) for nodes in (10, 1000))
    assert simulate.mean_ettr(few, 100_000, 200, 5) > simulate.mean_ettr(many, 100_000, 200, 5)
    assert simulate.best_interval(few) > simulate.best_interval(many)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of two interruptions."""
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    regular_run(tmp_path / "run")
    return "run"


def regular_run(path: Path) -> None:
    """A step a second, 10 s to start, an epoch and a save every 100 steps. Preempted and saved at step 150;
    killed without a word after step 260, so the next goes on from 200; finished at step 400."""
    run = made_run(path)
    submitted(run)
    for start, began, resumed, steps in (
        (1, 20, 0, [100, 150]),
        (2, 200, 150, [200]),
        (3, 360, 200, [300, 400]),
    ):
        started(run, began, start, step=resumed)
        for step in steps:
            at = began + 10 + step - resumed
            write(
                run, at, "checkpoint", step=step, epoch=step // 100, path=f"iter_{step}.pth", bytes=9,
                seconds=2.0, stall_seconds=1.0, why="interval", **common(start),
            )  # fmt: skip
            write(run, at, "epoch", epoch=step // 100, step=step, seconds=100.0, **common(start))
        if start == 1:
            write(run, 180, "preempted", step=150, epoch=1, **common(1))
        if start == 2:
            write(run, 320, "epoch", epoch=2, step=260, seconds=60.0, **common(2))
    write(run, 570, "finished", step=400, epoch=4, **common(3))


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simulate.py", "--seeds", "3", "--days", "0.1", *arguments])
    return simulate.main()


def test_a_real_runs_trace_is_simulated(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = simulate.replay(run)
    assert found["interruptions"] == 2
    assert found["simulated"] == pytest.approx(found["observed"], abs=0.03)
    assert ended(monkeypatch, "--trace", run) == 0
    said = capsys.readouterr().out
    assert "2 interruptions" in said
    assert all(f'"name": "simulate_{name}"' in said for name in simulate.TOLERANCE)


def test_a_check_that_is_off_is_an_error(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = efficiency.costs

    def slower(*arguments: Any) -> efficiency.Costs:
        found = measured(*arguments)
        return msgspec.structs.replace(found, startup=5 * (found.startup or 0))

    with monkeypatch.context() as patch:
        patch.setattr(efficiency, "costs", slower)
        assert ended(monkeypatch, "--trace", run) == 1
        assert simulate.WHAT["trace"] in capsys.readouterr().err
    expected = efficiency.expected_ettr
    monkeypatch.setattr(efficiency, "expected_ettr", lambda *given: 0.97 * expected(*given))
    assert ended(monkeypatch, "--trace", run) == 1
    assert simulate.WHAT["formula"] in capsys.readouterr().err


def test_the_costs_of_a_run_are_taken(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def best(*arguments: str) -> float:
        assert ended(monkeypatch, "--trace", run, "--json", *arguments) == 0
        return float(json.loads(capsys.readouterr().out)["table"][0]["best_interval_s"])

    # A save of this run takes 1 to 2 s, by default it holds training up for 0.3 s.
    assert best("--costs", run) > 1.5 * best()
