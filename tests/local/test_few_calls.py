"""How often a rank asks a shared file system for names, from images and packed data: counted by strace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.prepare.packed import convert
from jobs.run import image, staged
from jobs.run.directory import Request, Run
from jobs.run.exit_codes import FINISHED, RESUME
from launch.submit import code_image, snapshot
from tests import imaging
from tests.imaging import NOT_MOUNTED, ROOT, pack
from tests.stages import wait_until

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(STRACE is None, reason="no strace here (sh env/test-tools.sh)")

OF_FILES = "%file,%fstat,getdents64"
CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)")
SETTINGS = {
    "custom_imports": {"imports": ["tests.marks", "tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Marks"}, {"type": "Interrupt"}],
    "train_cfg.max_epochs": 4,
    "train_cfg.val_interval": 10,
    "train_dataloader.num_workers": 1,
    "default_hooks.checkpoint.interval": 10,
    "default_hooks.logger.interval": 1,
    "visualizer.vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
    "baton.save_seconds": 0,
}


def lookups(trace: list[str], place: Path) -> list[str]:
    """The calls of a trace (`strace -f -y`) that ask for a file's name or status below `place`."""
    found, folders = [], {}
    for line in trace:
        call = CALL.match(line)
        if call is None or call["name"] == "getcwd":
            continue
        base = re.match(r"(?:AT_FDCWD|\d+)<([^>]*)>", call["rest"])
        if base and call["rest"].startswith("AT_FDCWD"):
            folders[call["pid"]] = base[1]
        name = re.search(r'"([^"]*)"', call["rest"])
        if name is None and base is None:
            continue
        folder = base[1] if base else folders.get(call["pid"], "/")
        path = os.path.normpath(os.path.join(folder, name[1] if name else ""))
        if Path(path).is_relative_to(place):
            found.append(line)
    return found


@pytest.fixture(scope="module")
def shared(voc_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with all that a cluster has on its shared file system: a Python, an environment made from it,
    and packed data."""
    place = tmp_path_factory.mktemp("shared")
    base, python = place / "python", f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = Path(sysconfig.get_path("stdlib"))
    copied = base / library.relative_to(sys.base_prefix)
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*", "idlelib")
    shutil.copytree(library, copied, symlinks=True, ignore=left_out)
    (base / "bin").mkdir()
    shutil.copy2(os.path.realpath(sys.executable), base / "bin" / python)
    subprocess.run([base / "bin" / python, "-m", "venv", "--without-pip", place / "env"], check=True)
    (site,) = place.glob("env/lib/python*/site-packages")
    (mine,) = Path(sys.prefix).glob("lib/python*/site-packages")
    for package in mine.iterdir():
        (site / package.name).symlink_to(package)
    shutil.copytree(voc_small / "VOCdevkit", place / "data" / "VOCdevkit")
    convert.pack(place / "data", "VOCdevkit")
    return place


def make_run(place: Path, stage: Path) -> Run:
    run = Run(place / "runs" / stage.name)
    run.job.mkdir(parents=True)
    snapshot.take(run.code, place / "data")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", run.code / "tests", ignore=ignored)
    request = Request(
        name=run.name, config="tests/support/configs/tiny.py", data_root=str(place / "data"),
        created="2026-01-01T00:00:00Z", set=SETTINGS,
    )  # fmt: skip
    request.cluster.stage = str(stage)
    run.write_request(request)
    code_image.write(run)
    return run


def traced(run: Run, place: Path, stage: Path, trace: Path, **more: str) -> tuple[int, list[str]]:
    """One start of the run's one rank, as its batch script makes it: (exit code, calls)."""
    assert STRACE is not None
    # It stops at these calls only: one that stopped a squashfuse at each would wait for files of its mount.
    strace = [STRACE, "-f", "--seccomp-bpf", "-qq", "-y", "-s", "4096", "-o", str(trace)]
    strace += ["-e", f"trace={OF_FILES}"]
    program = [image.interpreter(place / "env"), "-S", "-c", image.START, str(stage)]
    # An import of cv2 in this process has left the one that names the working directory, too; a user has
    # neither, and writing what was compiled makes calls.
    left_out = ("LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [*strace, *program, "-u", "-m", "jobs.train", str(run.path)],
        cwd=run.code, env={**environment, "OMP_NUM_THREADS": "1", **more},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
    )  # fmt: skip
    assert "on from" not in done.stdout, done.stdout[-3000:]
    assert done.returncode in (FINISHED, RESUME), done.stdout[-3000:]
    return done.returncode, trace.read_text(errors="replace").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [staged.ENVIRONMENT, staged.SQUASHED])
def test_a_start_makes_500_and_an_epoch_10(kind: str, shared: Path, tmp_path: Path) -> None:
    """Also one that unpacks the images, or mounts them."""
    if kind == staged.SQUASHED and NOT_MOUNTED:
        pytest.skip(NOT_MOUNTED)
    pack(shared / "env", *["--squashfs"] * (kind == staged.SQUASHED))
    stage = tmp_path / f"local{kind}"
    stage.mkdir()
    run = make_run(shared, stage)
    pause = tmp_path / "pause"
    plan = json.dumps({"at": "step", "step": 2, "signal": "SIGUSR2", "pause": str(pause)})

    def copies() -> set[str]:
        return {path.suffix for path in imaging.copies(stage)}

    def preempt() -> None:
        wait_until(pause.exists, 250)
        wait_until(lambda: copies() - {staged.MOUNT} == {kind, ".code", ".zip"}, 250)
        pause.unlink()

    with ThreadPoolExecutor() as pool:
        preempted = pool.submit(preempt)
        code, trace = traced(run, shared, stage, tmp_path / "first", INTERRUPT=plan)
        preempted.result()
    assert code == RESUME
    calls = lookups(trace[: epochs(trace)[0]], shared)
    assert 50 < len(calls) <= 500, "\n".join(calls)

    code, trace = traced(run, shared, stage, tmp_path / "second")
    assert code == FINISHED
    began = epochs(trace)
    assert sorted(began) == [0, 1, 2, 3]
    start, epoch = trace[: began[0]], trace[began[1] : began[2]]
    assert any(f"/{stage.name}/" in line and "torch/__init__.py" in line for line in start)
    calls = lookups(start, shared)
    assert 50 < len(calls) <= 500, "\n".join(calls)
    calls = lookups(epoch, shared)
    assert 0 < len(calls) <= 10, "\n".join(calls)


def epochs(trace: list[str]) -> dict[int, int]:
    """In which line of a trace each epoch begins."""
    marks = [(re.search(r"/mark/epoch-(\d)/", line), number) for number, line in enumerate(trace)]
    return {int(mark[1]): number for mark, number in marks if mark}


def test_lookups_are_counted_where_they_are() -> None:
    trace = [
        '1 openat(AT_FDCWD</a/b>, "c", O_RDONLY) = 3</a/b/c>',
        '1 readlink("c", 0x1, 4096) = -1 EINVAL (Invalid argument)',
        '1 newfstatat(3</a/b/c>, "", {st_mode=S_IFREG|0644, ...}, AT_EMPTY_PATH) = 0',
        '1 openat(AT_FDCWD</a/b>, "../bc/d", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '1 openat(AT_FDCWD</x>, "/a/b/../e", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '1 getcwd("/a/b", 4096) = 5',
        "1 getdents64(4</a/b/f>, 0x1 /* 2 entries */, 32768) = 48",
    ]
    assert lookups(trace, Path("/a/b")) == [*trace[:3], trace[6]]
