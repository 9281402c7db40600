"""What a successor is submitted with, and who waits for it, as far as no Slurm is needed."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from jobs.run import events
from jobs.run.directory import Run
from jobs.slurm import afterwards, successor
from jobs.slurm import calls as slurm
from tests.unit.slurm_answers import FakeSlurm

# As Slurm 22.05 says it; submitted with `-p low --account=lab --time=7 --gpus-per-node=2 --mem=200 -x n4`.
SHOWN = (
    "JobId=1 ArrayJobId=1 ArrayTaskId=1 JobName=my run UserId=root(0) GroupId=root(0) MCS_label=N/A Nice=0 "
    "Account=lab QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=0 Restarts=0 "
    "TimeLimit=00:07:00 TimeMin=N/A EndTime=2026-11-24T23:20:38 PreemptTime=None Partition=low "
    "ReqNodeList=(null) ExcNodeList=n4 NodeList=n2 NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 "
    "ReqB:S:C:T=0:0:*:* TRES=cpu=1,mem=200M,node=1,billing=1,gres/gpu=2 Socks/Node=* "
    "NtasksPerN:B:S:C=1:0:*:* MinMemoryNode=200M Features=(null) OverSubscribe=OK Licenses=(null) "
    "Command=/a b/train.sbatch WorkDir=/a b Power= TresPerNode=gres:gpu:2 \n"
)
SCRIPT = """#!/bin/bash
#SBATCH --job-name='my run'
#SBATCH --nodes=1-2
#SBATCH --ntasks-per-node=1
#SBATCH -c 1
#SBATCH --gpus-per-node=1
#SBATCH --qos normal  # the usual one
#SBATCH --time=10

#SBATCH --chdir='/a b'
true
#SBATCH --account=lab
"""


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    FakeSlurm(tmp_path / "bin", monkeypatch).says("scontrol show", answer=SHOWN)
    return slurm.this_job()


def test_a_job_is_read_as_slurm_shows_it(shown: dict[str, str]) -> None:
    assert (shown["JobName"], shown["WorkDir"], shown["TresPerNode"]) == ("my run", "/a b", "gres:gpu:2")
    assert not {"Dependency", "TimeMin", "PreemptTime", "Power"} & shown.keys()


def test_a_successor_has_what_the_job_was_submitted_with(shown: dict[str, str]) -> None:
    assert successor.options_of(shown, SCRIPT) == [
        "--partition=low", "--account=lab", "--time=00:07:00", "--gpus-per-node=2", "--mem=200M",
        "--exclude=n4",
    ]  # fmt: skip


def test_a_script_that_says_it_already_needs_no_options(shown: dict[str, str]) -> None:
    header = (
        "#!/bin/bash\n#SBATCH -J'my run' -phigh,low --account=LAB --qos=normal -t 7:00\n"
        "#SBATCH -N1 --ntasks-per-node=1 -c1 --gpus-per-node=2 --mem=0.1953125G -x n4 --chdir '/a b'\n"
    )
    assert successor.options_of(shown, header) == []


def test_what_a_script_leaves_open_stays_open(shown: dict[str, str]) -> None:
    """A range of nodes: how many tasks there are is srun's business."""
    shown |= {"NtasksPerN:B:S:C": "0:0:*:*", "NumNodes": "2", "NumTasks": "2", "TresPerNode": "gres:gpu:1"}
    header = "#SBATCH --nodes=1-2 --gpus-per-node=1 --mincpus=4"
    options = successor.options_of(shown, header)
    assert not [o for o in options if re.match("--(nodes|ntasks|cpus-per-task|gpus)", o)]
    assert "--ntasks=3" in successor.options_of(shown | {"NumTasks": "3"}, header)


def test_earlier_exclusions_are_kept(shown: dict[str, str]) -> None:
    assert successor.options_of(shown, SCRIPT, ["n1", "n2"])[-1] == "--exclude=n4,n1,n2"


