"""Runs by name: which names there may be, how a new one is made, how one is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import UserError
from launch import runs


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


def test_a_run_that_could_not_be_made_leaves_nothing(root: Path) -> None:
    def fail() -> None:
        with runs.new_run("a") as run:
            (run.path / "code").mkdir()
            raise UserError("sbatch refused")

    with pytest.raises(UserError, match="sbatch refused"):
        fail()
    assert list(root.iterdir()) == []


def test_a_taken_name_is_refused_and_what_is_there_stays(root: Path) -> None:
    with runs.new_run("a") as run:
        (run.path / "run.yaml").write_text("")
    with pytest.raises(UserError, match="'a' is taken"), runs.new_run("a"):
        raise AssertionError("was made twice")
    assert (root / "a" / "run.yaml").exists()


def test_a_run_is_found_by_name_and_by_path(root: Path) -> None:
    with runs.new_run("first") as run:
        (run.path / "run.yaml").write_text("")
    assert runs.find("first").path == root / "first"
    assert runs.find(str(root / "first")).path == root / "first"
    with pytest.raises(UserError, match=r"did you mean first\?"):
        runs.find("fisrt")
