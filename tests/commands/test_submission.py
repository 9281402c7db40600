"""Submitting to a Slurm that answers badly: stand-ins of its commands, the launchers as users call them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.run.directory import Run
from launch.submit import submission
from tests.unit.fake_slurm import ROOT, Site, one_line
from tests.unit.made_runs import made_run, submitted, write

LOST = (
    'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
)
REFUSED = 'echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1'


def test_a_job_whose_answer_got_lost_is_found_by_its_script(site: Site) -> None:
    site.command("sbatch", LOST)
    # A job of that name in another checkout, of a higher number, and the job that is meant.
    mine, other = f"7|{site.runs}/mine/job/train.sbatch", "9|/other/logs/runs/mine/job/train.sbatch"
    site.command("squeue", f'printf "%s\\n" "{mine}" "{other}"')
    done = site.train("--no-evaluation")
    assert done.returncode == 0, done.stderr
    assert "train 7" in done.stdout


def test_a_site_whose_sbatch_says_more_than_the_number(site: Site) -> None:
    site.command(
        "sbatch",
        "echo 'INFO: job 2 of 5'; echo Submitted batch job 7; echo 'Balance of job 3: 9 h'\n"
        "echo 'sbatch: moved to partition low' >&2",
    )
    done = site.train("--no-evaluation")
    assert done.returncode == 0, done.stderr
    assert "train 7\n" in done.stdout
    assert "sbatch: moved to partition low\n" in done.stderr


@pytest.mark.parametrize(
    ("answer", "queue"),
    [
        (LOST, 'echo "9|/other/logs/runs/mine/job/train.sbatch"'),
        (LOST, 'echo "slurm_load_jobs error: Access denied" >&2; exit 1'),
        ("exit 0", "exit 0"),
    ],
    ids=["not in the queue", "squeue fails", "an answer without a job"],
)
def test_a_run_whose_job_may_still_come_is_kept(answer: str, queue: str, site: Site) -> None:
    site.command("sbatch", answer)
    site.command("squeue", queue)
    one_line(site.train(), "is not known", f"sbatch {site.runs}/mine/job/train.sbatch")
    assert (site.runs / "mine" / "run.yaml").exists()
    assert not list(site.runs.glob(".*"))


def test_a_training_whose_evaluation_is_refused_is_withdrawn(site: Site) -> None:
    site.command("sbatch", f'case "$*" in *evaluate*) {REFUSED};; esac\necho Submitted batch job 5')
    one_line(
        site.train(), "sbatch refused evaluate.sbatch: ", "nowhere; job 5, submitted before it, is cancelled"
    )
    assert site.calls("scancel") == ["scancel 5"]
    assert list(site.runs.iterdir()) == []
    # It cannot be withdrawn: its run must stay, and the user is told what to type.
    site.command("scancel", 'echo "scancel: error: Kill job error on job id 5: Access denied" >&2; exit 1')
    one_line(site.train(), "nowhere", "Access denied", "scancel 5")
    assert (site.runs / "mine" / "run.yaml").exists()


def test_a_shell_in_a_folder_that_is_gone(tmp_path: Path, site: Site) -> None:
    script = f'cd "$1" && rmdir "$1" && exec {sys.executable} {ROOT}/launch/status.py mine'
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", script, "sh", tmp_path / "gone"], capture_output=True, text=True, check=False, timeout=60
    )
    one_line(done, "the folder that this shell is in is gone: cd to another first")
    assert site  # whose Slurm it is


def test_a_cluster_that_knows_no_gpus(site: Site) -> None:
    said = "sbatch: error: Invalid generic resource (gres) specification"
    site.command("sbatch", f"echo '{said}' >&2; exit 1")
    one_line(site.train("--no-evaluation"), said, "; --gres says how GPUs are asked for (none: not at all)")


def test_a_refused_resume_or_evaluation_changes_nothing(site: Site) -> None:
    site.command("sbatch", "echo Submitted batch job 5")
    assert site.train("--partition", "good").returncode == 0
    run = Run(site.runs / "mine")
    (run.job / "cancelled").write_text("{}")
    checkpoint = run.path / "checkpoints" / "epoch_1.pth"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"\x80")  # as one begins of before torch 1.6
    before = site.contents()
    site.command("sbatch", REFUSED)
    one_line(site("train", "--resume", "mine", "--partition", "nowhere", "--gpus", "3"), "sbatch refused")
    one_line(site("evaluate", "mine", "--checkpoint", str(checkpoint)), "sbatch refused evaluate.sbatch")
    assert site.contents() == before


def test_a_job_that_makes_its_own_run_is_not_told_to_submit_it(site: Site) -> None:
    made = f"made {site.runs / 'mine'}"
    assert site.train("--no-submit", ENVIRONMENT="BATCH").stderr.splitlines()[-1] == made
    site.runs.joinpath("mine").rename(site.runs / "other")
    assert f"{made}; to submit it: " in site.train("--no-submit").stderr


def test_nothing_is_evaluated_on_data_that_is_gone(site: Site) -> None:
    site.train("--no-submit")
    run = Run(site.runs / "mine")
    request = run.request()
    request.data_root = str(site.runs / "gone")
    run.write_request(request)
    run.checkpoints.mkdir()
    (run.checkpoints / "epoch_1.pth").write_bytes(b"\x80")
    site.command("sbatch", "echo Submitted batch job 5")
    one_line(
        site("evaluate", "mine", "--checkpoint", "epoch_1.pth"), "no prepared dataset in", "/gone makes it"
    )
    assert not site.log.exists() or not site.calls("sbatch")


def test_what_the_user_asked_for_wins_over_the_shells_variables(site: Site) -> None:
    site.command("sbatch", f'env > "{site.runs}/../environment"; echo Submitted batch job 5')
    given = {"SBATCH_PARTITION": "old", "SBATCH_QUIET": "1", "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "me"}
    assert site.train("--partition", "new", "--time", "60", "--no-evaluation", **given).returncode == 0
    seen = (site.runs.parent / "environment").read_text()
    assert "SBATCH_ACCOUNT=me" in seen  # nothing else says what it should be
    for name in ("SBATCH_PARTITION", "SBATCH_QUIET", "SBATCH_TIMELIMIT"):
        assert name not in seen


def test_jobs_that_events_name_are_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path / "mine")
    submitted(run, 0, "12")
    write(run, 1, "requeued", stage="train", job="12", how="successor", successor="13")
    (run.job / "presubmitted-13").write_text("14")
    script = run.job / "train.sbatch"
    rows = "".join(f"{id}|{script}\n" for id in (12, 13, 14, 15))
    monkeypatch.setattr(submission.slurm, "call", lambda *_, **__: rows)
    assert submission._queued(script) == ["15"]


def test_a_submission_that_is_interrupted_leaves_no_job(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while sbatch waits for its answer: the run directory goes, so must the job."""
    run = made_run(tmp_path / "mine")
    script = run.job / "train.sbatch"
    script.write_text("#!/bin/bash\n")
    asked = []

    def call(*command: str, **_: object) -> str:
        asked.append(command[0])
        if command[0] == "sbatch":
            raise KeyboardInterrupt
        return f"7|{script}\n" if command[0] == "squeue" else ""

    monkeypatch.setenv("PATH", str(site.bin))
    monkeypatch.setattr(submission.slurm, "call", call)
    with pytest.raises(KeyboardInterrupt):
        submission.submit_script(script)
    assert asked == ["srun", "sbatch", "squeue", "scancel"]


