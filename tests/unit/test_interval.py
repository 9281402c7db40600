from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.engine import interval
from jobs.run import kinds, story
from jobs.run.past import History


def event(kind: type[Any], start: int, second: int, **fields: Any) -> Any:
    time = f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000Z"
    return kind(time=time, stage="train", start=start, **fields)


def begun(start: int, second: int) -> list[Any]:
    """A start that does its first step at once."""
    first_step = event(kinds.FirstStep, start, second, step=1, seconds=1.0)
    return [event(kinds.Started, start, second, hosts=["n1"], world_size=1), first_step]


def epoch(start: int, second: int) -> Any:
    return event(kinds.Epoch, start, second, epoch=1, step=2, seconds=1.0)


def history(path: Path, told: list[Any]) -> History:
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in told))
    return story.read(path)


def test_the_optimum_is_young_and_dalys() -> None:
    # facts: an interruption every 2 h, a save of 2 s: 170 s
    assert interval.optimum(2.0, 7200.0) == pytest.approx(169.7, abs=0.1)


def test_the_optimum_stays_within_bounds() -> None:
    assert interval.optimum(0.0, 7200.0) == interval.SHORTEST
    assert interval.optimum(1e6, 1e6) == interval.LONGEST


def test_without_interruptions_the_mean_time_grows_with_the_time_run(tmp_path: Path) -> None:
    quiet = history(tmp_path / "events.jsonl", [*begun(1, 0), epoch(1, 3600)])
    assert interval.past(History(), 1).between() == interval.PRIOR
    assert interval.past(quiet, 1).between() == interval.PRIOR + 3600
    assert interval.past(quiet, 1).between(since=60) == interval.PRIOR + 3660


def test_interruptions_shorten_it(tmp_path: Path) -> None:
    told = []
    for start in range(1, 12):
        told += [*begun(start, start * 700), epoch(start, start * 700 + 600)]
    past = history(tmp_path / "events.jsonl", told)
    # 11 starts of 600 s, 10 interruptions; the twelfth means another.
    assert interval.past(past, 11).between() == pytest.approx((interval.PRIOR + 6600) / 11)
    assert interval.past(past, 12).between() == pytest.approx((interval.PRIOR + 6600) / 12)


def test_time_for_which_it_was_stopped_is_not_time_that_it_trained(tmp_path: Path) -> None:
    stopped = event(kinds.Suspended, 1, 2000, seconds=1500.0)
    past = interval.past(history(tmp_path / "e", [*begun(1, 0), stopped, epoch(1, 3600)]), 1)
    assert past.up == 2100
