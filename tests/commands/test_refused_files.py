"""Runs that this user may read at most: on a file system mounted read-only, or another user's."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from pathlib import Path

import pytest

from jobs.run.directory import Run, write_atomically
from tests.unit.fake_slurm import Site, one_line
from tests.unit.made_runs import made_run, with_everything, write
from tests.unit.test_identity import row

REFUSES = """
import os
import sys

RUNS, CODE, HIDDEN = os.environ["BATON_RUNS"], int(os.environ["REFUSED"]), os.environ.get("HIDDEN", "no file")
CHANGES = ("os.remove", "os.mkdir", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink")


def refuse(event, arguments):
    written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if not written and event not in CHANGES and not (event == "open" and HIDDEN in str(arguments[0])):
        return
    path = arguments[0] if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
    if os.fsdecode(path).startswith(RUNS):
        raise OSError(CODE, os.strerror(CODE), os.fsdecode(path))


sys.addaudithook(refuse)
"""
"""As a sitecustomize.py: a file system that is read-only, also for root."""


@pytest.fixture
def refusing(site: Site, tmp_path: Path) -> Site:
    """With two finished runs, `mine` and `other`; PATCHED makes their files refuse."""
    (tmp_path / "patched").mkdir()
    (tmp_path / "patched" / "sitecustomize.py").write_text(REFUSES)
    site.command("sbatch", "echo Submitted batch job 5")
    done = site.train("--cluster", "slurm", "--no-evaluation")
    assert done.returncode == 0, done.stderr
    mine = Run(site.runs / "mine")
    made = with_everything(tmp_path / "made")
    shutil.copy(made.events, mine.events)
    mine.checkpoints.mkdir()
    for number in range(1, 5):
        write_atomically(mine.checkpoints / f"epoch_{number}.pth", b"")
        (mine.checkpoints / f"epoch_{number}.pth.json").write_text("{}")
    (mine.checkpoints / "iter_9.save_tmp").touch()
    shutil.copytree(mine.path, site.runs / "other")
    return site


CASES = {
    "report": (["report", "mine"], "mine/report.html cannot be"),
    "comparison": (["report", "--compare", "mine", "other"], "comparison.html cannot be"),
    "resume": (["train", "--resume", "mine", "--set", "train_cfg.max_epochs=9"], "run.yaml cannot be"),
    "evaluate": (["evaluate", "mine"], "mine/job/evaluate.sbatch cannot be"),
    "infer": (["infer", "mine", "x.png"], "mine/infer cannot be"),
    "infer elsewhere": (["infer", "mine", "x.png", "--out", "masks"], "mine/job/infer.sbatch cannot be"),
    "export": (["export", "mine"], "mine/job/export.sbatch cannot be"),
    "export elsewhere": (["export", "mine", "--out", "model"], "mine/job/export.sbatch cannot be"),
    "clean": (["clean", "mine", "--yes"], "mine/checkpoints/iter_9.save_tmp cannot be"),
    "clean, json": (["clean", "mine", "--yes", "--json"], "mine/checkpoints/iter_9.save_tmp cannot be"),
}


@pytest.mark.parametrize("refused", ["EROFS", "EACCES"])
@pytest.mark.parametrize("case", CASES)
def test_what_would_write_says_what_and_why_in_one_line(
    case: str, refused: str, refusing: Site, tmp_path: Path
) -> None:
    arguments, said = CASES[case]
    given = [str(tmp_path / one) if one in ("x.png", "masks", "model") else one for one in arguments]
    (tmp_path / "x.png").touch()
    number = getattr(errno, refused)
    before, jobs = refusing.contents(), len(refusing.calls("sbatch"))
    done = refusing(given[0], *given[1:], PYTHONPATH=str(tmp_path / "patched"), REFUSED=str(number))
    one_line(done, said, os.strerror(number))
    assert refusing.contents() == before
    assert len(refusing.calls("sbatch")) == jobs
    if case.startswith("report"):
        assert "--out FILE writes it elsewhere" in done.stderr


def test_what_only_reads_goes_on(refusing: Site, tmp_path: Path) -> None:
    patched = {"PYTHONPATH": str(tmp_path / "patched"), "REFUSED": "30"}
    for arguments in (["status"], ["status", "mine"], ["logs", "mine"], ["clean"], ["clean", "--json"]):
        done = refusing(arguments[0], *arguments[1:], **patched)
        assert done.returncode == 0, done.stderr
    page = str(tmp_path / "page.html")
    for more in ([], ["--compare", "other"]):
        done = refusing("report", "mine", *more, "--out", page, **patched)
        assert done.returncode == 0, done.stderr


def test_a_run_whose_request_is_another_users_alone(refusing: Site, tmp_path: Path) -> None:
    patched = {"PYTHONPATH": str(tmp_path / "patched"), "REFUSED": "13", "HIDDEN": "run.yaml"}
    done = refusing("report", "mine", "--out", str(tmp_path / "page.html"), **patched)
    assert done.returncode == 0, done.stderr
    assert "run.yaml cannot be read" in (tmp_path / "page.html").read_text()
    one_line(
        refusing("evaluate", "mine", **patched), "mine/run.yaml cannot be read: it belongs to another user"
    )


def test_one_run_that_refuses_does_not_keep_clean_from_the_others(refusing: Site, tmp_path: Path) -> None:
    patched = {"PYTHONPATH": str(tmp_path / "patched"), "REFUSED": "13"}
    done = refusing("clean", "mine", "other", "--yes", **patched)
    assert done.returncode == 2, done.stdout
    assert [line.split()[1].rsplit("/", 3)[1] for line in done.stderr.splitlines()] == ["mine", "other"]


def test_a_run_on_a_full_disk_can_be_cancelled(refusing: Site, tmp_path: Path) -> None:
    run = made_run(refusing.runs / "full")
    write(run, 0, "submitted", stage="train", job="12", executor="slurm", nodes=1, ranks=1)
    queued = row(f"{run.path}/job/train.sbatch", run.name, number="12")
    refusing.command("squeue", f"echo {shlex.quote(queued)}")
    refusing.command("scancel", "")
    patched = {"PYTHONPATH": str(tmp_path / "patched"), "REFUSED": str(errno.EDQUOT)}
    done = refusing("cancel", "full", "--now", **patched)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "full: cancelled 12")
    why = (
        f"full: {run.job}/cancelled cannot be written: Disk quota exceeded; its jobs are told to end all the"
    )
    assert done.stderr == f"{why} same\n"
    assert refusing.calls("scancel")