@pytest.mark.parametrize(
    ("seconds", "fields", "ending"),
    [
        (60, "JobState=RUNNING Requeue=1 PreemptTime=None", True),
        (600, "JobState=RUNNING Requeue=1 PreemptTime=None", False),
        (60, "JobState=COMPLETING Requeue=1 PreemptTime=None", False),  # requeued by Slurm this moment
        (60, "JobState=RUNNING Requeue=1 PreemptTime=2026-11-24T23:14:23 Partition=low", False),
        (60, "JobState=RUNNING Requeue=0 PreemptTime=2026-11-24T23:14:23 Partition=low", True),
        (60, "JobState=RUNNING Requeue=1 PreemptTime=2026-11-24T23:14:23 Partition=lowcan", True),
    ],
)
def test_a_successor_is_submitted_in_advance_where_the_end_is_near_and_slurm_will_not_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, fields: str, ending: bool
) -> None:
    run = Run(tmp_path / "run")
    run.job.mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("BATON_JOB", raising=False)
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    end = datetime.fromtimestamp(time.time() + seconds).isoformat(timespec="seconds")
    fake.says("scontrol show job", answer=f"JobId=1 JobName=x WorkDir=/ EndTime={end} {fields}")
    fake.says("scontrol show partition -o lowcan", answer="PartitionName=lowcan PreemptMode=CANCEL State=UP")
    fake.says("scontrol show partition", answer="PartitionName=low PreemptMode=REQUEUE State=UP")
    fake.says("sbatch", answer="7")
    fake.says("squeue", answer="3 afterok:1(unfulfilled)\n4 afterok:2(unfulfilled)")
    successor.presubmit(run, if_ending=True)
    assert len(fake.calls("sbatch --parsable --dependency=afternotok:1 --kill-on-invalid-dep=yes")) == ending
    assert (run.job / "presubmitted-1").exists() == ending
    update = ["scontrol update JobId=3 Dependency=afterok:1?afterok:7"]
    assert fake.calls("scontrol update") == update * ending
    assert successor.predecessor(run, "7") == ("1" if ending else None)


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", 1), ("COMPLETING", 0), ("CANCELLED", 0)])
def test_a_job_of_another_stage_is_requeued_unless_it_has_ended_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, requeued: int
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setattr(sys, "argv", ["afterwards", "prepare", str(tmp_path), "85"])
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("scontrol show", answer=f"JobId=1 JobState={state}")
    fake.says("scontrol requeue", error="Unable to contact slurm controller (connect failure)", times=1)
    assert afterwards.main() == 0
    assert len(fake.calls("scontrol requeue 1")) == 2 * requeued


@pytest.mark.parametrize(("code", "waits", "moved"), [(85, "1", True), (0, "1", True), (0, "7", False)])
def test_a_preparation_whose_end_would_be_the_preemptions_has_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, waits: str, moved: bool
) -> None:
    """Also one that is done, if anybody waits for that."""
    run = Run(tmp_path)
    run.job.mkdir()
    events.append(run.events, "submitted", stage="prepare", job="1", executor="slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("BATON_JOB", raising=False)
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    time = "PreemptTime=2026-01-01T00:00:00"
    fake.says("scontrol show job", answer=f"JobId=1 JobName=x JobState=RUNNING {time} Requeue=1 WorkDir=/")
    fake.says("scontrol show config", answer="SLURM_VERSION = 26.05.5")
    fake.says("squeue", answer=f"3 afterok:{waits}(unfulfilled)")
    fake.says("sbatch", answer="9")
    assert afterwards.after_srun("prepare", run, code, ["--archives", "/a b"]) == 0
    assert len(fake.calls("sbatch")) == moved
    assert all(call.endswith("successor-1.sbatch --archives /a b") for call in fake.calls("sbatch"))
    update = ["scontrol update JobId=1 Requeue=0", *["scontrol update JobId=3 Dependency=afterok:9"] * moved]
    assert fake.calls("scontrol update") == update
    told = [e["successor"] for e in events.read(run.events) if e["event"] == "requeued"]
    assert told == ["9"] * moved
    assert not fake.calls("scontrol requeue")


def test_the_line_that_submitted_a_job_is_not_taken_for_its_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm 26.05 shows it."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    line = "SubmitLine=sbatch -p high --wrap x JobState=FAILED Partition=high WorkDir=/"
    fake.says("scontrol show", answer=f"JobId=1 JobState=RUNNING Partition=low {line}")
    assert slurm.this_job()["JobState"] == "RUNNING"
    assert slurm.this_job()["Partition"] == "low"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("10", 10), ("10:30", 10.5), ("1:00:00", 60), ("1-0", 1440), ("1-02:03", 1563),
        ("2-00:00:00", 2880), ("UNLIMITED", None),
    ],
)  # fmt: skip
def test_time_limits(text: str, minutes: float | None) -> None:
    assert successor.minutes(text) == minutes