def interrupted(site: Site, sign: signal.Signals, until: Callable[[], bool], *arguments: str) -> str:
    """A command that gets a signal as soon as `until` holds; what it said on standard error."""
    environment = os.environ | {"PATH": f"{site.bin}:{os.environ['PATH']}", "BATON_RUNS": str(site.runs)}
    command = [sys.executable, "launch/train.py", "--config", "tests/support/configs/tiny.py", *arguments]
    conf = {"SLURM_CONF": str(site.bin.parent / "slurm.conf")}
    with subprocess.Popen(
        [*command, "--data-root", str(site.data), "--run", "g"],
        cwd=ROOT, env=environment | conf, stderr=subprocess.PIPE, text=True,
    ) as launcher:  # fmt: skip
        while not until():
            assert launcher.poll() is None
            time.sleep(0.002)
        launcher.send_signal(sign)
        said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 130, said
    return said


def test_jobs_that_their_runs_do_not_know_yet_are_withdrawn(site: Site) -> None:
    """The events are about to be written (the name of the cluster, for them, is read from a pipe): the runs
    go, so must the jobs."""
    pipe = site.bin.parent / "slurm.conf"
    os.mkfifo(pipe)
    site.command("sbatch", 'case "$*" in *dependency*) id=6;; *) id=5;; esac; echo Submitted batch job $id')
    opened: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    interrupted(site, signal.SIGINT, is_read, "--cluster", "slurm", "--seeds", "0,1")
    os.close(*opened)
    assert sorted(site.calls("scancel")) == ["scancel 5", "scancel 6"]
    assert list(site.runs.iterdir()) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGHUP])
def test_half_of_a_local_sweep_ends_with_its_launcher(sign: signal.Signals, site: Site) -> None:
    begun = site.runs / "g-1" / "events.jsonl"
    said = interrupted(site, sign, begun.exists, "--cluster", "local", "--seeds", "0-11")
    assert "Traceback" not in said
    assert list(site.runs.iterdir()) == []
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [one for one in commands if os.fsencode(site.runs) in one]


