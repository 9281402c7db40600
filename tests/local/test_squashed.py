"""An environment as a squashfs image, copied to the node as one file and mounted there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.run import image, staged
from jobs.run.errors import UserError
from jobs.supervise import mounting, staging
from tests.imaging import NEEDED, NOT_MOUNTED, ROOT, copies, make, pack, start
from tests.stages import wait_until

pytestmark = pytest.mark.skipif(bool(NOT_MOUNTED), reason=NOT_MOUNTED)

HELD = "import sys; print(sys.prefix, sys.base_prefix, flush=True); input(); import extra; print(extra.VALUE)"
STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make(tmp_path_factory.mktemp("environments") / "own env")
    pack(path, "--squashfs")
    return path


def mounted(stage: Path) -> list[str]:
    """Where something is mounted below the stage."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(stage))]


def held(environment: Path, stage: Path, **more: str) -> tuple[subprocess.Popen[str], Path]:
    """A task that waits, and the folder that it runs from."""
    task = start(environment, stage, HELD, **more)
    assert task.stdout is not None
    task.stdout.readline()  # of the start
    return task, Path(task.stdout.readline().split()[0])


def let_go(task: subprocess.Popen[str]) -> None:
    out, error = task.communicate("\n", timeout=100)
    assert (task.returncode, out, error) == (0, "from here\n", "")


def wait_for_no_mount(stage: Path) -> None:
    wait_until(lambda: [path.suffix for path in copies(stage)] == [staged.SQUASHED], 60)
    assert mounted(stage) == []


def test_the_ranks_of_a_step_share_a_mount_that_goes_with_the_last(environment: Path, tmp_path: Path) -> None:
    ranks = [start(environment, "$OWN/stage", HELD, OWN=str(tmp_path), **STEP) for _ in range(3)]
    places = set()
    for rank in ranks:
        assert rank.stdout is not None
        rank.stdout.readline()
        places.add(rank.stdout.readline())
    stage = tmp_path / "stage"
    (point,) = mounted(stage)
    (line,) = places
    folder, base = line.split()
    assert point == f"{folder}/{staged.MOUNTED}"
    system = os.path.realpath(sys.base_prefix).startswith("/usr")
    assert os.path.normpath(base) == (sys.base_prefix if system else f"{folder}/{image.OWN_PYTHON}")
    for rank in ranks[1:]:
        let_go(rank)
    assert mounted(stage) == [point]
    let_go(ranks[0])
    wait_for_no_mount(stage)


def test_jobs_that_meet_on_a_node_have_mounts_of_their_own_and_one_copy(
    environment: Path, tmp_path: Path
) -> None:
    """Slurm ends all of a step with it, squashfuse too: nobody else may live from it."""
    first, one = held(environment, tmp_path, **STEP)
    second, other = held(environment, tmp_path, **STEP | {"SLURM_JOB_ID": "2"})
    third, alone = held(environment, tmp_path, SLURM_STEP_ID="")
    assert len({one, other, alone}) == 3
    assert len(mounted(tmp_path)) == 3
    assert [path.suffix for path in copies(tmp_path)].count(staged.SQUASHED) == 1
    let_go(first)
    wait_until(lambda: not one.exists(), 60)
    let_go(second)
    let_go(third)
    wait_for_no_mount(tmp_path)


def test_what_slurm_kills_leaves_a_dead_mount_that_the_next_start_clears(
    environment: Path, tmp_path: Path
) -> None:
    task, folder = held(environment, tmp_path, **STEP)
    for process in of_mount(folder):
        os.kill(process, signal.SIGKILL)
    task.kill()
    task.communicate()

    def dead() -> bool:
        try:
            os.stat(folder / staged.MOUNTED)
        except OSError as error:
            return error.errno == errno.ENOTCONN
        return False

    wait_until(dead, 60)
    inside = os.open(staged.folder(tmp_path), os.O_RDONLY)
    staging.make_room(inside, 0, tmp_path)  # for a dataset, say
    os.close(inside)
    again, same = held(environment, tmp_path, **STEP)
    assert same == folder
    assert len(mounted(tmp_path)) == 1
    left, _ = held(environment, tmp_path, **STEP | {"SLURM_RESTART_COUNT": "1"})
    let_go(again)
    let_go(left)
    wait_for_no_mount(tmp_path)


