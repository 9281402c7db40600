"""What hooks and visualizers of a config bring along."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import EarlyStoppingHook, Hook

from jobs.engine import snapshots
from jobs.mmseg import state
from jobs.mmseg.runner import guard


class Counting(Hook):
    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


def test_hooks_of_one_class_keep_their_own_state() -> None:
    stopping = EarlyStoppingHook(monitor="mIoU")
    stopping.wait_count = 3
    saved = state.hook_state(SimpleNamespace(hooks=[Counting(1), stopping, Counting(2)]))
    fresh = [Counting(), EarlyStoppingHook(monitor="mIoU"), Counting(), Counting(9)]
    state._restore_hooks(SimpleNamespace(hooks=fresh), saved)
    assert [fresh[0].count, fresh[2].count, fresh[3].count] == [1, 2, 9]
    assert fresh[1].wait_count == 3


def test_a_state_under_another_key_is_passed_over() -> None:
    hook = Counting(5)
    state._restore_hooks(SimpleNamespace(hooks=[hook]), {"Counting": {"count": 1}, "Gone/0": {"x": 1}})
    assert hook.count == 5


class Service:
    """A backend whose service is gone."""

    def __init__(self) -> None:
        self.calls = 0

    def add_scalars(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise RuntimeError("the service has died")

    add_config = add_graph = add_image = add_scalar = close = add_scalars


def test_a_visualizer_whose_service_died_is_said_once(capsys: pytest.CaptureFixture) -> None:
    service = Service()
    guard(service)
    for step in range(3):
        service.add_scalars({"loss": 1.0}, step=step)
    service.close()
    assert service.calls == 4
    assert capsys.readouterr().err == "Service could not write: the service has died\n"


def test_a_state_holds_plain_values_alone(tmp_path: Path) -> None:
    value = snapshots.plain({"a": np.float64(0.5), np.str_("b"): [np.int64(2), (np.bool_(True),)]})
    assert value == {"a": 0.5, "b": [2, (True,)]}
    assert [type(value["a"]), type(value["b"][0]), type(value["b"][1][0])] == [float, int, bool]
    torch.save(value, tmp_path / "x.pth")
    # As anybody reads it, without Baton: in a process that has not replaced torch.load.
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=True)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.pth")], check=True, timeout=120)
