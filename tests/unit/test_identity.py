"""A job that only has the number of one of ours is nobody's to show, to wait for, or to cancel."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from jobs.run.directory import Run
from jobs.run.past import History
from jobs.slurm import queries as slurm_queries
from jobs.slurm import successor
from jobs.slurm.queries import Job
from launch.observe import history, liveness, states
from launch.submit import cancelling, identity, machine
from tests.unit.made_runs import T0, made_run, started, submitted, write
from tests.unit.slurm_answers import FakeSlurm

ME = getpass.getuser()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was killed, whose job 12 is still open as far as its events tell."""
    run = made_run(tmp_path / "runs" / "first")
    submitted(run)
    started(run, 20, 1)
    return run


def row(command: str, name: str, user: str = ME, number: str = "12", state: str = "RUNNING") -> str:
    """As squeue prints a job, submitted a day after the run's last word."""
    fields = [number, number, "N/A", state, "gpu", "10", user, "2026-09-23T00:00:00", "2026-09-23T00:00:00"]
    return "|>#<|".join(["|".join([*fields, "n1", "(null)", "None"]), command, name])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    slurm._write("sacct", "")
    machine.cluster_name.cache_clear()
    return slurm


STRANGERS = {
    "another user's": ("/home/else/x.sh", "x", "somebody"),
    "another user's of the same name": ("(null)", "first", "somebody"),
    "one of mine": ("/home/me/other.sh", "other", ME),
    "one without a script": ("(null)", "interactive", ME),
    "of a tracked script, for another run": ("/checkout/jobs/train.sbatch second", "baton-train", ME),
    "with the mark in its name": ("/x/y.sh", "a|>#<|first", ME),
}


@pytest.mark.parametrize("kind", [*STRANGERS, "another run's"])
def test_a_stranger_is_neither_shown_nor_waited_for_nor_cancelled(
    kind: str, run: Run, site: FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made_run(tmp_path / "runs" / "second")
    other = (f"{tmp_path}/runs/second/job/train.sbatch", "first", ME)
    command, name, user = STRANGERS.get(kind, other)
    site.says("squeue", row(command, name, user))
    assert cancelling.cancel([run]) == ([(run, [])], [])
    assert "job 12 now belongs to something else" in capsys.readouterr().err
    assert not site.calls("scancel")
    assert not (run.job / "cancelled").exists()
    assert not liveness.is_alive(run, "12")
    past = history.read(run)
    assert states.judge(run, past, slurm_queries.ask(["12"]), {}, T0 + 1e6).code == "unknown"


OURS = {
    "its own script": ("{run}/job/train.sbatch", "first"),
    "its own script, renamed": ("{run}/job/train.sbatch", "mine"),
    "its own script, with words": ("{run}/job/evaluate.sbatch first", "x"),
    "a successor's": ("{run}/job/successor-11.sbatch first", "first"),
    "a dry run's, piped": ("(null)", "first"),
    "a dry run's, saved": ("/home/me/saved.sbatch", "first-evaluate"),
    "a tracked script": ("/checkout/jobs/train.sbatch", "baton-train"),
    "a tracked script, told its run": ("/checkout/jobs/train.sbatch logs/runs/first --gpus 2", "mine"),
    "moved since": ("/elsewhere/runs/first/job/train.sbatch", "first"),
}


@pytest.mark.parametrize("kind", OURS)
def test_our_own_is_known_however_it_was_submitted(kind: str, run: Run, site: FakeSlurm) -> None:
    command, name = OURS[kind]
    site.says("squeue", row(command.format(run=run.path), name))
    assert liveness.is_alive(run, "12")
    assert cancelling.cancel([run]) == ([(run, ["12"])], [])
    assert site.calls("scancel") == ["scancel 12"]


@pytest.mark.parametrize("run_name", ["sweep-3", "sweep-10"])
def test_the_runs_of_a_sweep_share_a_script_and_a_name(run_name: str, tmp_path: Path) -> None:
    made_run(tmp_path / "sweep-0")
    run, past = made_run(tmp_path / run_name), History()
    for command, name in ((f"{tmp_path}/sweep-0/job/train.sbatch", "sweep"), ("(null)", "sweep-evaluate")):
        assert not identity.is_stranger(run, past, Job(id="7_3", state="RUNNING", command=command, name=name))


def test_a_job_submitted_before_ours_is_not_ours(run: Run) -> None:
    past = history.read(run)
    noted = past.jobs["train 12"]
    for submit, stranger in ((noted.submitted - 3600, True), (noted.submitted - 60, False)):
        seen = Job(id="12", state="RUNNING", name="first", user=ME, submit=submit)
        assert identity.is_stranger(run, past, seen, noted) is stranger


def test_accounting_tells_of_a_later_job_of_another_name(run: Run) -> None:
    past = history.read(run)
    for submit, name, stranger in (
        (past.last + 3600, "other", True), (past.last - 10, "renamed", False),
        (past.last + 3600, "first", False),
    ):  # fmt: skip
        seen = Job(id="12", state="COMPLETED", name=name, user=ME, submit=submit)
        assert identity.is_stranger(run, past, seen, past.jobs["train 12"]) is stranger


def test_a_job_of_another_cluster_is_not_ours(
    run: Run, site: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, 400, "submitted", stage="train", job="12", executor="slurm", cluster="alpha")
    site.says("squeue", row(f"{run.path}/job/train.sbatch", "first"))
    for name, lives in (("Alpha", True), ("beta", False)):
        (tmp_path / "slurm.conf").write_text(f"# ClusterName=no\nClusterName = {name}\n")
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
        machine.cluster_name.cache_clear()
        assert liveness.is_alive(run, "12") is lives
    machine.cluster_name.cache_clear()


def test_a_successor_in_advance_is_withdrawn_only_if_it_is_one(run: Run, site: FakeSlurm) -> None:
    mark = run.job / "presubmitted-12"
    for command, ours in ((f"{run.job}/successor-12.sbatch first", True), ("/home/me/other.sh", False)):
        mark.write_text("13")
        site.says("squeue", f"PENDING|{command}", times=1)
        successor.withdraw(run, "12")
        assert not mark.exists()
        assert site.calls("scancel") == (["scancel 13"] if ours else [])
        site.log.write_text("")
