"""The launchers on a machine without Slurm: prepare, train and evaluate as a user types them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run import events
from tests.stages import wait_until
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config", "tests/support/configs/tiny.py", "--gpus", "1")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    return kept | {"BATON_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, f"launch/{script}.py", *map(str, arguments), "--cluster", "local"]


def launch(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*map(str, arguments)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def names(run: Path) -> list[str]:
    return [event["event"] for event in events.iterate(run / "events.jsonl")]


def test_from_archives_to_figures_and_pictures(
    environment: dict[str, str], tmp_path: Path, voc_archives: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "runs" / "mine"
    prepared = launch(environment, "prepare", "--data-root", data, "--archives", voc_archives)
    assert prepared.returncode == 0, prepared.stderr
    # Submitted while the preparation may still be on its way: the chain waits for it.
    arguments = ["--data-root", data, "--run", "mine", "--wait", "--seed", 3, "--gpus", 2]
    trained = launch(environment, "train", *TINY[:2], *arguments)
    assert trained.returncode == 0, trained.stderr + trained.stdout
    assert "2 CPU processes over gloo" in trained.stderr
    assert "mIoU" in trained.stdout
    assert "aeroplane " in trained.stdout
    assert f"python launch/logs.py {run.name} -f" in trained.stdout
    assert [name for name in names(run) if name in ("finished", "evaluated")] == ["finished", "evaluated"]
    started = next(event for event in events.iterate(run / "events.jsonl") if event["event"] == "started")
    assert started["world_size"] == 2

    again = launch(environment, "train", "--resume", "mine")
    assert again.returncode == 2
    assert "is finished: python launch/evaluate.py mine" in again.stderr

    before = len(names(run))
    arguments = ["--checkpoint", "last", "--gpus", 2, "--pictures", "all", "--wait"]
    evaluated = launch(environment, "evaluate", "mine", *arguments)
    assert evaluated.returncode == 0, evaluated.stderr + evaluated.stdout
    assert names(run)[before:] == ["submitted", "evaluated"]
    figures = Path(events.read(run / "events.jsonl")[-1]["path"])
    assert json.loads((figures / "metrics.json").read_text())["processes"] == 2
    assert len(list((figures / "pictures").glob("*.jpg"))) == 8

    image = next((data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    inferred = launch(environment, "infer", "mine", image, "--out", tmp_path / "masks", "--wait")
    assert inferred.returncode == 0, inferred.stderr + inferred.stdout
    assert list((tmp_path / "masks").glob("*.png"))

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>")
    inferred = launch(environment, "infer", "mine", image, broken, "--out", tmp_path / "some", "--wait")
    assert inferred.returncode == 2
    (failed,) = [event for event in events.read(run / "events.jsonl") if event["event"] == "failed"]
    assert f"{broken} cannot be read as an image" in failed["reason"]
    assert f"{broken} cannot be read as an image" in inferred.stdout
    assert list((tmp_path / "some").rglob("*.png"))


def test_the_run_survives_its_launcher_and_edits_of_the_working_tree(
    environment: dict[str, str], tmp_path: Path, voc_small: Path
) -> None:
    """Ctrl-C while waiting and the end of the terminal leave the run alone; so does an edit of its config."""
    home = tmp_path / "home"
    home.mkdir()
    config = home / "mine.py"
    config.write_text((ROOT / "tests/support/configs/tiny.py").read_text())
    run = tmp_path / "runs" / "kept"
    arguments = ["--config", config, "--data-root", voc_small, "--run", "kept", "--no-submit"]
    made = launch(environment, "train", *arguments)
    assert made.returncode == 0, made.stderr
    config.write_text("raise SystemExit('the working tree was read')\n")
    # Every process of the run says where it has the jobs from.
    imported = tmp_path / "imported"
    (run / "code" / "jobs" / "__init__.py").write_text(
        f"import sys\nopen({str(imported)!r}, 'a').write(f'{{__file__}} {{sys.orig_argv[-2:]}}\\n')\n"
    )
    terminal, end = pty.openpty()
    launcher = subprocess.Popen(
        command("train", "--resume", "kept", "--no-evaluation", "--wait"),
        cwd=ROOT,
        env=environment,
        stdin=end,
        stdout=end,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background ignores Ctrl-C, and so would everything started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(end)
    wait_until(lambda: (run / "job" / "local.json").exists(), 180)
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(timeout=60) == 130
    assert launcher.stderr is not None
    assert "goes on without this command" in launcher.stderr.read()
    os.close(terminal)

    busy = launch(environment, "train", "--resume", "kept")
    assert busy.returncode == 2
    assert "is already queued or running as job local-" in busy.stderr
    wait_until(lambda: {"finished", "stopped"} & set(names(run)), 180)
    assert "finished" in names(run)
    lines = imported.read_text().splitlines()
    assert all(line.startswith(f"{run}/code/jobs/") for line in lines)
    for module in ("submitit.core._submit", "jobs.train", "jobs.mmseg.rank"):
        assert any(f"'{module}'" in line for line in lines), (module, lines)


def test_a_training_that_cannot_start_ends_the_waiting_with_its_error(
    environment: dict[str, str], voc_small: Path
) -> None:
    arguments = ["--data-root", voc_small, "--set", "model.backbone.type=NoSuchNet", "--wait", "--json"]
    done = launch(environment, "train", *TINY, *arguments)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "NoSuchNet" in done.stderr
    run = Path(json.loads(done.stdout)["path"])
    assert "evaluated" not in names(run)


def test_dry_runs_of_single_jobs_show_their_command_and_do_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run = tiny.make_run(tmp_path / "runs" / "x", tmp_path)
    (run.checkpoints / "epoch_1.pth.json").parent.mkdir()
    (run.checkpoints / "epoch_1.pth.json").touch()
    before = sorted(tmp_path.rglob("*"))
    expected = {
        ("evaluate", "x", "--gpus", "2", "--pictures", "all"): (
            "# evaluate, 2 task(s)",
            f"-m jobs.evaluate {run.path} --checkpoint best --again --pictures all",
        ),
        ("infer", "x", "README.md", "--out", tmp_path / "out"): (
            "# infer, 1 task(s)",
            f"-m jobs.infer {run.path} --out {tmp_path}/out --checkpoint best -- {ROOT}/README.md",
        ),
        ("prepare", "--data-root", tmp_path / "d", "--no-weights"): (
            "# prepare, 1 task(s)",
            f"-m jobs.prepare --data-root {tmp_path}/d --no-weights --run {tmp_path}/runs/prepare/prepare-1",
        ),
    }
    for arguments, shown in expected.items():
        done = launch(environment, *arguments, "--dry-run")
        assert done.returncode == 0, done.stderr
        title, command = done.stdout.splitlines()
        assert title == shown[0]
        assert command.endswith(shown[1])
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_shows_the_commands_and_makes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    done = launch(environment, "train", *TINY, "--run", "x", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"-m jobs.train {tmp_path}/runs/x" in done.stdout
    assert f"-m jobs.evaluate {tmp_path}/runs/x --checkpoint best" in done.stdout
    assert not (tmp_path / "runs").exists()