@pytest.mark.parametrize("lacks", ["srun", "a version"])
def test_a_slurm_that_could_not_run_a_job_is_refused_in_one_line(lacks: str, site: Site) -> None:
    site.command("sbatch", "echo Submitted batch job 5")
    if lacks == "srun":
        (site.bin / "srun").unlink(missing_ok=True)
        one_line(site.train(), "sbatch is on PATH but srun is not", "--cluster local")
    else:
        site.command("srun", "echo slurm-wlm 19.05.8")
        one_line(site.train(), "slurm-wlm 19.05 is too old", "20.11")
    assert not site.log.exists() or not site.calls("sbatch")
    assert list(site.runs.iterdir()) == []


TINY = ["--config", "tests/support/configs/tiny.py"]

TAKES_THE_FIRST = """
import os

rename = os.rename


def late(old, new, **more):
    if os.path.basename(new) in ("tiny-1", "tiny-sweep-1-0", "prepare-1") and not os.path.lexists(new):
        os.mkdir(new)
        open(os.path.join(new, "run.yaml"), "w").close()
    rename(old, new, **more)


os.rename = late
"""


@pytest.mark.parametrize(
    ("command", "arguments", "name"),
    [
        ("train", TINY, "tiny-2"),
        ("train", [*TINY, "--seeds", "0,1"], "tiny-sweep-2-0"),
        ("evaluate", [*TINY, "--checkpoint", "x.pth"], "tiny-2"),
        ("prepare", ["--archives", "."], "prepare/prepare-2"),
    ],
)
def test_two_launchers_that_make_up_a_name_do_not_refuse_each_other(
    command: str, arguments: list[str], name: str, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "patched").mkdir()
    (tmp_path / "patched" / "sitecustomize.py").write_text(TAKES_THE_FIRST)
    (tmp_path / "x.pth").write_bytes(b"\x80")
    site.command("sbatch", "echo Submitted batch job 5")
    given = [str(tmp_path / one) if one == "x.pth" else one for one in arguments]
    data = tmp_path / "new" if command == "prepare" else site.data
    given += ["--data-root", str(data), "--cluster", "slurm"]
    done = site(command, *given, PYTHONPATH=str(tmp_path / "patched"))
    assert done.returncode == 0, done.stderr
    assert (site.runs / name / "run.yaml").stat().st_size


FULL = "error: standard output cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 74, f"{FULL}; mine is submitted all the same: train 5, evaluate 5\n"),
        (">/dev/full 2>/dev/full", 74, ""),
        ("| true; exit 0", 0, ""),
    ],
)
def test_a_run_that_cannot_be_told_of_is_submitted_once_and_well(
    redirected: str, code: int, said: str, site: Site
) -> None:
    """A script that was told of an error would submit it again."""
    site.command("sbatch", "echo Submitted batch job 5")
    done = site.train("--cluster", "slurm", redirected=redirected)
    assert (done.returncode, done.stderr) == (code, said)
    assert len(site.calls("sbatch")) == 2
    for command in (["status"], ["status", "mine"], ["status", "--json"], ["train", "--help"]):
        shown = site(*command, redirected=redirected)
        assert (shown.returncode, shown.stderr) == (code, f"{FULL}\n" if said else ""), command
    wrong = site("status", "nobody", redirected=redirected)
    assert wrong.returncode == (0 if "exit" in redirected else 2)
    assert "Traceback" not in wrong.stderr


def test_each_job_is_told_where_output_takes_nothing(site: Site, tmp_path: Path) -> None:
    site.command("sbatch", "echo Submitted batch job 5")
    data = ["--data-root", str(site.data), "--cluster", "slurm"]
    sweep = site("train", *TINY, *data, "--run", "s", "--seeds", "0,1", redirected=">/dev/full")
    assert "s-0 is submitted all the same: train 5_0, evaluate 5_0; s-1 is submitted" in sweep.stderr
    (tmp_path / "x.pth").write_bytes(b"\x80")
    given = [*TINY, *data, "--checkpoint", str(tmp_path / "x.pth")]
    evaluation = site("evaluate", *given, redirected=">/dev/full")
    assert f"{FULL}; tiny-1 is submitted all the same: evaluate 5\n" == evaluation.stderr
    assert (site.runs / "tiny-1" / "run.yaml").is_file(), "which the job needs"


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a child process prints would go into it."""
    program = (
        "from jobs.run import environment; environment.enter(); import subprocess, sys; "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); subprocess.run(['echo', 'astray']); "
        "sys.exit(file.fileno() < 3)"
    )
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode == 0
    assert (tmp_path / "file").read_text() == ""
