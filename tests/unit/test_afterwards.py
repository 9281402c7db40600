"""What follows on srun's end, as far as no Slurm is needed; else see tests/slurm/test_supervision.py."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from jobs.infer.__main__ import has_done
from jobs.run import events, story
from jobs.run.directory import Request, Run
from jobs.run.exit_codes import FAILED, RESUME, SUPERSEDED, USER_ERROR
from jobs.run.settings import Notify, RunSettings
from jobs.supervise import afterwards, budget
from jobs.supervise.afterwards import AGAIN_HERE, after_srun
from jobs.train.__main__ import announced, is_finished
from tests.unit.slurm_answers import FakeSlurm


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BATON_JOB", "local-1")
    run = Run(tmp_path)
    run.job.mkdir()
    say(run, "submitted", executor="local")
    return run


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """In a job of a Slurm that does whatever it is told to."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def say(run: Run, event: str, **fields: object) -> None:
    events.append(run.events, event, stage="train", job="local-1", **fields)


def start(run: Run, number: int) -> None:
    say(run, "started", start=number, hosts=["n1"], world_size=1)


def names(run: Run) -> list[str]:
    return [record["event"] for record in events.read(run.events)]


def test_finished(run: Run) -> None:
    assert after_srun(run, 0).code == 0


def test_srun_is_not_believed_that_the_training_is_finished(run: Run, slurm: FakeSlurm) -> None:
    """At the time limit it may end with 0, its tasks killed without having answered."""
    slurm.says("scontrol show", answer="JobId=1 JobName=x JobState=TIMEOUT WorkDir=/")
    slurm.says("scontrol requeue", error="Requested operation is presently disabled")
    slurm.says("squeue", answer="PENDING")
    (run.job / "presubmitted-local-1").write_text("9")
    start(run, 1)
    assert after_srun(run, 0).code == FAILED
    assert [e["successor"] for e in events.read(run.events) if e["event"] == "requeued"] == ["9"]
    assert not slurm.calls("scancel")
    start(run, 2)
    say(run, "finished", start=2, step=5, epoch=1)
    assert after_srun(run, 0).code == 0
    assert slurm.calls("scancel") == ["scancel 9"]


@pytest.mark.parametrize("code", [FAILED, USER_ERROR, 139])
def test_a_failure_on_the_way_out_of_a_finished_training_is_no_failure_of_it(run: Run, code: int) -> None:
    start(run, 1)
    say(run, "finished", start=1, step=5, epoch=1)
    say(run, "failed", start=1, reason="rank 0: at exit", exit_code=code, rank=0, host="n1")
    outcome = after_srun(run, code)
    assert (outcome.code, outcome.notice) == (0, "finished")
    assert "stopped" not in names(run)


def test_a_finished_training_that_another_job_is_to_extend_is_not_done(run: Run) -> None:
    start(run, 1)
    events.append(run.events, "finished", stage="train", job="local-0", start=1, step=5, epoch=1)
    assert after_srun(run, FAILED).code == AGAIN_HERE


def test_saved_and_left(run: Run) -> None:
    start(run, 1)
    assert after_srun(run, RESUME).code == RESUME


def test_a_failure_starts_again_here(run: Run) -> None:
    start(run, 1)
    say(run, "failed", start=1, reason="x", error="x", exit_code=1, rank=0, host="n1")
    assert after_srun(run, FAILED).code == AGAIN_HERE
    assert names(run) == ["submitted", "started", "failed"]


def test_a_failure_that_nobody_could_note_is_noted(run: Run) -> None:
    for number in (1, 2):
        start(run, number)
        assert after_srun(run, 137).code == AGAIN_HERE
    start(run, 3)
    assert after_srun(run, 137).code == 137
    assert names(run)[-2:] == ["failed", "stopped"]
    failed = [record for record in events.read(run.events) if record["event"] == "failed"]
    assert [record["start"] for record in failed] == [1, 2, 3]
    assert "signal 9" in failed[0]["reason"]


def test_srun_itself_failing_for_ever_is_stopped(run: Run) -> None:
    """No start ever comes to be: the nodes cannot be reached, say."""
    codes = [after_srun(run, 1).code for _ in range(3)]
    assert codes == [AGAIN_HERE, AGAIN_HERE, 1]


