"""What is the user's mistake while a training is built, and what is told with a traceback and tried again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner

from jobs.mmseg import compat, data
from jobs.mmseg.runner import TrainingRunner
from jobs.mmseg.training import user_errors
from jobs.run import failure
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UNREACHABLE, UserError, described
from tests.unit.test_checkpoints import fill

SESSION: Any = SimpleNamespace(request=SimpleNamespace(named="mine.py"))


def refuses() -> None:
    raise ValueError("classes must be positive")


def meets_a_stale_file() -> None:
    try:
        raise OSError(errno.ESTALE, "Stale file handle")
    except OSError as error:
        raise ValueError("the list cannot be read") from error


def build_graph() -> None:
    raise AssertionError("nodes of two devices")


def reads() -> None:
    json.loads("")


@pytest.mark.parametrize(
    ("what", "words"), [(refuses, "classes must be positive"), (reads, r"Expecting value: .*\(char 0\)")]
)
def test_a_value_that_is_refused_is_told_with_its_place(what: Any, words: str) -> None:
    told = rf"^mine\.py: {what.__name__}: {words} \(test_user_errors\.py:\d+\)$"
    with pytest.raises(UserError, match=told), user_errors(SESSION):
        MODELS.build({"type": what})


@pytest.mark.parametrize("fault", [meets_a_stale_file, torch.distributed.get_rank])
def test_a_fault_of_a_machine_is_none_of_the_users(fault: Any) -> None:
    with pytest.raises((ValueError, RuntimeError)), user_errors(SESSION):
        MODELS.build({"type": fault})


def divides() -> float:
    return 1 / 0


def looks_up() -> str:
    return {"wide": ""}["width"]


class Needs:
    def __init__(self, width: int) -> None:
        self.width = width + 0


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": divides}, "divides: ZeroDivisionError: division by zero"),
        ({"type": looks_up}, "looks_up: KeyError: 'width'"),
        ({"type": Needs, "width": "8"}, "Needs: TypeError: can only concatenate .*"),
    ],
)
def test_an_error_of_code_is_known_to_come_again_as_long_as_a_run_begins(part: Any, words: str) -> None:
    told = rf"^mine\.py: {words} \(test_user_errors\.py:\d+\)$"
    with pytest.raises(UserError, match=told), user_errors(SESSION, lambda: True):
        MODELS.build(part)
    with pytest.raises((ArithmeticError, LookupError, TypeError)), user_errors(SESSION, lambda: False):
        MODELS.build(part)


@pytest.mark.parametrize(
    "fault",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        ValueError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Connection closed by peer"),
        ImportError("libGL.so.1: cannot open shared object file: No such file or directory"),
        ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback …"),
    ],
)
def test_but_not_what_may_be_a_machines(fault: Exception) -> None:
    with pytest.raises(type(fault)), user_errors(SESSION, lambda: True):
        raise fault


def test_nor_what_our_own_code_makes_a_library_raise() -> None:
    ours = FunctionType(reads.__code__, {"__name__": "jobs.engine.any", "json": json})
    with pytest.raises(ValueError, match="Expecting value"), user_errors(SESSION, lambda: True):
        ours()


def test_what_a_hook_raises_is_told_without_the_hooks_address() -> None:
    class Own(Hook):
        def before_run(self, runner: Any) -> None:  # noqa: ARG002
            MODELS.build({"type": Needs, "widht": 3})

    runner: Any = SimpleNamespace(_hooks=[Own()])
    with pytest.raises(UserError) as error, user_errors(SESSION, lambda: True):
        Runner.call_hook(runner, "before_run")
    told = "mine.py: Needs.__init__() got an unexpected keyword argument 'widht'"
    assert str(error.value).removesuffix(". Did you mean 'width'?") == told  # as Python 3.13 asks
    assert described(TypeError(f"no number in {Own()}")) == "TypeError: no number in Own"


@pytest.mark.parametrize(
    ("registry", "kind", "words"),
    [
        (MODELS, "Conv2D", "Conv2D is not in the {}::model registry: did you mean Conv2d?"),
        (HOOKS, "EMAHok", "EMAHok is not in the {}::hook registry: did you mean EMAHook?"),
        (HOOKS, "Unlike", "Unlike is not in the {}::hook registry"),
    ],
)
def test_of_a_type_that_is_not_known_the_nearest_one_is_named(registry: Any, kind: str, words: str) -> None:
    told = "^mine\\.py: " + words.replace("?", "\\?").format(r"mm\w+") + "$"  # by the scope that is set
    with pytest.raises(UserError, match=told), user_errors(SESSION):
        registry.build({"type": kind})


def test_nor_is_a_layer_or_an_optimizer() -> None:
    """Of which mmcv and mmengine say that they know no None."""
    told = r"BNN in registry under scope name \w+: did you mean BN?"
    with pytest.raises(UserError, match=told), user_errors(SESSION):
        build_norm_layer({"type": "BNN"}, 8)
    bare: Any = object.__new__(TrainingRunner)
    bare.model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"SDG is not .*: did you mean SGD\?"), user_errors(SESSION):
        bare.build_optim_wrapper({"optimizer": {"type": "SDG"}})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class Knowing:
    def __init__(self, optim_wrapper_cfg: Any, paramwise_cfg: Any = None) -> None: ...

    def __call__(self, model: torch.nn.Module) -> OptimWrapper:
        return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))


def test_an_optimizer_that_only_its_constructor_knows_is_built() -> None:
    runner: Any = object.__new__(TrainingRunner)
    runner.model = torch.nn.Linear(1, 1)
    runner.build_optim_wrapper({"constructor": "Knowing", "optimizer": {"type": "SAM of SGD"}})


def test_weights_of_which_none_is_the_models_are_refused(tmp_path: Path) -> None:
    runner: Any = object.__new__(TrainingRunner)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    runner.model, runner.logger, runner._hooks = model, MMLogger.get_instance("test"), []
    for name, content in {"other": {"a.b": torch.zeros(3)}, "shape": {"0.weight": torch.zeros(9)}}.items():
        torch.save({"state_dict": content}, tmp_path / name)
        with pytest.raises(UserError, match=r"none of the 1 weights in .* the model 0.weight \(3, 2\), 0"):
            runner.load_checkpoint(str(tmp_path / name))
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."):
        torch.save({f"{prefix}1.bias": torch.zeros(3)}, tmp_path / "good")
        runner.load_checkpoint(str(tmp_path / "good"))


class Replacing(torch.nn.Module):
    """Takes its weights by replacing them, and has more than weights to take."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def get_extra_state(self) -> Any:
        return {}

    def set_extra_state(self, _: Any) -> None: ...

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        self.weight.data = state_dict[f"{prefix}weight"].clone()


