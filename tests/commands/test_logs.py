"""Logs: whose file is whose, following across requeues, the first error; what clean and cancel may do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.run import checkpoint_files
from jobs.run.directory import Run
from launch.observe import history, leftovers, log_files
from tests.unit.made_runs import common, interrupted_run, made_run, started, submitted, write

ROOT = Path(__file__).resolve().parents[2]


def environment(root: Path) -> dict[str, str]:
    return {"PATH": "/nonexistent", "BATON_RUNS": str(root), "HOME": str(root), "PYTHONUNBUFFERED": "1"}


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / arguments[0]), *arguments[1:]],
        capture_output=True, text=True, timeout=60, env=environment(root),
    )  # fmt: skip


def test_whose_log_a_file_is(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run, job="12")
    write(run, 1, "submitted", stage="train", job="30_3", executor="slurm")
    write(run, 1, "submitted", stage="evaluate", job="13", executor="slurm")
    for name in (
        "12_log.out",
        "12_0_log.out",
        "12_10_log.out",
        "30_3_log.out",
        "30_3_1_log.out",
        "13_0_log.out",
    ):
        (run.job / name).write_text("x\n")
    (run.job / "local-77-train_1_log.out").write_text("x\n")
    (run.job / "train.sbatch").write_text("x\n")
    write(run, 2, "submitted", stage="train", job="local-78", executor="local")
    (run.job / "78_0_log.out").write_text("x\n")
    found = log_files.find(run, history.read(run))
    assert [(file.job, file.stage, file.rank) for file in found] == [
        ("12", "train", None), ("12", "train", 0), ("12", "train", 10),
        ("30_3", "train", None), ("30_3", "train", 1), ("13", "evaluate", 0), ("local-78", "train", None),
        ("local-77", "train", 1),
    ]  # fmt: skip
    assert [file.job for file in log_files.find(run, history.read(run), "train", 1)] == ["30_3", "local-77"]


def test_a_rank_that_there_is_not_is_said_to_be_none(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    waits = command(tmp_path, "logs.py", "run", "--rank", "1")
    assert (waits.returncode, "no log yet" in waits.stdout) == (0, True)
    started(run, 1, 1)
    (run.job / "12_0_log.out").write_text("one\n")
    assert command(tmp_path, "logs.py", "run", "--rank", "1").returncode == 0, "it has said nothing yet"
    for more, said in (
        ((), "run has ranks 0 to 1"),
        (("--job", "train"), "the job train of run has ranks 0 to"),
    ):
        done = command(tmp_path, "logs.py", "run", "--rank", "9", *more)
        assert done.returncode == 2
        assert f"--rank 9: {said}" in done.stderr


def test_the_first_error_comes_first(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 1, 1)
    (run.job / "12_0_log.out").write_text("peer closed\n")
    (run.job / "12_1_log.out").write_text("Traceback …\n")
    trace = {"error": "KeyError: 'a'", "traceback": "Traceback\n  File x\nKeyError: 'a'"}
    (run.job / "error-1-1.json").write_text(json.dumps(trace))
    write(run, 9, "failed", reason="rank 1 died", error="KeyError: 'a'", rank=1, host="n2",
          log="job/12_1_log.out", **common(1))  # fmt: skip
    shown = command(tmp_path, "logs.py", "run").stdout.splitlines()
    assert shown[0] == "first error (start 1, rank 1, on n2): KeyError: 'a'"
    assert "  File x" in shown[2]
    assert any(line.startswith("==> train 12, rank 0") for line in shown)
    assert "peer closed" not in command(tmp_path, "logs.py", "run", "--rank", "1").stdout


DEPRECATED = (
    "/env/lib/python3.11/site-packages/torch/jit.py:12: FutureWarning: `torch.jit` is old, use another\n"
    "  warnings.warn(\n"
)
OURS = "/home/me/code/mine.py:3: DeprecationWarning: my own\n  old()\n"
ONCE = "/env/lib/python3.11/site-packages/mmcv/x.py:9: UserWarning: the loss is odd\n  warnings.warn(\n"
BAD = "/env/lib/python3.11/site-packages/a.py:1: UserWarning: pkg_resources is deprecated\n  import it\n"


def test_what_all_ranks_say_is_shown_once(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 1, 1)
    for rank in range(3):
        stamp = f"2026/11/25 10:00:0{rank} - "
        (run.job / f"12_{rank}_log.out").write_text(
            f"{DEPRECATED}{BAD}{ONCE}{stamp}all of us\nonly {rank}\n{OURS}"
        )
    shown = command(tmp_path, "logs.py", "run").stdout
    for text in ("FutureWarning", "pkg_resources", "import it"):
        assert text not in shown
    assert shown.count("the loss is odd") == 1
    assert shown.count("all of us") == 1
    assert shown.count("DeprecationWarning: my own") == 1
    assert [shown.count(f"only {rank}") for rank in range(3)] == [1, 1, 1]
    assert "6 deprecation warnings of libraries" in shown
    everything = command(tmp_path, "logs.py", "run", "--all").stdout
    assert everything.count("FutureWarning") == everything.count("all of us") == 3
    one = command(tmp_path, "logs.py", "run", "--rank", "2").stdout
    assert "all of us" in one


def test_lines_before_the_last_are_counted_after_the_warnings_have_gone(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    (run.job / "12_0_log.out").write_text(f"wanted\n{DEPRECATED * 5}also\n")
    shown = command(tmp_path, "logs.py", "run", "-n", "2").stdout
    assert "wanted\nalso" in shown


def test_the_tail_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {i}\n" for i in range(300_000)))
    assert log_files.tail(path, 2) == ["line 299998", "line 299999"]
    assert log_files.tail(tmp_path / "none", 2) == []


def test_a_growing_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntw")
    growing = log_files.Growing(path)
    assert growing.lines() == ["one"]
    with path.open("a") as file:
        file.write("o\nthr")
    assert growing.lines() == ["two"]
    assert growing.lines(last=True) == ["thr"]


def alive(run: Run, job: str) -> None:
    """Makes this test's own process the local chain of a run."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    chain = {"pid": os.getpid(), "start_time": fields[19], "job": job}
    (run.job / "local.json").write_text(json.dumps(chain))


