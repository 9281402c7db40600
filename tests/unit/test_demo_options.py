"""The demo asks for no more GPUs than this machine has."""

from __future__ import annotations

import sys

import pytest

from launch import demo
from launch.submit import machine


@pytest.mark.parametrize(("present", "asked"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_the_default_number_of_processes(
    present: int, asked: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "local_gpus", lambda: present)
    monkeypatch.setattr(sys, "argv", ["demo", "--help"])
    with pytest.raises(SystemExit):
        demo.main()
    assert f"default here {asked}" in " ".join(capsys.readouterr().out.split())
