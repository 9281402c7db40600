"""Signs of life, as a supervisor reads them."""

from __future__ import annotations

import json
import os

import pytest

from jobs.supervise import heartbeat


def test_the_step_of_an_error_is_known_however_short_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the same error at the same step may look like two, and be tried once more."""
    reads, writes = os.pipe()
    monkeypatch.setenv("BATON_HEARTBEAT_FD", str(writes))
    monkeypatch.setattr(heartbeat, "_told", None)
    monkeypatch.setattr(heartbeat, "_held", None)
    heart = heartbeat.Heartbeat()
    for step in range(5):
        heart.beat("train", step)
    assert [json.loads(line)["step"] for line in os.read(reads, 4096).splitlines()] == [0]
    heartbeat.tell_held()
    heartbeat.tell_held()
    (line,) = os.read(reads, 4096).splitlines()
    told = heartbeat.read(line, 0.0)
    assert isinstance(told, heartbeat.Beat)
    assert (told.phase, told.step) == ("train", 4)
    os.close(reads)
    os.close(writes)