def of_two_ranks(root: Path, said: str = "") -> tuple[Run, str]:
    """A local run at work, whose ranks have begun their logs with `said`; and its job."""
    run, job = made_run(root / "run"), "local-1"
    submitted(run, job=job, executor="local")
    alive(run, job)
    started(run, 1, 1, job=job)
    for rank in (0, 1):
        (run.job / f"{job}-train_{rank}_log.out").write_text(f"{said}rank {rank} begins\n")
    return run, job


def following(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch/logs.py"), "run", "-f", *arguments],
        stdout=subprocess.PIPE, text=True, env=environment(root),
    )  # fmt: skip


def test_following_goes_on_over_a_requeue_to_the_end(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    job = f"local-{os.getpid()}"
    submitted(run, job=job, executor="local")
    alive(run, job)
    log = run.job / f"{job}-train_0_log.out"
    log.write_text("before\n")
    started(run, 1, 1, job=job)
    process = following(tmp_path)
    assert process.stdout
    assert _until(process, "before")
    with log.open("a") as file:
        file.write("more\n")
    assert _until(process, "more")
    write(run, 9, "preempted", step=3, epoch=0, **common(1, job))
    started(run, 20, 2, job="77")
    (run.job / "77_0_log.out").write_text("after the requeue\n")
    assert _until(process, "after the requeue")
    write(run, 30, "finished", step=9, epoch=1, **common(2, "77"))
    (run.job / "local.json").unlink()
    rest = process.communicate(timeout=60)[0]
    assert "finished" in rest
    assert process.returncode == 0


def test_following_a_run_that_fails_ends_with_the_error_and_its_traceback(tmp_path: Path) -> None:
    run, job = of_two_ranks(tmp_path)
    process = following(tmp_path)
    assert _until(process, "[train 1] rank 1 begins")
    trace = {"error": "KeyError: 'a'", "traceback": "Traceback\n  File x\nKeyError: 'a'"}
    (run.job / "error-1-1.json").write_text(json.dumps(trace))
    write(run, 9, "failed", reason="rank 1 died", error="KeyError: 'a'", rank=1, host="n2", **common(1, job))
    assert _until(process, "failed: KeyError: 'a'")
    (run.job / "local.json").unlink()
    rest = process.communicate(timeout=60)[0].splitlines()
    assert rest[0] == "first error (start 1, rank 1, on n2): KeyError: 'a'"
    assert "    File x" in rest
    assert process.returncode == 1


def test_following_leaves_the_same_out(tmp_path: Path) -> None:
    run, job = of_two_ranks(tmp_path, f"{DEPRECATED}{ONCE}")
    process = following(tmp_path)
    assert _until(process, "[train 1] rank 1 begins")
    with (run.job / f"{job}-train_1_log.out").open("a") as file:
        file.write(f"{DEPRECATED}and goes on\n")
    assert _until(process, "and goes on")
    write(run, 30, "finished", step=9, epoch=1, **common(1, job))
    (run.job / "local.json").unlink()
    rest = process.communicate(timeout=60)[0]
    assert "FutureWarning" not in rest
    assert "left out: 3 deprecation warnings of libraries and 1 warning that another rank shows, too" in rest


def test_following_one_rank_and_one_job(tmp_path: Path) -> None:
    run, job = of_two_ranks(tmp_path)
    write(run, 0, "submitted", stage="evaluate", job=job, executor="local")
    (run.job / f"{job}-evaluate_0_log.out").write_text("evaluating\n")
    process = following(tmp_path, "--rank", "1", "--job", "train")
    assert _until(process, "rank 1 begins")
    write(run, 30, "finished", step=9, epoch=1, **common(1, job))
    # The evaluation goes on; what was asked for is over.
    rest = process.communicate(timeout=60)[0]
    assert "training finished" in rest
    assert "rank 0" not in rest
    assert "evaluating\n" not in rest
    assert process.returncode == 0


def test_an_error_is_over_when_the_job_is_submitted_again(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    write(run, 590, "submitted", stage="evaluate", job="14", executor="slurm")
    write(run, 600, "failed", stage="evaluate", job="14", reason="no space left")
    assert log_files.first_error(run, history.read(run)) == ["first error: no space left"]
    assert log_files.first_error(run, history.read(run), "evaluate") == ["first error: no space left"]
    assert log_files.first_error(run, history.read(run), "train") == []  # whose log it would head
    write(run, 700, "submitted", stage="evaluate", job="15", executor="slurm")
    assert log_files.first_error(run, history.read(run)) == []


def _until(process: subprocess.Popen[str], text: str) -> bool:
    assert process.stdout
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        line = process.stdout.readline()
        if text in line or not line:
            return text in line
    return False


def _checkpoint(run: Run, name: str, step: int, manifest: bool = True) -> None:
    path = run.checkpoints / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * 1000)
    if manifest:
        from jobs.engine import checkpoints

        record = {"step": step, "epoch": step, "bytes": 1000, "digest": checkpoints.digest(path), "start": 1}
        (run.checkpoints / f"{name}.json").write_text(json.dumps(record))


def test_clean_is_dry_and_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    for step in (1, 2, 3, 4, 5):
        _checkpoint(run, f"epoch_{step}.pth", step)
    (run.checkpoints / "best.json").write_text(json.dumps({"path": "epoch_2.pth", "mIoU": 50, "step": 2}))
    _checkpoint(run, "epoch_6.pth", 6, manifest=False)
    (run.checkpoints / ".epoch_7.pth.1.99.tmp").write_text("x")
    (run.checkpoints / "epoch_3.pth.damaged").write_text("x")
    (run.checkpoints / "notes.txt").write_text("mine")
    before = sorted(run.checkpoints.iterdir())
    dry = command(tmp_path, "clean.py")
    assert dry.returncode == 0, dry.stderr
    assert "nothing deleted" in dry.stdout
    assert sorted(run.checkpoints.iterdir()) == before
    assert command(tmp_path, "clean.py", "--yes").returncode == 0
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "best.json", "epoch_2.pth", "epoch_2.pth.json", "epoch_4.pth", "epoch_4.pth.json", "epoch_5.pth",
        "epoch_5.pth.json", "notes.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["[]", "{", "", '{"path": 5}', None])
def test_clean_keeps_the_best_by_the_events_where_its_note_is_damaged(
    damage: str | None, tmp_path: Path
) -> None:
    run = interrupted_run(tmp_path / "run")
    write(run, 590, "validated", epoch=1, step=100, seconds=1.0, metrics={"mIoU": 60.0}, **common(3))
    for step in (100, 200, 300, 400):
        _checkpoint(run, f"epoch_{step // 100}.pth", step)
    run.config.touch()
    if damage is not None:
        (run.checkpoints / "best.json").write_text(damage)
        found = checkpoint_files.best(run.checkpoints)
        assert found is not None
        assert found.step == 100
    assert [path.name for path, _ in leftovers.removable(run, 1, leftovers.doubtful(run))] == [
        f"epoch_{number}.pth{ending}" for number in (2, 3) for ending in ("", ".json")
    ]

    # The best step has no checkpoint any more that is known to be: any may be it, but for the note.
    write(run, 591, "validated", epoch=1, step=123, seconds=1.0, metrics={"mIoU": 70.0}, **common(3))
    assert leftovers.removable(run, 1, leftovers.doubtful(run)) == []
    said = command(tmp_path, "clean.py", "--yes").stdout
    assert (
        "left alone: run: epoch_1.pth, epoch_2.pth, epoch_3.pth, epoch_4.pth (best.json is damaged or" in said
    )
    assert len(list(run.checkpoints.glob("*.pth"))) == 4


def test_clean_keeps_no_best_of_a_program_that_has_none(tmp_path: Path) -> None:
    """A --worker's run has no config, and no note of its best checkpoint."""
    run = interrupted_run(tmp_path / "run")
    write(run, 590, "validated", epoch=1, step=123, seconds=1.0, metrics={"mIoU": 60.0}, **common(3))
    for step in (100, 200):
        _checkpoint(run, f"iter_{step}.pth", step)
    assert [path.name for path, _ in leftovers.removable(run, 1, leftovers.doubtful(run))] == [
        "iter_100.pth",
        "iter_100.pth.json",
    ]
    assert leftovers.doubtful(run) == {}


def test_clean_keeps_what_may_be_whole_behind_a_damaged_manifest(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    for step in (1, 2, 3, 4):
        _checkpoint(run, f"epoch_{step}.pth", step)
    (run.checkpoints / "best.json").write_text(json.dumps({"path": "epoch_1.pth"}))
    for step in (1, 4):
        (run.checkpoints / f"epoch_{step}.pth.json").write_text("[]")
    said = command(tmp_path, "clean.py", "--keep", "1", "--yes").stdout
    assert "left alone: run: epoch_1.pth, epoch_4.pth (a damaged manifest, and it may be whole)" in said
    assert sorted(path.stem for path in run.checkpoints.glob("*.pth")) == ["epoch_1", "epoch_3", "epoch_4"]


def test_clean_never_deletes_the_last_whole_one(tmp_path: Path) -> None:
    """Whatever a crash of a node has left of newer ones, which have the right size."""
    run = interrupted_run(tmp_path / "run")
    for step in (1, 2, 3, 4, 5):
        _checkpoint(run, f"epoch_{step}.pth", step)
        if step > 3:
            (run.checkpoints / f"epoch_{step}.pth").write_bytes(bytes(1000))
    (run.checkpoints / "best.json").write_text(json.dumps({"path": "epoch_1.pth"}))
    assert leftovers.doubtful(run, 4) == {}, "none would go, so none is read"
    said = command(tmp_path, "clean.py", "--keep", "2", "--yes").stdout
    assert "left alone: run: epoch_3.pth, epoch_4.pth, epoch_5.pth (the newest does not match" in said
    assert sorted(path.stem[-1] for path in run.checkpoints.glob("*.pth")) == ["1", "3", "4", "5"]


def test_clean_keeps_what_another_run_starts_from(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "first")
    for step in (1, 2, 3):
        _checkpoint(run, f"iter_{step}.pth", step)
    other = interrupted_run(tmp_path / "second")
    other.config.write_text("load_from = 'logs/first/checkpoints/iter_1.pth'\n")
    said = command(tmp_path, "clean.py", "first", "--keep", "1", "--yes").stdout
    assert "left alone: first: iter_1.pth (a run that has none yet begins with it)" in said
    assert sorted(path.stem for path in run.checkpoints.glob("*.pth")) == ["iter_1", "iter_3"]
    _checkpoint(other, "iter_1.pth", 1)
    command(tmp_path, "clean.py", "first", "--keep", "1", "--yes")
    assert [path.stem for path in run.checkpoints.glob("*.pth")] == ["iter_3"]


def test_clean_leaves_a_run_alone_of_which_nobody_knows(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 1, 1)
    for step in (1, 2, 3):
        _checkpoint(run, f"epoch_{step}.pth", step)
    assert "left alone: run" in command(tmp_path, "clean.py", "--yes").stdout
    assert len(list(run.checkpoints.iterdir())) == 6


def test_without_a_whole_checkpoint_a_doubtful_one_stays(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    _checkpoint(run, "epoch_1.pth", 1, manifest=False)
    assert leftovers.removable(run, 1, leftovers.doubtful(run)) == []


def with_programs(root: Path, **programs: str) -> dict[str, str]:
    """The environment with stand-ins for Slurm's commands, each a shell script's body."""
    folder = root / "bin"
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return environment(root) | {"PATH": str(folder)}


RUNNING = 'echo "12|12|N/A|RUNNING|gpu|10|me|2026-01-01T00:00:00|2026-01-01T00:00:00|n1|(null)|None"'
SACCT = 'echo "12|CANCELLED|0:0|2026-01-01T00:00:00|2026-01-01T00:00:00|2026-01-01T00:00:00|n1|None"'


def test_clean_asks_whether_a_cancelled_job_is_still_saving(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    started(run, 1, 1)
    for step in (1, 2, 3):
        _checkpoint(run, f"epoch_{step}.pth", step)
    (run.checkpoints / ".epoch_4.pth.1.99.tmp").write_text("being written")
    write(run, 9, "cancelled", by="me")
    clean_all = [sys.executable, str(ROOT / "launch/clean.py"), "--yes"]
    for programs in ({"squeue": RUNNING}, {"squeue": "exit 1"}):
        done = subprocess.run(
            clean_all, env=with_programs(tmp_path, **programs), capture_output=True, text=True, timeout=60
        )
        assert "left alone: run (cancelled; " in done.stdout, done.stderr
        assert len(list(run.checkpoints.iterdir())) == 7
    over = with_programs(tmp_path, squeue="", sacct=SACCT)
    done = subprocess.run(clean_all, env=over, capture_output=True, text=True, timeout=60)
    assert "deleted 3 files" in done.stdout, done.stdout + done.stderr
    assert {path.suffix for path in run.checkpoints.iterdir()} == {".pth", ".json"}


def test_a_run_that_is_resumed_while_clean_looks_is_left_alone(tmp_path: Path) -> None:
    """Here while squeue answers; with many large checkpoints to verify, it is minutes."""
    run = made_run(tmp_path / "run")
    submitted(run)
    for step in (1, 2, 3):
        _checkpoint(run, f"epoch_{step}.pth", step)
    (run.checkpoints / ".epoch_4.pth.1.99.tmp").write_text("being written")
    write(run, 9, "cancelled", by="me")
    resumed = run.events.read_text().splitlines()[0]
    slurm = with_programs(tmp_path, squeue=f"echo {shlex.quote(resumed)} >> {run.events}", sacct=SACCT)
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/clean.py"), "--yes"],
        env=slurm, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left alone: run (something has happened to it just now)\ndeleted 0 files" in done.stdout
    assert len(list(run.checkpoints.iterdir())) == 7


def test_a_checkpoint_that_is_to_be_evaluated_stays(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", checkpoint="epoch_1.pth")
    for step in (1, 2, 3, 4):
        _checkpoint(run, f"epoch_{step}.pth", step)
    found = leftovers.removable(run, 2, leftovers.doubtful(run))
    assert [path.name for path, _ in found] == ["epoch_2.pth", "epoch_2.pth.json"]


def test_a_file_that_a_copy_shares_frees_nothing(tmp_path: Path) -> None:
    (tmp_path / "alone").write_bytes(b"12345")
    (tmp_path / "shared").write_bytes(b"123")
    os.link(tmp_path / "shared", tmp_path / "copy")
    assert leftovers.size_of(tmp_path) == 5


def test_clean_finds_what_is_left_elsewhere(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = interrupted_run(runs / "run")
    probe = tmp_path / "doctor" / "probe-20260101-000000-abcd"
    (probe / "code").mkdir(parents=True)
    left = [run.job / "12_submitted.pkl.save_tmp", run.path / ".progress.json.77.tmp", probe / "token"]
    kept = [run.path / ".report.html.78.tmp", run.job / "12_0_log.out", run.path / "notes.tmp"]
    for path in [*left, *kept]:
        path.write_text("x")
    for path in [*left, *kept[1:], probe]:
        os.utime(path, (0, 0))
    done = command(runs, "clean.py")
    assert "deleted" not in done.stdout.replace("nothing deleted", "")
    assert "python launch/clean.py --yes" in done.stdout
    assert command(runs, "clean.py", "--yes").returncode == 0
    assert not any(path.exists() for path in [*left, probe])
    assert all(path.exists() for path in kept)


def test_cancelling_what_slurm_will_not_cancel(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    denied = 'echo "scancel: error: Kill job error on job id 12: Access/permission denied" >&2; exit 1'
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/cancel.py"), "run"],
        env=with_programs(tmp_path, squeue=RUNNING, scancel=denied),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "permission denied" in done.stderr
    assert not (run.job / "cancelled").exists()
    assert history.read(run).cancelled is None


def test_cancelling_what_is_over_says_what_next(tmp_path: Path) -> None:
    interrupted_run(tmp_path / "run")
    shown = command(tmp_path, "cancel.py", "run").stdout
    assert shown.splitlines() == [
        "run: none of its jobs was queued or running",
        "how it stands: python launch/status.py run",
    ]