def test_the_users_mistake_is_not_tried_again(run: Run) -> None:
    start(run, 1)
    say(run, "failed", start=1, reason="rank 0: no such model", error="no such model", exit_code=2)
    assert after_srun(run, USER_ERROR).code == USER_ERROR
    stopped = events.read(run.events)[-1]
    assert (stopped["event"], stopped["reason"]) == ("stopped", "no such model")


def test_a_stop_is_said_once(run: Run) -> None:
    say(run, "stopped", start=1, reason="three starts")
    assert after_srun(run, FAILED).code == FAILED
    assert names(run).count("stopped") == 1


@pytest.mark.parametrize("how", ["event", "file"])
@pytest.mark.parametrize("code", [RESUME, FAILED])
def test_a_cancelled_run_is_left_alone(run: Run, how: str, code: int) -> None:
    start(run, 1)
    if how == "event":
        say(run, "cancelled", by="somebody")
    else:
        (run.job / "cancelled").touch()
    assert after_srun(run, code).code == code
    assert "requeued" not in names(run)


def test_a_job_that_starts_before_its_submission_is_noted_is_not_stopped_by_what_stopped_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start(run, 1)
    say(run, "failed", start=1, reason="no such model", exit_code=2)
    say(run, "stopped", start=1, reason="no such model")

    def stop() -> str | None:
        return budget.verdict(announced(run, "7", story.attempt(run.events))).stop

    run.request_file.touch()
    os.utime(run.request_file, (0, 0))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nobody has resumed it"))
    assert stop() == "no such model"
    os.utime(run.request_file, (time.time() + 9, time.time() + 9))  # as --resume writes it, before it submits
    monkeypatch.setattr(
        time,
        "sleep",
        lambda _: events.append(run.events, "submitted", stage="train", job="7", executor="slurm"),
    )
    assert stop() is None


def test_a_plain_scancel_leaves_the_mark_of_a_cancelled_run(run: Run, slurm: FakeSlurm) -> None:
    start(run, 1)
    slurm.says("scontrol show job", answer="JobId=1 JobName=x JobState=CANCELLED WorkDir=/")
    assert after_srun(run, RESUME).code == RESUME
    assert (run.job / "cancelled").exists(), "a start by plain sbatch would be lost at its first preemption"
    assert names(run)[-1] == "cancelled"


def mark(run: Run, number: int, job: str, restart: int = 0) -> None:
    (run.job / f"start-{number}").write_text(json.dumps({"job": job, "restart": restart}))


@pytest.mark.parametrize(
    ("code", "end"), [(SUPERSEDED, SUPERSEDED), (RESUME, SUPERSEDED), (FAILED, FAILED), (0, 0)]
)
def test_a_start_that_another_job_has_superseded_is_not_repeated(run: Run, code: int, end: int) -> None:
    start(run, 1)
    mark(run, 1, "local-1")
    mark(run, 2, "local-2")
    mark(run, 3, "local-2", restart=1)
    outcome = after_srun(run, code)
    assert outcome.code == end
    assert ("(job local-2) goes on" in outcome.message) == (code != 0)
    assert names(run) == ["submitted", "started"]


def test_only_a_start_that_came_later_supersedes(run: Run) -> None:
    mark(run, 1, "local-9")  # of another job, long ago; this one's srun never came so far
    assert after_srun(run, FAILED).code == AGAIN_HERE
    mark(run, 2, "local-1")
    (run.job / "start-3").touch()  # torn on a full disk
    assert after_srun(run, FAILED).code == AGAIN_HERE


def test_a_job_that_missed_its_own_requeue_is_superseded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    mark(run, 1, "local-1")
    mark(run, 2, "local-1", restart=1)
    assert afterwards._later_start(run, "local-1") is None
    mark(run, 3, "local-1", restart=2)
    assert afterwards._later_start(run, "local-1") is not None


def test_submitting_again_takes_a_cancellation_back(run: Run) -> None:
    say(run, "cancelled", by="somebody")
    assert afterwards.cancelled_by(run) == "somebody"
    say(run, "submitted", executor="local")
    assert afterwards.cancelled_by(run) is None


