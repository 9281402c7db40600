"""What is the user's mistake while a training is built, and what is told with a traceback and tried again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

from jobs.mmseg import data
from jobs.mmseg.training import user_errors
from jobs.run import failure
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UNREACHABLE, UserError
from tests.unit.test_checkpoints import fill

SESSION: Any = SimpleNamespace(request=SimpleNamespace(config="mine.py"))


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
    place = r" \(test_user_errors\.py:\d+\)"
    with pytest.raises(UserError, match=rf"^mine\.py: {words}{place}$"), user_errors(SESSION):
        MODELS.build({"type": what})


@pytest.mark.parametrize("fault", [meets_a_stale_file, torch.distributed.get_rank])
def test_a_fault_of_a_machine_is_none_of_the_users(fault: Any) -> None:
    with pytest.raises((ValueError, RuntimeError)), user_errors(SESSION):
        MODELS.build({"type": fault})


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