def test_however_a_model_takes_its_weights(tmp_path: Path) -> None:
    runner: Any = object.__new__(TrainingRunner)
    runner.model, runner.logger, runner._hooks = Replacing(), MMLogger.get_instance("test"), []
    torch.save({"weight": torch.ones(2)}, tmp_path / "good")
    runner.load_checkpoint(str(tmp_path / "good"))
    assert runner.model.weight.tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"a text\n", b""])
def test_nor_is_a_file_loaded_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth is not a checkpoint"):
        compat.load_named(str(tmp_path / "a.pth"))


def test_nor_one_that_was_not_copied_whole(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(99)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:400])
    with pytest.raises(UserError, match=r"b\.pth is damaged, or was not copied whole"):
        compat.load_named(str(tmp_path / "b.pth"))


def test_who_builds_something_else_in_a_training_is_not_meant() -> None:
    with pytest.raises(AssertionError), user_errors(SESSION):
        build_graph()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_that_takes_no_word_of_it_either_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        run = Run(tmp_path / "run")
        run.path.mkdir()
        with pytest.raises(OSError, match="No space"):
            fill(tmp_path / "filler")
        why = r"x\.csv cannot be written: No space left on device: fix that"
        with pytest.raises(UserError, match=why), failure.reported(run, "evaluate"):
            write_atomically(run.path / "x.csv", bytes(9))
        said = capsys.readouterr().err
        assert said == f"it could not be noted: {run.events} cannot be written: No space left on device\n"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("number", [*UNREACHABLE, errno.EUCLEAN, errno.EXDEV, errno.ENOSYS])
def test_a_disk_or_server_that_is_broken_is_told_in_one_line(number: int, tmp_path: Path) -> None:
    """FUSE whose process has ended, say, or Lustre that has been evicted."""
    error = OSError(number, os.strerror(number), "/runs/a/x.csv")
    why = rf"/runs/a/x\.csv cannot be used: {os.strerror(number)}"
    with pytest.raises(UserError, match=why), failure.reported(Run(tmp_path / "none"), "evaluate"):
        raise error
    assert data.transient(error) == (number in UNREACHABLE)


def test_an_error_that_followed_from_itself_has_an_end() -> None:
    error = ValueError("x")
    error.__cause__ = error  # by `raise error from error`
    assert not data.transient(error)
