"""What a worker's log says of its end."""

from __future__ import annotations

from pathlib import Path

from jobs.supervise import worker_end


def test_a_users_mistake_is_the_last_line_that_speaks_of_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = "an Error of an earlier start\n"
    log.write_text(before)
    assert worker_end.users_mistake(log, len(before)) == ""
    assert worker_end.users_mistake(tmp_path / "none", 0) == ""
    log.write_text(f"{before}usage: a.py\na.py: unknown word\n\n")
    assert worker_end.users_mistake(log, len(before)) == "a.py: unknown word"
    log.write_text(f"{before}usage: a.py\na.py: error: no such thing\nbye\n")
    assert worker_end.users_mistake(log, len(before)) == "a.py: error: no such thing"
