"""Runs by name: which names there may be, how a new one is made, how one is found."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.slurm.login import SlurmError
from launch.submit import runs, snapshot


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@given(st.text())
def test_no_name_that_passes_needs_quoting(name: str) -> None:
    import shlex

    try:
        runs.check_name(name)
    except UserError:
        pass
    else:
        assert shlex.quote(name) == name
        assert Path(name).name == name
        assert not name.startswith(("-", "."))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a'b", "a;b", "a\nb", "../a", "a/b", "%j", "é", "prepare"])
def test_nasty_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a run's name"):
        runs.check_name(name)


def test_a_generated_name_is_the_next_free_one(root: Path) -> None:
    assert runs.free_name("demo") == "demo-1"
    (root / "demo-1").mkdir(parents=True)
    assert runs.free_name("demo") == "demo-2"
    runs.check_name(runs.free_name("-my config; v2"))


def fill(place: Run) -> None:
    (place.path / "run.yaml").write_text("")


def test_a_run_that_could_not_be_submitted_leaves_nothing(root: Path) -> None:
    with pytest.raises(UserError, match="refused a, which has job"), runs.new_run("a", fill) as run:
        raise UserError(
            f"refused {run.name}, which has {' '.join(path.name for path in run.path.glob('j*'))}"
        )
    assert list(root.iterdir()) == []


def test_a_run_whose_job_may_be_on_its_way_is_kept() -> None:
    with pytest.raises(UserError, match="timed out"), runs.new_run("a", fill):
        raise SlurmError("Socket timed out", unanswered=True)
    assert [run.name for run in runs.all_runs()] == ["a"]


def test_a_launcher_that_is_killed_leaves_the_name_free(root: Path) -> None:
    """As in a job that makes its own run and is preempted meanwhile: its next start makes it anew."""

    def die(place: Run) -> None:
        fill(place)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with runs.new_run("a", die):
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not runs.is_taken("a")
    assert runs.all_runs() == []
    with runs.new_run("a", fill) as run:
        assert run.path.stat().st_mode & 0o777 == 0o777 & ~runs._umask()
    assert [path.name for path in root.iterdir()] == ["a"]


def test_a_taken_name_is_refused_and_what_is_there_stays(root: Path) -> None:
    def too_late(place: Run) -> None:
        with runs.new_run("a", fill):
            pass
        (place.path / "mine").touch()

    with pytest.raises(UserError, match="'a' is taken"), runs.new_run("a", too_late):
        raise AssertionError("was made twice")
    with pytest.raises(UserError, match="'a' is taken"), runs.new_run("a", fill):
        raise AssertionError("was made twice")
    assert [path.name for path in root.iterdir()] == ["a"]
    assert sorted(path.name for path in (root / "a").iterdir()) == ["job", "run.yaml"]


def test_a_run_is_found_by_name_and_by_path(root: Path) -> None:
    with runs.new_run("first", fill):
        pass
    assert runs.find("first").path == root / "first"
    assert runs.find(str(root / "first")).path == root / "first"
    (root / "firs\nt").mkdir()
    (root / "firs\nt" / "run.yaml").touch()  # a name that no command gives
    with pytest.raises(UserError, match=r"did you mean first\?"):
        runs.find("fisrt")


def test_a_command_to_type_never_means_another_run_of_the_same_name(root: Path, tmp_path: Path) -> None:
    elsewhere = Run(tmp_path / "their's" / "first")
    elsewhere.path.mkdir(parents=True)
    fill(elsewhere)
    for make_mine in (False, True):
        if make_mine:
            with runs.new_run("first", fill):
                pass
        (typed,) = shlex.split(runs.typed(elsewhere))
        assert runs.find(typed).path == elsewhere.path
    assert runs.typed(Run(root / "first")) == "first"


def test_a_name_that_nobody_asked_for_may_be_taken_meanwhile() -> None:
    def make(name: str) -> str:
        def beaten(place: Run) -> None:
            fill(place)
            if not runs.is_taken(name):
                with runs.new_run(name, fill):
                    pass

        with runs.new_run(name, beaten if name == "demo-1" else fill) as run:
            return run.name

    assert runs.named(None, lambda: runs.free_name("demo"), make) == "demo-2"
    with pytest.raises(runs.Taken, match="'demo-1' is taken"):
        runs.named("demo-1", lambda: runs.free_name("demo"), make)


def test_a_file_system_without_modes_and_links_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT, say, or a share of Windows."""

    def refuse(path: str | Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    def take(run: Run) -> None:
        snapshot.take(run.code, root)

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)  # which has os's own in Python 3.10
    why = f"^{root} is on a file system without symbolic links, .*: set BATON_RUNS"
    with pytest.raises(UserError, match=why), runs.new_run("a", take):
        pass
    assert not list(root.iterdir())


def test_who_submits_a_job_of_the_run_meanwhile_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been stopped in its terminal."""
    run, over = Run(tmp_path / "a"), threading.Event()
    run.path.mkdir()

    def other() -> None:
        with runs.turn(run):
            over.set()
            while not capsys.readouterr().err.startswith(f"a: waiting for {runs.SUBMITTING} (process "):
                time.sleep(0.01)

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    over.wait()
    with runs.turn(run):
        thread.join(5)
    assert not thread.is_alive()


def test_a_command_whose_terminal_is_gone_waits_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, its_turn = Run(tmp_path / "a"), threading.Event()
    run.path.mkdir()
    reader, writer = os.pipe()
    os.close(reader)

    def other() -> None:
        with runs.turn(run):
            its_turn.set()

    thread = threading.Thread(target=other, daemon=True)
    with os.fdopen(writer, "w") as gone, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", gone)
        with runs.turn(run):
            thread.start()
            assert not its_turn.wait(0.1)
        assert its_turn.wait(5)
        thread.join(5)
        with contextlib.suppress(BrokenPipeError):
            gone.close()