def test_a_full_disk_keeps_no_job_from_coming_back(
    run: Run, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    start(run, 1)
    monkeypatch.setattr(afterwards, "UNWRITABLE_SECONDS", 0.0)
    monkeypatch.setattr(events, "append_line", full)
    monkeypatch.setattr(afterwards, "write_atomically", full)
    for code in (RESUME, FAILED):
        assert after_srun(run, code).code == code
    assert slurm.calls("scontrol requeue") == ["scontrol requeue 1"] * 2
    assert capsys.readouterr().err.count("requeued waits to be written: ") == 2


@pytest.mark.parametrize("torn", ["", "1x"])
def test_a_torn_count_of_failures_is_counted_anew(run: Run, torn: str) -> None:
    start(run, 1)
    (run.job / "failures-noted").write_text(torn)
    assert after_srun(run, 137).code == AGAIN_HERE
    assert names(run)[-1] == "failed"
    start(run, 2)
    assert after_srun(run, 137).code == AGAIN_HERE
    assert names(run).count("failed") == 2


def test_a_controller_that_is_away_is_waited_for(run: Run, slurm: FakeSlurm) -> None:
    away = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    slurm.says("scontrol requeue", error=away, times=1)
    slurm.says("scontrol requeue", error="Socket timed out on send/recv operation", times=1)
    slurm.says("scontrol requeue", error="Job is pending execution")  # it had got the second
    assert after_srun(run, RESUME).code == RESUME
    assert len(slurm.calls("scontrol requeue")) == 3
    assert [e["how"] for e in events.read(run.events) if e["event"] == "requeued"] == ["slurm"]
    assert not slurm.calls("sbatch")


def test_a_lost_answer_to_sbatch_makes_no_second_successor(run: Run, slurm: FakeSlurm) -> None:
    slurm.says("scontrol requeue", error="Requested operation is presently disabled")
    slurm.says("scontrol show", answer="JobId=1 JobName=mine JobState=RUNNING WorkDir=/")
    slurm.says("sbatch", error="Batch job submission failed: Socket timed out on send/recv operation")
    slurm.says("squeue", answer="8|afterok:local-1(unfulfilled)|mine\n9|afterany:local-1(unfulfilled)|mine")
    assert after_srun(run, RESUME).code == RESUME
    assert len(slurm.calls("sbatch")) == 1
    assert [e["successor"] for e in events.read(run.events) if e["event"] == "requeued"] == ["9"]


def test_a_successor_in_advance_is_taken_only_where_requeueing_is_refused(run: Run, slurm: FakeSlurm) -> None:
    mark = run.job / "presubmitted-local-1"
    slurm.says("squeue", answer="PENDING")
    mark.write_text("9")
    assert after_srun(run, RESUME).code == RESUME
    assert slurm.calls("scancel") == ["scancel 9"]
    assert not mark.exists()
    mark.write_text("9")
    slurm.says("scontrol requeue", error="Requested operation is presently disabled")
    assert after_srun(run, RESUME).code == RESUME
    requeued = [e for e in events.read(run.events) if e["event"] == "requeued"]
    assert [(e["how"], e.get("successor")) for e in requeued] == [("scontrol", None), ("successor", "9")]
    assert not slurm.calls("sbatch")


def in_grace(slurm: FakeSlurm, **other: str) -> None:
    """The job has been told that it is being preempted, and has some time left."""
    config = {"SLURM_VERSION": "24.11.5", "PreemptType": "preempt/partition_prio", "MaxBatchRequeue": "5"}
    job = {"Requeue": "1", "BatchFlag": "1", "Partition": "low", "PreemptTime": "2026-01-01T00:00:00"}
    partition = {"PreemptMode": "REQUEUE"}
    for one in (config, job, partition):
        one |= {key: value for key, value in other.items() if key in one}
    fields = " ".join(f"{key}={value}" for key, value in job.items())
    slurm.says("scontrol show job", answer=f"JobId=1 JobName=x JobState=RUNNING {fields} WorkDir=/")
    slurm.says("scontrol show config", answer="\n".join(f"{key}  = {value}" for key, value in config.items()))
    slurm.says("scontrol show partition", answer=f"PartitionName=low PreemptMode={partition['PreemptMode']}")
    slurm.says("sbatch", answer="9")


class Grace(NamedTuple):
    other: dict[str, str]
    how: str


@pytest.mark.parametrize(
    "grace",
    [
        Grace({}, "slurm"),
        Grace({"SLURM_VERSION": "24.05.0"}, "slurm"),
        Grace({"SLURM_VERSION": "23.11.10"}, "scontrol"),
        Grace({"PreemptTime": "None"}, "scontrol"),
        Grace({"PreemptMode": "GANG,SUSPEND"}, "scontrol"),
        Grace({"PreemptMode": "CANCEL"}, "successor"),
        Grace({"Requeue": "0"}, "successor"),
        Grace({"BatchFlag": "5"}, "successor"),
        Grace({"BatchFlag": "4"}, "slurm"),
        Grace({"PreemptType": "preempt/qos"}, "successor"),
    ],
    ids=lambda grace: " ".join(f"{key}={value}" for key, value in grace.other.items()) or "as usual",
)
def test_preempted_with_a_grace_time(run: Run, slurm: FakeSlurm, grace: Grace) -> None:
    """Where Slurm takes any end for the preemption's, `scontrol requeue` would leave its mark to the next."""
    in_grace(slurm, **grace.other)
    start(run, 1)
    assert after_srun(run, RESUME).code == RESUME
    (requeued,) = [e for e in events.read(run.events) if e["event"] == "requeued"]
    assert (requeued["how"], requeued.get("successor")) == (
        grace.how,
        "9" if grace.how == "successor" else None,
    )
    assert len(slurm.calls("scontrol requeue")) == (grace.how == "scontrol")
    assert slurm.calls("scontrol update") == ["scontrol update JobId=1 Requeue=0"] * (
        grace.how == "successor"
    )


def test_where_its_requeue_cannot_be_forbidden_a_preempted_job_is_requeued(
    run: Run, slurm: FakeSlurm
) -> None:
    """Else it would come back beside its successor."""
    in_grace(slurm, PreemptMode="CANCEL")
    slurm.says("scontrol update", error="Access/permission denied")
    start(run, 1)
    assert after_srun(run, RESUME).code == RESUME
    assert [e["how"] for e in events.read(run.events) if e["event"] == "requeued"] == ["scontrol"]
    assert not slurm.calls("sbatch")


@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_finished_within_its_grace_time(run: Run, slurm: FakeSlurm, mode: str) -> None:
    in_grace(slurm, PreemptMode=mode)
    slurm.says(
        "squeue --me", answer="2 afterok:local-1(unfulfilled)\n3 afterok:local-1(unfulfilled),afterok:5"
    )
    start(run, 1)
    say(run, "finished", start=1, step=5, epoch=1)
    mark(run, 1, "local-1")
    outcome = after_srun(run, 0)
    assert (outcome.code, outcome.notice) == (0, "finished")
    moved = ["2 Dependency=afterok:9", "3 Dependency=afterok:9,afterok:5"] if mode == "CANCEL" else []
    updates = [f"scontrol update JobId={one}" for one in ["1 Requeue=0", *moved] if moved]
    assert slurm.calls("scontrol update") == updates
    assert not slurm.calls("scontrol requeue")
    # The start after that finds it finished, and tells nobody once more.
    mark(run, 2, "local-1", restart=1)
    slurm.says("scontrol show job", answer="JobId=1 JobName=x JobState=RUNNING WorkDir=/")
    assert after_srun(run, 0).notice == ""


def test_a_finished_training_that_gets_no_successor_is_not_stopped(run: Run, slurm: FakeSlurm) -> None:
    slurm.says("sbatch", error="Access/permission denied")
    in_grace(slurm, PreemptMode="CANCEL")
    start(run, 1)
    say(run, "finished", start=1, step=5, epoch=1)
    outcome = after_srun(run, 0)
    assert outcome.code == 0
    assert f"python launch/evaluate.py {run.name}" in outcome.message
    assert "stopped" not in names(run)


@pytest.mark.parametrize("flag", ["1", "5"])
@pytest.mark.parametrize("why", ["superseded", "stopped", "cancelled"])
def test_what_is_not_to_come_back_is_not_requeued_for_its_grace_time(
    run: Run, slurm: FakeSlurm, why: str, flag: str
) -> None:
    """Nor held, where it has been requeued as often as Slurm does that."""
    in_grace(slurm, BatchFlag=flag)
    start(run, 1)
    if why == "stopped":
        say(run, "stopped", start=1, reason="three starts")
    if why == "cancelled":
        say(run, "cancelled", by="somebody")
    after_srun(run, SUPERSEDED if why == "superseded" else FAILED)
    assert slurm.calls("scontrol update") == ["scontrol update JobId=1 Requeue=0"]
    assert "requeued" not in names(run)


def test_those_who_wait_for_more_than_a_job_wait_for_the_successor_that_was_submitted_in_advance(
    run: Run, slurm: FakeSlurm
) -> None:
    slurm.says("scontrol requeue", error="Requested operation is presently disabled")
    (run.job / "presubmitted-local-1").write_text("9")
    slurm.says("squeue --me", answer="2 afterok:local-1?afterok:9\n3 afterok:local-1,afterok:5")
    slurm.says("squeue", answer="PENDING")
    assert after_srun(run, RESUME).code == RESUME
    assert slurm.calls("scontrol update") == ["scontrol update JobId=3 Dependency=afterok:9,afterok:5"]


@pytest.mark.parametrize("how", ["requeued", "successor", "in advance", "another", "submitted", "training"])
def test_a_start_of_a_job_that_has_finished_the_training_has_nothing_left_to_do(run: Run, how: str) -> None:
    """Any other start of a finished run is to train on, for more epochs, say."""
    start(run, 1)
    if how != "training":
        say(run, "finished", start=1, step=5, epoch=1)
    if how == "successor":
        say(run, "requeued", how="successor", successor="9")
    if how == "in advance":
        (run.job / "presubmitted-local-1").write_text("9")
    if how == "submitted":
        say(run, "submitted", executor="slurm")
    job = "9" if how in ("successor", "in advance", "another") else "local-1"
    finished = is_finished(run, job, story.read(run.events))
    assert finished == (how in ("requeued", "successor", "in advance"))


@pytest.mark.parametrize(("job", "done"), [("local-1", True), ("local-2", False), (None, False)])
def test_an_inference_that_is_requeued_though_it_is_done_is_not_done_again(
    run: Run, job: str | None, done: bool
) -> None:
    say(run, "finished", start=1, step=5, epoch=1)
    assert not has_done(run, "local-1")  # that was the training
    events.append(run.events, "finished", stage="infer", job="local-1")
    assert has_done(run, job) == done


class Told(NamedTuple):
    code: int
    fail: dict[str, object] | None
    requeue: str
    news: str


@pytest.mark.parametrize(
    "told",
    [
        Told(0, None, "", "finished"),
        Told(RESUME, None, "", ""),
        Told(RESUME, None, "disabled", "stopped"),
        Told(FAILED, {"host": "n1"}, "", "failed"),
        Told(FAILED, {"host": "n1", "before": "n1"}, "", "failed"),
        Told(USER_ERROR, {"exit_code": 2}, "", "stopped"),
    ],
)
def test_who_wants_to_know_is_told(run: Run, slurm: FakeSlurm, tmp_path: Path, told: Told) -> None:
    """Of a failure also where another node is to do better, and of a job that cannot come back."""
    mail = [sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + chr(10))"]
    cluster = RunSettings(notify=Notify(mail=[*mail, str(tmp_path / "mail"), "{subject}"]))
    run.write_request(
        Request(name="x", config="c", data_root="/d", created="2026-01-01T00:00:00Z", cluster=cluster)
    )
    slurm.says("scontrol show", answer="JobId=1 JobName=x JobState=RUNNING WorkDir=/")
    if told.requeue:
        slurm.says("scontrol requeue", error=told.requeue)
        slurm.says("sbatch", error="Access/permission denied")
    if told.fail and "before" in told.fail:
        start(run, 1)
        say(run, "failed", start=1, reason="x", error="killed", exit_code=137, rank=0, host="n1", step=1)
    if told.fail:
        start(run, 2)
        fields = {"exit_code": 137, "host": "n1", **told.fail}
        fields.pop("before", None)
        say(run, "failed", start=2, reason="x", error="killed", rank=0, step=2, **fields)
    if told.code == 0:
        say(run, "finished", start=2, step=5, epoch=1)
    after_srun(run, told.code)
    sent = (tmp_path / "mail").read_text().split() if (tmp_path / "mail").exists() else []
    assert sent == ([f"{run.name}:", told.news] if told.news else [])


@pytest.mark.parametrize("code", [RESUME, FAILED])
def test_a_folder_that_cannot_be_read_does_not_keep_a_job_from_coming_back(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(afterwards, "UNREADABLE_SECONDS", 0.0)
    monkeypatch.setattr(afterwards, "UNWRITABLE_SECONDS", 0.0)
    outcome = after_srun(Run("/" + "x" * 300), code)
    assert (outcome.code, outcome.message) == (code, "requeued")
    assert len(slurm.calls("scontrol requeue 1")) == 1
