"""What hooks and visualizers of a config bring along."""

import datetime
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.optim import OneCycleLR

from jobs.engine import safe_load, snapshots
from jobs.mmseg import state
from jobs.mmseg.runner import guard
from jobs.run.errors import UserError


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


class Remembering(Hook):
    """Keeps whatever it is given."""

    def __init__(self, kept: object = None) -> None:
        self.kept = kept

    def state_dict(self) -> dict:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict) -> None:
        self.kept = state["kept"]


KEPT = [
    {1, 2}, frozenset({3}), 2j, ("a", [1]), np.arange(3, dtype=np.uint32), np.float32(0.1), {np.int64(1): 2},
    OrderedDict(b=1, a=2), Counter("aab"), torch.Size([2]), torch.float16, b"x",
]  # fmt: skip


@pytest.mark.parametrize("kept", KEPT)
def test_a_hook_gets_back_what_it_has_given(kept: Any, tmp_path: Path) -> None:
    before = {"baton": {"hooks": state.hook_state(SimpleNamespace(hooks=[Remembering(kept)]))}}
    torch.save(snapshots.Snapshots().take(before), tmp_path / "x.pth")
    hook = Remembering()
    found = safe_load.load_own(tmp_path / "x.pth")
    state._restore_hooks(SimpleNamespace(hooks=[hook]), state.cloned(found["baton"]["hooks"]))
    assert type(hook.kept) is type(kept)
    assert repr(hook.kept) == repr(kept)


def test_what_a_hook_could_not_get_back_stops_the_run_before_its_first_step() -> None:
    wrong: list[Any] = [deque([1]), defaultdict(int), Path("x"), datetime.date(2026, 1, 1)]
    for kept in wrong:
        with pytest.raises(
            UserError, match=r"^Remembering\.state_dict\(\)\['kept'\]: .* cannot be loaded back"
        ) as caught:
            state.check_hooks(SimpleNamespace(hooks=[Remembering(kept)]))
        assert "\n" not in str(caught.value)
    early = Remembering()
    del early.kept
    state.check_hooks(SimpleNamespace(hooks=[early, Remembering(1)]))


def test_what_hooks_see_in_a_copy_stays_as_it_was() -> None:
    """The next step may change the originals while the copy is written."""
    array, names = np.zeros(3), {"a"}
    taken = snapshots.Snapshots().take({"array": array, "names": names})
    array += 1
    names.add("b")
    assert taken["array"].tolist() == [0, 0, 0]
    assert taken["names"] == {"a"}
    with pytest.raises(UserError, match=r"^checkpoint\['state_dict'\]\['head._extra_state'\]: .*deque"):
        snapshots.Snapshots().take({"state_dict": {"head._extra_state": deque()}})


class OfItsOwn(torch.Tensor):
    """Loading would look its class up."""


@pytest.mark.parametrize("wrong", [OfItsOwn(), {Path("x"): 1}])
def test_a_snapshot_holds_nothing_that_could_not_be_loaded(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^checkpoint\['mine'\].* cannot be loaded back"):
        snapshots.Snapshots().take({"mine": wrong})


def test_a_snapshot_holds_no_number_that_torch_could_not_read() -> None:
    huge = 1 << 3000
    try:
        snapshots.Snapshots().take({"mine": huge})
    except UserError:
        return
    assert safe_load.round_trip(huge) == huge


def test_what_the_message_hub_resumes_is_no_text() -> None:
    hub = SimpleNamespace(
        runtime_info={"cfg": object(), "mine": {1}, "val/mIoU": np.float64(0.5), "not": deque()},
        _resumed_keys={"cfg": True, "mine": True, "val/mIoU": True, "not": False},
    )
    hub.runtime_info["dataset_meta"] = {"classes": ("a",), "root": Path("/x")}  # each start has its own
    hub._resumed_keys["dataset_meta"] = True
    hub.runtime_info["val/when"] = datetime.timedelta(1)  # what a validation found: to be read
    hub._resumed_keys["val/when"] = True
    info = snapshots.Snapshots().take(state.hub_state(hub))["runtime_info"]
    assert info.pop("val/when") == repr(datetime.timedelta(1))
    assert info.pop("dataset_meta")["classes"] == ("a",)
    assert info == {"mine": {1}, "val/mIoU": 0.5}
    assert type(info["val/mIoU"]) is float
    hub._resumed_keys["not"] = True
    with pytest.raises(UserError, match=r"\['message_hub'\]\['runtime_info'\]\['not'\]: collections.deque"):
        state.check_hooks(SimpleNamespace(hooks=[], message_hub=hub))


def test_a_scheduler_may_have_a_function() -> None:
    """It is the config's: mmengine's OneCycleLR keeps how it anneals."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    snapshots.Snapshots().take(
        snapshots.plain(OneCycleLR(optimizer, eta_max=0.2, total_steps=9).state_dict())
    )
