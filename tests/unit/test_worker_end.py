"""What a worker's log says of its end."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.run import exit_codes, task
from jobs.run.directory import Run
from jobs.supervise import supervisor, worker_end

LAST = "ended with exit code 2; the last line of its log: "


@pytest.mark.parametrize(
    "before", ["step 200 train_error=0.30\n", "errors: 0\n", "a.py: error: an old one\n" + "x\n" * 20]
)
def test_what_only_sounds_like_one_does_not_hide_the_last_words(tmp_path: Path, before: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"{before}/data/x.yaml has no section [model]\n\n")
    assert worker_end.users_mistake(log, 0) == f"{LAST}/data/x.yaml has no section [model]"


def test_a_users_mistake_is_the_last_line_that_speaks_of_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = "an Error of an earlier start\n"
    log.write_text(before)
    assert worker_end.users_mistake(log, len(before)) == ""
    assert worker_end.users_mistake(tmp_path / "none", 0) == ""
    log.write_text(f"{before}usage: a.py\na.py: unknown word\n\n")
    assert worker_end.users_mistake(log, len(before)) == f"{LAST}a.py: unknown word"
    log.write_text(f"{before}usage: a.py\na.py: error: no such thing\nbye\n")
    assert worker_end.users_mistake(log, len(before)) == "a.py: error: no such thing"


def test_a_folder_that_cannot_be_read_does_not_keep_an_end_from_being_told() -> None:
    run = Run("/" + "x" * 300)  # for which the system has an error of its own
    assert worker_end.log_of(run, task.read({})) is None
    assert worker_end.size_of(run.events) == 0


def test_nor_does_it_keep_the_supervisor_from_telling_it() -> None:
    lost = SimpleNamespace(
        run=Run("/" + "x" * 300), task=task.read({}), meeting=SimpleNamespace(start=1), phase="train", step=4
    )
    end = supervisor._Supervisor.describe_end(cast(Any, lost), exit_codes.SUPERSEDED << 8)
    assert end["code"] == exit_codes.FAILED
    assert "no later start is to be seen" in end["error"]


DUMP = """Fatal Python error: Segmentation fault

Thread 0x1 (most recent call first):
  File "/home/me/elsewhere.py", line 1 in run

Current thread 0x2 (most recent call first):
  File "/env/lib/python3.11/site-packages/torch/nn/functional.py", line 7 in conv2d
{}  File "/env/lib/python3.11/site-packages/mmengine/runner/loops.py", line 3 in run

Extension modules: numpy (total: 1)
"""


@pytest.mark.parametrize(
    ("frame", "place"), [('  File "/r/code/net.py", line 5 in f\n', " (net.py:5)"), ("", "")]
)
def test_a_crash_of_native_code_is_told_with_the_line_of_the_users_that_called_it(
    frame: str, place: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    before = DUMP.format('  File "/r/code/of_an_earlier_start.py", line 2 in g\n')
    log.write_text(before + "step 7\n" + DUMP.format(frame))
    died = worker_end.DEATHS[signal.SIGSEGV]
    assert worker_end.explained(died, log, len(before)) == died + place
    assert worker_end.explained("ValueError: x", log, 0) == "ValueError: x"
