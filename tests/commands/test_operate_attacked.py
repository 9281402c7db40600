"""What the operating commands do with text that a terminal would obey, runs that cannot be read, and runs of
other machines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.run import place
from jobs.run.directory import Run
from jobs.slurm import pending
from jobs.slurm import queries as slurm_queries
from jobs.slurm.queries import Answer, Job
from launch.observe import history, liveness, states, tables, wording
from tests.support import terminal
from tests.unit.made_runs import T0, common, interrupted_run, made_run, started, submitted, write

ROOT = Path(__file__).resolve().parents[2]
ATTACK = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m\r\b\x9b5n\u202egnp.\u2066 \x00end"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def command(
    root: Path, script: str, *arguments: str, path: str = "/nonexistent", **options: Any
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "BATON_RUNS": str(root), "HOME": str(root)}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), *arguments],
        capture_output=True, text=True, timeout=60, env=environment, **options,
    )  # fmt: skip


def attacked_run(path: Path) -> Run:
    run = made_run(path)
    submitted(run, job="local-1", executor="local")
    started(run, 1, 1, job="local-1", host=f"n1{ATTACK}")
    write(run, 9, "failed", reason=ATTACK, error=f"KeyError: {ATTACK}", rank=0, host=ATTACK,
          log=f"job/{ATTACK[:4]}", **common(1, "local-1"))  # fmt: skip
    (run.job / "local-1-train_0_log.out").write_text(f"{ATTACK}\nmore\n")
    (run.job / "error-1-0.json").write_text(json.dumps({"error": ATTACK, "traceback": f"Trace\n{ATTACK}"}))
    return run


@pytest.mark.parametrize(
    "arguments",
    [["status.py"], ["status.py", "run"], ["logs.py", "run"], ["logs.py", "run", "-f"], ["cancel.py", "run"],
     ["clean.py"], ["logs.py", f"no{ATTACK.replace(chr(0), '')}"], ["doctor.py"]],
)  # fmt: skip
def test_nothing_that_is_printed_is_obeyed_by_a_terminal(tmp_path: Path, arguments: list[str]) -> None:
    attacked_run(tmp_path / "run")
    piped = command(tmp_path, *arguments)
    assert "Traceback (most" not in piped.stderr
    assert not OBEYED.search(piped.stdout + piped.stderr), repr(piped.stdout + piped.stderr)
    environment = {
        "PATH": "/nonexistent",
        "BATON_RUNS": str(tmp_path),
        "HOME": str(tmp_path),
        "TERM": "xterm",
    }
    line = [sys.executable, str(ROOT / "launch" / arguments[0]), *arguments[1:]]
    with terminal.Terminal(line, environment, columns=100) as shown:
        shown.code()
    # Colours of our own and the ends of lines are all that is left.
    left = re.sub(r"\x1b\[[0-9;]*m", "", shown.text).replace("\r\n", "\n")
    assert not OBEYED.search(left), repr(left)
    assert "owned" not in shown.text or "\\x1b]0;owned" in shown.text


def test_the_progress_line_of_wait_shows_a_log_without_obeying_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.observe import waiting

    run = made_run(tmp_path / "run")
    (run.job / "12_0_log.out").write_text(f"{ATTACK}\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    line = waiting._ProgressLine(run)
    line.stage, line.job = "prepare", "12"
    line.show()
    shown = capsys.readouterr().out
    assert shown.startswith("\r\033[K")
    assert not OBEYED.search(shown.removeprefix("\r\033[K")), repr(shown)


def test_a_file_name_that_is_no_text_can_be_printed() -> None:
    assert wording.safe(os.fsdecode(b"a\xff")) == "a\\udcff"
    assert wording.safe("naïve – ok\t1\n") == "naïve – ok\t1\n"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that another uid can come into (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def damaged(root: Path) -> None:
    """Runs each of which one thing is wrong with."""
    made_run(root / "folder").events.mkdir()
    os.mkfifo(made_run(root / "pipe").events)
    os.mkfifo(made_run(root / "pipe2").path / "progress.json")
    bad = made_run(root / "time")
    submitted(bad)
    line = json.dumps({"time": "9999-99-99T99:99:99.000Z", "event": "started", "stage": "train", "job": "12",
                       "start": 1, "hosts": ["a"], "world_size": 1})  # fmt: skip
    bad.events.write_text(bad.events.read_text() + line + "\n" + line.replace("9999-99-99T", "zz") + "\n")
    fifo = made_run(root / "log")
    submitted(fifo, job="12")
    os.mkfifo(fifo.job / "12_0_log.out")


def test_one_run_that_cannot_be_read_does_not_hide_the_others(shared: Path) -> None:
    damaged(shared)
    interrupted_run(shared / "good")
    done = command(shared, "status.py")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "finished" in lines["good"]
    for name in ("folder", "pipe"):
        assert "unreadable" in lines[name], lines[name]
    assert "unreadable" not in lines["time"]
    found = {
        one["name"]: one["state"] for one in json.loads(command(shared, "status.py", "--json").stdout)["runs"]
    }
    assert found["folder"] == "unreadable"
    for script in ("status.py", "cancel.py", "logs.py", "report.py"):
        one = command(shared, script, "pipe")
        assert (one.returncode, one.stderr.count("\n")) == (2, 1), one.stderr
    assert command(shared, "clean.py", "--yes").returncode == 0
    assert command(shared, "logs.py", "log").returncode == 0
    assert "pipe" in command(shared, "clean.py").stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_closed_run_is_a_line_of_its_own(shared: Path) -> None:
    interrupted_run(shared / "good")
    closed = made_run(shared / "theirs")
    closed.path.chmod(0o700)
    # What the other user could not read here is loaded before becoming that user.
    loaded = (
        "from launch.observe import efficiency, states, tables, waiting\nfrom launch.submit import runs\n"
    )
    script = "import sys; sys.path.insert(0, sys.argv[2]); sys.argv.pop(2)\n" + loaded
    run_status = (
        "from launch import status; from launch.observe import overview, tables; import argparse, os\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "status.show(argparse.Namespace(run=None, json=False, all=False), overview.Slurm())\n"
    )
    environment = {"PATH": "/nonexistent", "BATON_RUNS": str(shared), "HOME": str(shared)}
    done = subprocess.run(
        [sys.executable, "-c", script + run_status, "x", str(ROOT)],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "finished" in lines["good"]
    assert "unreadable: Permission denied" in lines["theirs"]


def far_away(run: Run, **record: str) -> None:
    chain = {"pid": 1, "start_time": 1, "job": "local-1"} | place.here() | record
    (run.job / "local.json").write_text(json.dumps(chain))


ELSEWHERE = {"host": "login7", "boot": "another"}


def judged(run: Run) -> states.State:
    past = history.read(run)
    return states.judge(run, past, Answer(), history.progress(run), T0 + 100)


def local_run(path: Path) -> Run:
    run = made_run(path)
    submitted(run, job="local-1", executor="local")
    started(run, 1, 1, job="local-1")
    return run


def test_a_local_run_of_another_login_node_is_unknown_and_left_alone(tmp_path: Path) -> None:
    run = local_run(tmp_path / "run")
    far_away(run, **ELSEWHERE)
    state = judged(run)
    assert (state.code, state.lives) == ("unknown", True)
    assert "login7" in state.words
    fresh = run.path / ".progress.json.77.tmp"
    fresh.write_text("x")
    os.utime(fresh, (0, 0))
    assert "left alone: run" in command(tmp_path, "clean.py", "--yes").stdout
    assert fresh.exists()
    assert liveness.is_alive(run, "local-1")
    refused = command(tmp_path, "cancel.py", "run")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "login7" in refused.stderr
    assert not (run.job / "cancelled").exists()
    # Cancelled there, it may still be saving.
    write(run, 9, "cancelled", by="me")
    assert judged(run).code == "cancelled"


def test_clean_leaves_a_run_alone_that_was_cancelled_on_another_machine(tmp_path: Path) -> None:
    run = local_run(tmp_path / "run")
    far_away(run, **ELSEWHERE)
    write(run, 9, "cancelled", by="me")
    assert "may live there" in command(tmp_path, "clean.py", "--yes").stdout


def test_the_run_of_a_machine_that_is_gone_can_be_given_up(tmp_path: Path) -> None:
    run = local_run(tmp_path / "run")
    far_away(run, **ELSEWHERE)
    done = command(tmp_path, "cancel.py", "run", "--lost", "--now")
    assert done.returncode == 0, done.stderr
    assert judged(run).code == "cancelled"


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({}, "failed"),  # this machine, and the process is not there
        ({"boot": "another"}, "failed"),  # this machine, before it was started anew
        ({"pids": "pid:[1]"}, "unknown"),  # another container on it
        (ELSEWHERE, "unknown"),
    ],
)
def test_where_a_local_run_lives(tmp_path: Path, record: dict[str, str], code: str) -> None:
    run = local_run(tmp_path / "run")
    far_away(run, **record)
    assert judged(run).code == code


def test_a_suspended_job_is_said_to_be(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 0, 1)
    write(run, 60, "epoch", epoch=1, step=50, seconds=50.0, **common(1))
    past = history.read(run)
    answer = Answer(jobs={"12": Job(id="12", state="SUSPENDED")})
    shown = states.status(run, past, answer, T0 + 160)
    assert shown.state == "suspended"
    # 100 of 160 s: it is not training since the last that was heard of it.
    assert shown.efficiency == pytest.approx(50 / 160)


def test_a_stopped_local_run_is_said_to_be(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            run = made_run(tmp_path / "run")
            submitted(run, job="local-1", executor="local")
            started(run, 1, 1, job="local-1")
            far_away(run, pid=process.pid, start_time=fields[19])  # type: ignore[arg-type]
            assert judged(run).code == "running"
            process.send_signal(19)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert judged(run).code == "suspended"
        finally:
            process.kill()


NEVER = [
    "PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints", "InvalidAccount",
    "InvalidQOS", "QOSNotAllowed", "AccountNotAllowed", "ReservationDeleted",
    "QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit",
    "AssocMaxNodePerJobLimit", "QOSMaxGRESPerJob", "QOSMaxMemoryPerNode", "AssocMaxCpuMinutesPerJobLimit",
    "QOSMaxGRESMinutesPerJob", "QOSMinCpuNotSatisfied", "QOSMinGRES",
]  # fmt: skip
WAITS = [
    "PartitionDown", "PartitionInactive", "ReqNodeNotAvail", "ReqNodeNotAvail, UnavailableNodes:n1",
    "NodeDown", "Reservation", "Licenses", "JobArrayTaskLimit", "AssocGrpCpuLimit", "AssocGrpGRES",
    "QOSGrpNodeLimit", "AssocGrpCPUMinutesLimit", "QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser",
    "AssocMaxJobsLimit", "QOSUsageThreshold", "MaxCpuPerAccount", "SomethingNew",
]  # fmt: skip


@pytest.mark.parametrize("reason", NEVER)
def test_a_job_that_can_never_start_is_called_that(tmp_path: Path, reason: str) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    job = Job(id="12", state="PENDING", reason=reason, ahead=1)
    past = history.read(run)
    state = states.judge(run, past, Answer(jobs={"12": job}), {}, T0)
    assert state.code == "stuck"
    assert state.words.startswith("will never start as it is: ")
    assert reason in state.words
    assert "queued behind" not in state.words


@pytest.mark.parametrize("reason", WAITS)
def test_a_job_that_waits_for_something_else_is_not_behind_others(tmp_path: Path, reason: str) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    job = Job(id="12", state="PENDING", reason=reason, ahead=1)
    state = states.judge(run, history.read(run), Answer(jobs={"12": job}), {}, T0)
    assert state.code == "queued"
    assert pending.waits(reason) in state.words
    assert "behind" not in state.words


def test_a_job_that_can_never_start_is_in_nobodys_way() -> None:
    row = "{0}|{0}|N/A|PENDING|gpu|{1}|ann|N/A|2026-11-24T00:00:00||(null)|{2}\n"
    jobs = slurm_queries.parse_squeue(
        row.format(7, 900, "PartitionTimeLimit") + row.format(8, 5, "Resources")
    )
    assert jobs["8"].ahead == 0


def test_a_tables_words_are_bounded_and_keep_the_files_name(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 1, 1)
    error = (
        "ValueError: "
        + "a very long story " * 20
        + "/data/masks/2007_000033.png\nthe second line\nand a third"
    )
    write(run, 9, "stopped", stage="train", job="12", reason=error)
    table = command(tmp_path, "status.py").stdout.splitlines()
    assert max(map(len, table)) < 200
    assert "/data/masks/2007_000033.png" in table[1]
    one = command(tmp_path, "status.py", "run").stdout
    assert "and a third" in one
    assert one.count("a very long story") >= 20


def test_the_line_that_matters() -> None:
    assert (
        wording.gist("RuntimeError: CUDA error\nCUDA kernel errors might be\n") == "RuntimeError: CUDA error"
    )
    assert (
        wording.gist("Error(s) in loading:\n\tMissing key(s): a\n")
        == "Error(s) in loading: Missing key(s): a"
    )
    text = "failed: Traceback (most recent call last):\n  File x\n    y\nKeyError: 'a'"
    assert wording.gist(text) == "failed: KeyError: 'a'"
    assert wording.cut("x" * 300 + "end", 20).endswith("end")
    assert len(wording.cut("x" * 300, 20)) == 20


def test_a_requeued_run_shows_the_step_that_is_saved(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 1, 1)
    moment = history.read(run).incarnations[0].began
    (run.path / "progress.json").write_text(
        json.dumps({"time": "2026-09-21T13:33:40.000Z", "start": 1, "step": 20, "epoch": 3, "max_steps": 90})
    )
    write(
        run, 30, "checkpoint", step=30, epoch=5, path="x", bytes=1, seconds=1.0, why="preempted", **common(1)
    )
    write(run, 30, "preempted", step=30, epoch=5, **common(1))
    write(run, 60, "started", hosts=["n1"], world_size=1, **common(2))
    answer = Answer(jobs={"12": Job(id="12", state="RUNNING")})
    shown = states.status(run, history.read(run), answer, moment + 70)
    assert (shown.step, shown.epoch) == (30, 5)
    # Damaged since: it says itself what it goes on from.
    write(run, 65, "resumed", step=25, epoch=4, checkpoint="x", **common(2))
    shown = states.status(run, history.read(run), answer, moment + 70)
    assert (shown.step, shown.epoch) == (25, 4)


def test_the_guard_lets_only_control_sequences_of_ours_through(capsys: pytest.CaptureFixture[str]) -> None:
    import io

    stream = io.StringIO()
    guarded = tables.Guarded(stream, needed=True)
    guarded.write("\x1b[2Jx\n")
    assert stream.getvalue() == "\\x1b[2Jx\n"
    tables.control("\x1b[K")
    assert capsys.readouterr().out == "\x1b[K"
