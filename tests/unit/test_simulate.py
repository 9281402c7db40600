"""The simulator agrees with the closed formula, and announced interruptions lose nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import simulate
from tests.unit.made_runs import interrupted_run

WORLD = simulate.World(
    save=2.0, written=2.0, leave=5.0, restart=60.0, queue=100.0, failures=3600.0,
    preemptions=float("inf"), grace=0.0,
)  # fmt: skip


def test_it_agrees_with_the_closed_formula() -> None:
    for row in simulate.check_formula(seeds=10):
        assert row["simulated"] == pytest.approx(row["formula"], abs=0.01)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (simulate.simulate(WORLD, 50_000, 120, seed=3) for _ in range(2))
    assert one == other
    assert simulate.simulate(WORLD, 50_000, 120, seed=4) != one
    assert one.productive == 50_000


def test_what_is_announced_in_time_loses_no_work() -> None:
    world = msgspec.structs.replace(WORLD, failures=1e12, preemptions=1800.0, grace=30.0)
    assert simulate.simulate(world, 50_000, 600, seed=1).lost == 0
    unannounced = msgspec.structs.replace(world, grace=1.0)
    assert simulate.simulate(unannounced, 50_000, 600, seed=1).lost > 0


def test_more_nodes_are_interrupted_more_often() -> None:
    few, many = (msgspec.structs.replace(WORLD, failures=8e6 / nodes) for nodes in (10, 1000))
    assert simulate.mean_ettr(few, 100_000, 200, 5) > simulate.mean_ettr(many, 100_000, 200, 5)
    assert simulate.best_interval(few) > simulate.best_interval(many)


def test_a_real_runs_trace_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_run(tmp_path / "run")
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    found = simulate.replay("run")
    assert found["interruptions"] == 2
    assert found["replayed"] == pytest.approx(found["observed"], abs=0.03)
