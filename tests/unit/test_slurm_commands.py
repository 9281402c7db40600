"""How Slurm's commands are called: what of a user's environment they see, and when they are asked again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.slurm import commands, login, queries, successor
from tests.unit.slurm_answers import FakeSlurm

GIVEN = {
    "SQUEUE_PARTITION": "high",
    "SCANCEL_INTERACTIVE": "true",
    "SACCT_FORMAT": "jobid",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_CONF": "/etc/slurm.conf",
}


def test_what_a_user_sets_for_the_eye_is_no_commands_but_a_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    for name in ("scancel", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\nenv\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def seen(name: str) -> set[str]:
        text = commands.once([name], None, 60).text
        return GIVEN.keys() & {line.partition("=")[0] for line in text.splitlines()}

    assert seen("scancel") == {"SLURM_CONF"}
    assert seen("sbatch") == GIVEN.keys()


def test_where_slurm_is_stays_known_inside_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node without slurm.conf asks the server that SLURM_CONF_SERVER names."""
    given = {"SLURM_CONF_SERVER": "controller:6817", "SLURM_CLUSTERS": "lab", "SLURM_MEM_PER_CPU": "5"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert given.keys() & login.clean_environment().keys() == {"SLURM_CONF_SERVER", "SLURM_CLUSTERS"}
    assert given.keys() & successor.clean_environment(given).keys() == {"SLURM_CONF_SERVER"}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"SBATCH_CLUSTERS": "lab"}, "lab"),
        ({"SBATCH_CLUSTERS": "lab", "SLURM_CLUSTERS": "own"}, "own"),
        ({"SLURM_CLUSTERS": ""}, None),
    ],
)
def test_all_is_asked_of_the_cluster_that_sbatch_submits_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], asked: str | None
) -> None:
    """An empty name, too, would be looked for, and not be found."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert login.clean_environment().get("SLURM_CLUSTERS") == asked
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("sacct")
    queries.incarnations(["6"])
    (call,) = fake.calls("sacct")
    assert re.findall(r"--clusters (\w+)", call) == ([asked] if asked else [])


def test_a_slurm_that_takes_no_more_jobs_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    full = (
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable"
    )
    fake.says("sbatch", error=full, times=1)
    fake.says("sbatch", answer="7")
    said: list[str] = []

    def asked() -> commands.Answer:
        return commands.run(["sbatch"], None, patience=30, limit=60, again=False, say=said.append, every=60)

    answer = asked()
    assert (answer.ok, answer.text) == (True, "7\n")
    assert "takes no more jobs" in said[0]

    fake = FakeSlurm(tmp_path / "lost", monkeypatch)  # its last try may have arrived
    lost = full.replace("Resource temporarily unavailable", "Socket timed out on send/recv operation")
    fake.says("sbatch", error=lost, times=1)
    fake.says("sbatch", answer="8")
    assert asked().unanswered