def of_mount(folder: Path) -> list[int]:
    """The processes behind a mount: its squashfuse, and the one that waits to unmount it, which may be about
    to become that."""
    found: list[int] = []

    def both() -> bool:
        found[:] = processes_with(folder)
        return len(found) == 2

    wait_until(both, 60)
    return found


def processes_with(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        ours = any(word.startswith(str(folder)) for word in words)
        if ours and words[0] in (mounting.PROGRAM, "flock"):
            found.append(int(path.parent.name))
    return found


def test_signals_to_all_of_a_step_end_no_mount(environment: Path, tmp_path: Path) -> None:
    task, folder = held(environment, tmp_path)
    for process in of_mount(folder):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            os.kill(process, number)
    let_go(task)
    wait_for_no_mount(tmp_path)


def test_it_is_kept_while_it_is_mounted_and_goes_when_its_room_is_needed(
    environment: Path, tmp_path: Path
) -> None:
    task, folder = held(environment, tmp_path)
    before = copies(tmp_path)
    for path in before:
        os.utime(path, (0, 0))  # old
    inside = os.open(staged.folder(tmp_path), os.O_RDONLY)
    staging.make_room(inside, 0, tmp_path)
    assert copies(tmp_path) == before
    let_go(task)
    wait_until(lambda: not folder.exists(), 60)
    wait_until(lambda: list(staging._unused(inside)), 60)  # its process lives a little longer than its mount
    ((_, size, name),) = staging._unused(inside)
    assert (name, size) == (copies(tmp_path)[0].name, os.stat(f"{environment}.sqfs").st_size)
    staging.make_room(inside, 0, tmp_path)
    assert copies(tmp_path) == []
    os.close(inside)


def test_a_mount_that_only_others_see_is_left_to_them(environment: Path, tmp_path: Path) -> None:
    """Of another rank's container."""
    task, folder = held(environment, tmp_path, **STEP)
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'umount -l "$0"; exec "$@"']
    mounted, python = str(folder / staged.MOUNTED), image.interpreter(environment)
    command = [*private, mounted, python, "-S", "-c", image.START]
    if subprocess.run([*private[:4], "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    say = ["-c", "import sys, extra; print(sys.prefix)"]
    other = subprocess.run(
        [*command, tmp_path, *say],
        cwd=ROOT,
        env=os.environ | STEP,
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stderr == ""
    assert other.stdout.splitlines()[-1] != str(folder)
    assert other.stdout.splitlines()[-1].endswith(staged.MOUNT)
    let_go(task)


TROUBLES = {
    "nothing": ["there is no squashfuse", "unsquashfs: not found", True],
    "no mount": ["there is no squashfuse", "unpacked instead", False],
    "not allowed": ["fusermount3: mount failed: Operation not permitted", "unpacked instead", False],
    "damaged": ["cannot be mounted", "could not be unpacked", True],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_where_it_cannot_be_mounted_it_is_unpacked(trouble: str, environment: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    left_out = {"nothing": ["squashfuse", "unsquashfs"], "no mount": ["squashfuse"]}.get(trouble, [])
    for name in {"sh", "tar", "gzip", "sync", "setsid", "flock", "rm", "fusermount3", *NEEDED} - {*left_out}:
        (programs / name).symlink_to(shutil.which(name) or "")
    if trouble == "not allowed":
        (programs / "squashfuse").unlink()
        (programs / "squashfuse").write_text(f"#!/bin/sh\necho {TROUBLES[trouble][0]} >&2; exit 1\n")
        (programs / "squashfuse").chmod(0o755)
    made = Path(f"{environment}.sqfs")
    whole = made.read_bytes()
    if trouble == "damaged":
        made.write_bytes(whole[: len(whole) // 2])
    stage = tmp_path / "stage"
    try:
        task = start(environment, stage, PATH=str(programs))
        out, error = task.communicate(timeout=100)
        assert task.returncode == 0
        (line,) = error.splitlines()
        first, second, shared = TROUBLES[trouble]
        assert line.startswith(f"environment: {made} cannot be mounted on ")
        assert str(first) in line
        assert str(second) in line
        if shared:
            assert out == f"{environment} from here an argument\n"
            assert line.endswith(f"; going on with {image.interpreter(environment)}")
            assert not [path for path in copies(stage) if path.suffix != staged.SQUASHED]
            return
        (copy,) = (path for path in copies(stage) if path.suffix == staged.ENVIRONMENT)
        assert out.splitlines()[-1] == f"{copy} from here an argument"
        again = start(environment, stage, PATH=str(programs)).communicate(timeout=100)
        assert again[0].splitlines()[-1] == out.splitlines()[-1]
        assert again[1] == ""
    finally:
        made.write_bytes(whole)
    assert mounted(tmp_path) == []


def test_a_copy_that_is_not_like_its_image_is_refused(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = staging.copy

    def on_a_bad_disk(
        source: int, inside: int, name: str, path: str, verify: Callable[[int], None], read: Any
    ) -> None:
        def damaged(fd: int) -> None:
            os.pwrite(fd, b"damage", 1000)
            verify(fd)

        copy(source, inside, name, path, damaged, read)

    monkeypatch.setattr(staging, "copy", on_a_bad_disk)
    with (
        open(f"{environment}.sqfs", "rb") as file,
        staging.closing(staging.open_folder(tmp_path)) as inside,
        pytest.raises(UserError, match="differs from it: this node's disk is faulty"),
    ):
        mounting._copy(file.name, file.fileno(), inside, str(tmp_path))
    assert copies(tmp_path) == []


@pytest.mark.parametrize("own", [True, False])
def test_the_systems_python_and_one_that_needs_no_venv_are_mounted_too(own: bool, tmp_path: Path) -> None:
    """A conda environment, say, whose `bin/python` is a file; and one made from /usr/bin/python3."""
    environment = tmp_path / "an env"
    if own:
        library = Path(os.__file__).parent
        shutil.copytree(
            library, environment / "lib" / library.name, ignore=lambda *_: LEFT_OUT, symlinks=True
        )
        (environment / "bin").mkdir()
        shutil.copy2(os.path.realpath(sys.executable), environment / "bin" / "python3")
        (environment / "bin" / "python").symlink_to("python3")
    else:
        system = Path("/usr/bin/python3")
        if not system.exists():
            pytest.skip("this system has no Python")
        subprocess.run([system, "-m", "venv", "--without-pip", environment], check=True)
    pack(environment, "--squashfs")
    say = "import sys, json; print(sys.prefix, sys.base_prefix, json.__file__)"
    out, error = start(environment, tmp_path / "stage", say).communicate(timeout=100)
    folder, base, module = out.splitlines()[-1].split()
    assert error == ""
    assert Path(folder).is_relative_to(staged.folder(tmp_path / "stage"))
    assert base == (folder if own else "/usr")
    assert module.startswith(f"{base}/lib")


LEFT_OUT = ["site-packages", "test", "idlelib", "ensurepip", "__pycache__", "tkinter", "lib2to3"]


def test_one_image_of_an_environment_is_kept(tmp_path: Path) -> None:
    path = make(tmp_path / "own")
    assert pack(path, "--squashfs") == tmp_path / "own.sqfs"
    os.utime(tmp_path / "own.sqfs", (time.time() - 1e6,) * 2)
    with pytest.raises(UserError, match=r"own\.sqfs was made: env/pack\.sh --squashfs .*own packs it again"):
        image.check(Path(image.interpreter(path)))
    assert pack(path) == tmp_path / "own.tar"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "own.tar"]
    pack(path, "--squashfs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "own.sqfs"]
