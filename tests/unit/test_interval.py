import pytest

from jobs.engine import interval


def event(name: str, start: int, second: int) -> dict:
    time = f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000Z"
    return {"time": time, "event": name, "stage": "train", "start": start}


def test_the_optimum_is_young_and_dalys() -> None:
    # facts: an interruption every 2 h, a save of 2 s: 170 s
    assert interval.optimum(2.0, 7200.0) == pytest.approx(169.7, abs=0.1)


def test_the_optimum_stays_within_bounds() -> None:
    assert interval.optimum(0.0, 7200.0) == interval.SHORTEST
    assert interval.optimum(1e6, 1e6) == interval.LONGEST


def test_without_interruptions_the_mean_time_grows_with_the_time_run() -> None:
    quiet = [event("first_step", 1, 0), event("epoch", 1, 3600)]
    assert interval.past([], 1).between() == interval.PRIOR
    assert interval.past(quiet, 1).between() == interval.PRIOR + 3600
    assert interval.past(quiet, 1).between(since=60) == interval.PRIOR + 3660


def test_interruptions_shorten_it() -> None:
    events = []
    for start in range(1, 12):
        events += [event("first_step", start, start * 700), event("epoch", start, start * 700 + 600)]
    # 11 starts of 600 s, 10 interruptions; the twelfth means another.
    assert interval.past(events, 11).between() == pytest.approx((interval.PRIOR + 6600) / 11)
    assert interval.past(events, 12).between() == pytest.approx((interval.PRIOR + 6600) / 12)


def test_time_for_which_it_was_stopped_is_not_time_that_it_trained() -> None:
    stopped = event("suspended", 1, 2000) | {"seconds": 1500.0}
    past = interval.past([event("first_step", 1, 0), stopped, event("epoch", 1, 3600)], 1)
    assert past.up == 2100
