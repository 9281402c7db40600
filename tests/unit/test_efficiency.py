"""Where the time went, and the formulas."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jobs.run.past import History
from launch.observe import efficiency, history
from tests.unit.made_runs import T0, common, interrupted_run, made_run, started, submitted, write


def test_every_second_is_accounted_for_once(tmp_path: Path) -> None:
    past = history.read(interrupted_run(tmp_path / "run"))
    found = efficiency.shares(past, now=T0 + 9999)
    assert found.wall == pytest.approx(582)
    assert found.queue == pytest.approx(20 + 30 + 40)
    assert found.startup == pytest.approx(30)
    assert found.validation == pytest.approx(10)
    assert found.saving == pytest.approx(3)
    assert found.lost == pytest.approx(332 - 282)  # steps 201 to 250 of the second start
    total = sum(getattr(found, name) for name in efficiency.NAMES)
    assert total == pytest.approx(found.wall)
    assert found.ettr == pytest.approx((found.training + 10) / 582)
    assert efficiency.lost_steps(past) == 50


def test_a_start_from_scratch_loses_all_before_it(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 0, 1)
    write(run, 110, "epoch", epoch=1, step=100, seconds=100.0, **common(1))
    started(run, 120, 2)
    write(run, 230, "epoch", epoch=1, step=100, seconds=100.0, **common(2))
    write(run, 230, "finished", step=100, epoch=1, **common(2))
    found = efficiency.shares(history.read(run), now=T0 + 230)
    assert found.lost == pytest.approx(100)
    assert found.training == pytest.approx(100)


def test_the_published_example() -> None:
    """Of arXiv 2410.21680's kind: an interruption every 2 h, a save of 2 s."""
    assert efficiency.young(2, 7200) == pytest.approx(169.7, abs=0.1)


def test_the_best_interval_is_near_youngs_and_better_than_its_neighbours() -> None:
    best = efficiency.best_interval(2, 7200, restart=60, queue=300)
    assert best == pytest.approx(efficiency.young(2, 7200), rel=0.02)
    top = efficiency.expected_ettr(best, 2, 60, 7200, 300)
    for other in (best / 1.5, best * 1.5):
        assert efficiency.expected_ettr(other, 2, 60, 7200, 300) < top


def test_the_closed_formula_agrees_with_an_independent_walk() -> None:
    dice = random.Random(5)
    interval, save, restart, mtbi, queue = 100.0, 5.0, 20.0, 400.0, 50.0
    wall = 0.0
    for _ in range(20_000):
        left = dice.expovariate(1 / mtbi)
        need = interval + save
        while left < need:
            wall += left + queue
            left = dice.expovariate(1 / mtbi)
            need = restart + interval + save
        wall += need
    assert 20_000 * interval / wall == pytest.approx(
        efficiency.expected_ettr(interval, save, restart, mtbi, queue), rel=0.02
    )


def test_what_never_gets_through_is_nought_and_no_overflow() -> None:
    assert efficiency.expected_ettr(1e9, 1, 1, 10) == 0.0


def test_left_counts_the_interruptions_so_far(tmp_path: Path) -> None:
    past = history.read(interrupted_run(tmp_path / "run"))
    # 562 s since the first start for 400 steps: 1.405 s a step, though a step takes one.
    assert efficiency.eta(past, T0 + 582, 400, 800, 1.0) == pytest.approx(562)
    smooth = History()
    assert efficiency.eta(smooth, T0, 100, 200, 0.5) == 50
    assert efficiency.eta(smooth, T0, 100, 200, None) is None


def test_what_stood_still_is_a_part_of_its_own(tmp_path: Path) -> None:
    """40 s in the start-up, 60 s in a validation, 100 s in training, 50 s in steps that are lost."""
    run = made_run(tmp_path / "run")
    submitted(run)
    stopped = common(1) | {"rank": 0, "host": "n1"}
    write(run, 0, "started", hosts=["n1"], world_size=1, **common(1))
    write(run, 45, "suspended", seconds=40.0, **stopped)
    write(run, 50, "first_step", step=1, seconds=50.0, **common(1))
    write(run, 100, "epoch", epoch=1, step=51, seconds=50.0, **common(1))
    write(run, 165, "suspended", seconds=60.0, **stopped)
    write(run, 170, "validated", epoch=1, step=51, seconds=70.0, metrics={}, **common(1))
    write(run, 300, "suspended", seconds=100.0, **stopped)
    write(run, 320, "checkpoint", step=101, epoch=2, path="x", bytes=1, seconds=0.0, why="e", **common(1))
    write(run, 380, "suspended", seconds=50.0, **stopped)
    write(run, 390, "epoch", epoch=3, step=121, seconds=20.0, **common(1))
    started(run, 400, 2, step=101)
    write(run, 500, "finished", step=191, epoch=4, **common(2))
    past = history.read(run)
    assert [to - since for since, to in past.incarnations[0].suspensions] == [40, 60, 100, 50]
    found = efficiency.shares(past, now=T0 + 9999)
    assert found.suspended == pytest.approx(250)
    assert found.startup == pytest.approx(10 + 10)
    assert found.validation == pytest.approx(10)
    assert found.training == pytest.approx(50 + 50 + 90)
    assert found.lost == pytest.approx(20)
    assert sum(getattr(found, name) for name in efficiency.NAMES) == pytest.approx(found.wall)
    costs = efficiency.costs(past, now=T0 + 9999)
    assert costs.startup == pytest.approx(10)
    assert costs.mtbi == pytest.approx(390 - 250 + 100)
    # A pace that no suspension slows: a step a second.
    assert efficiency.eta(past, T0 + 500, 191, 382, None) == pytest.approx(500 - 250)


def test_suspensions_that_overlap_count_once(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 0, 1)
    for at in (100, 103):
        write(run, at, "suspended", seconds=40.0, **common(1))
    (one,) = history.read(run).incarnations
    assert one.suspended(0, T0 + 1000) == pytest.approx(43)