@pytest.mark.parametrize(
    ("shown", "identifier", "dependency"),
    [
        ("afterok:12(unfulfilled)", "34", "afterok:12"),
        ("afterok:12(unfulfilled)?afterok:9(failed)", "34", "afterok:12"),
        ("afterok:8(failed)", "34", "afterok:8"),
        ("aftercorr:12_*(unfulfilled)", "34_3", "afterok:12_3"),
        ("aftercorr:12(unfulfilled),afterany:7(unfulfilled)", "34_3", "afterok:12_3,afterany:7"),
        ("aftercorr:12_*(unfulfilled)", "34", "aftercorr:12_*"),
    ],
)
def test_dependencies_are_read_as_the_one_job_has_them(shown: str, identifier: str, dependency: str) -> None:
    assert successor.of_element(shown, identifier) == dependency


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("afterok:12", "afterok:99"),
        ("afterok:12:13,afterany:12", "afterok:99:13,afterany:99"),
        ("afterok:123", "afterok:123"),
        ("afterok:12_3", "afterok:12_3"),
        ("singleton", "singleton"),
    ],
)
def test_dependencies_are_renamed(before: str, after: str) -> None:
    assert successor.rename(before, "12", "99") == after


def test_dependency_on_an_element_is_renamed() -> None:
    assert successor.rename("afterok:12_3,afterok:12_31", "12_3", "99_3") == "afterok:99_3,afterok:12_31"


def test_dependency_on_either_job() -> None:
    assert successor.either("afterok:12", "12", "99") == "afterok:12?afterok:99"
    assert successor.either("afterok:12?afterok:98", "12", "99") == "afterok:12?afterok:99"
    assert successor.either("afterok:12,singleton", "12", "99") == "afterok:12,singleton"
    assert successor.either("afterok:123", "12", "99") == "afterok:123"


def test_a_successor_does_not_take_itself_for_this_job() -> None:
    inherited = {
        "SLURM_RESTART_COUNT": "3",
        "SLURM_JOB_ID": "12",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_ARRAY_INX": "0-3",
        "SBATCH_MEM_BIND_TYPE": "none",
        "BATON_JOB": "12",
        "BATON_SCRIPT": "/run/train.sbatch",
        "PATH": "/bin",
    }
    kept = successor.clean_environment(inherited)
    assert sorted(kept) == ["BATON_SCRIPT", "PATH", "SBATCH_ACCOUNT", "SLURM_CONF"]


@pytest.mark.parametrize(
    ("answer", "queue", "job"),
    [
        ("INFO: job 2 of 5\n7;lab\nbalance: 9 h", "", "7"),
        ("INFO: submitted", "8|afterany:1(unfulfilled)|x", "8"),
        ("INFO: submitted", "", None),
    ],
)
def test_a_site_whose_sbatch_says_more_or_less_than_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, queue: str, job: str | None
) -> None:
    run = Run(tmp_path / "run")
    run.job.mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("scontrol show job", answer="JobId=1 JobName=x WorkDir=/")
    fake.says("sbatch", answer=answer)
    fake.says("squeue", answer=queue)
    assert successor.submit(run, "afterany:1")[0] == job
    assert len(fake.calls("sbatch")) == 1
