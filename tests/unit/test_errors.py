"""An error of somebody's code in words, whatever its class does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run import errors, events, exit_codes, failure, notify
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.supervise import budget


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def noted() -> Exception:
    error: Any = ValueError("the cause")
    error.__notes__ = ["a library's note"]
    assert isinstance(error, Exception)
    return error


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("size"), "KeyError: 'size' {here}"),
        (AssertionError(), "AssertionError {here}"),
        (Mute(), f"{Mute.__module__}.Mute {{here}}"),
        (SystemExit(0), "SystemExit: 0 {here}"),
        (noted(), "ValueError: the cause {here}"),
        (RuntimeError("lines:\n  one\n"), "RuntimeError: lines {here}:\n  one"),
        (SyntaxError("bad", ("net.py", 3, 1, "", 3, 2)), "SyntaxError: bad (net.py, line 3)"),
        (
            RuntimeError("Caught X.\nOriginal Traceback (most recent call last):\nX: y"),
            "RuntimeError: Caught X.\nOriginal Traceback (most recent call last):\nX: y",
        ),
    ],
)
def test_what_an_error_says_and_where_it_was_raised(error: BaseException, said: str) -> None:
    caught = raised(error)
    assert caught.__traceback__
    here = f"(test_errors.py:{caught.__traceback__.tb_lineno})"
    assert errors.described(caught) == said.format(here=here)


def test_the_place_is_the_innermost_of_the_users_code() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run([sys.executable, "-c", "1/0"], check=True, capture_output=True)
    assert "subprocess.py" not in errors.described(caught.value)
    assert "(test_errors.py:" in errors.described(caught.value)


def test_what_an_error_followed_from_is_told() -> None:
    """torch says of a loader's process that was killed only there by which signal."""
    error = raised(RuntimeError("a worker is gone"), RuntimeError("killed by signal: Killed"))
    assert errors.described(error).endswith("(from RuntimeError: killed by signal: Killed)")
    first, second, third = (ValueError(str(number)) for number in (1, 2, 3))
    first.__cause__, second.__cause__, third.__cause__ = second, third, second
    assert errors.described(first) == "ValueError: 1"


def test_what_an_error_says_already_is_not_told_twice() -> None:
    from_it = raised(OSError(5, "no answer", "/a"), OSError(5, "no answer"))
    assert errors.described(from_it).count("no answer") == 1


def test_a_file_of_torchs_compiler_is_none_of_the_users() -> None:
    made = "/r/job/compiled/0/4u/c4u7ho6btm2ls3o6mlymro2sdyu7omvxllpd7arfagqqie4c6aer.py"
    assert not errors.is_users(made)
    assert errors.is_users("/r/code/c4u7ho.py")


def test_an_endless_message_is_cut() -> None:
    said = errors.described(raised(ValueError("x" * 100_000 + "END")))
    assert len(said) < errors.MOST + 100
    assert "END (test_errors.py:" in said


def test_a_file_of_the_users_says_nothing_of_what_the_error_is() -> None:
    assert not budget.is_hardware("ValueError: bad (cuda_ops.py:3)")
    assert budget.is_hardware("RuntimeError: CUDA error (net.py:3)")


@pytest.mark.parametrize("code", [None, 0, 2, "words"])
def test_code_of_the_users_that_exits_ends_a_job_with_words(
    code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    place = r"^SystemExit.* \(test_errors\.py:\d+\)$"
    with pytest.raises(UserError, match=place), failure.reported(run, "evaluate", 0):
        sys.exit(code)
    (failed,) = events.read(run.events)
    assert (failed["event"], failed["exit_code"]) == ("failed", exit_codes.USER_ERROR)
    told: list[str] = []
    monkeypatch.setattr(notify, "about", lambda *given: told.append(given[2]))
    with pytest.raises(SystemExit), notify.failures_of(run, "evaluate"):
        sys.exit(code)
    assert told[0].startswith("evaluate: SystemExit")
