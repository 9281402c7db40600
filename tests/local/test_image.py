"""An environment as one file, unpacked on the node's own disk and run from there."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from jobs.run import image, staged
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from jobs.run.exit_codes import RESUME
from jobs.supervise import staging
from jobs.train.__main__ import worker_command
from launch.submit import code_image, snapshot
from tests.imaging import ROOT, SAY, copies, make, pack, start
from tests.stages import wait_until


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make(tmp_path_factory.mktemp("environments") / "own env")
    pack(path)
    return path


def test_the_node_unpacks_it_once_and_all_run_from_there(environment: Path, tmp_path: Path) -> None:
    ranks = [start(environment, "$OWN/stage", OWN=str(tmp_path)) for _ in range(3)]
    said = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 3, said
    (copy,) = copies(tmp_path / "stage")
    for out, err in said:
        assert out.splitlines()[-1] == f"{copy} from here an argument"
        assert err == ""
    before = copy.stat().st_ino, (copy / "pyvenv.cfg").stat().st_ctime_ns
    again = start(environment, tmp_path / "stage")
    assert again.communicate(timeout=100)[0].splitlines()[-1].startswith(str(copy))
    assert (copy.stat().st_ino, (copy / "pyvenv.cfg").stat().st_ctime_ns) == before


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
def test_nothing_is_looked_up_in_the_shared_environment(environment: Path, tmp_path: Path) -> None:
    """From the moment in which the copy's interpreter runs."""
    start(environment, tmp_path).communicate(timeout=100)
    (copy,) = copies(tmp_path)
    trace = tmp_path / "trace"
    command = [image.interpreter(environment), "-S", "-c", image.START, str(tmp_path), "-c", SAY]
    strace = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", str(trace)]
    out = subprocess.run([*strace, *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == f"{copy} from here"
    calls = [line for line in trace.read_text().splitlines() if '"' in line]
    (begun,) = (number for number, line in enumerate(calls) if f'execve("{copy}/bin/python"' in line)
    assert any(f'"{environment}/' in line for line in calls[:begun])
    assert [line for line in calls[begun:] if f'"{environment}' in line] == []
    assert any(f'"{copy}/lib' in line and "extra" in line for line in calls[begun:])


def test_a_new_image_is_another_copy(environment: Path, tmp_path: Path) -> None:
    start(environment, tmp_path).communicate(timeout=100)
    (first,) = copies(tmp_path)
    os.utime(f"{environment}.tar")
    start(environment, tmp_path).communicate(timeout=100)
    assert len(copies(tmp_path)) == 2
    assert first in copies(tmp_path)


@pytest.mark.parametrize("trouble", ["variable", "folder", "damaged", "empty", "image"])
def test_where_it_cannot_it_says_so_and_runs_from_the_shared_one(
    trouble: str, environment: Path, tmp_path: Path
) -> None:
    made = Path(f"{environment}.tar")
    content = made.read_bytes()
    stage = {"variable": "$NO_SUCH_VARIABLE", "folder": str(tmp_path / "no" / "such")}.get(
        trouble, str(tmp_path)
    )
    try:
        if trouble == "damaged":
            made.write_bytes(content[: len(content) // 2])
        elif trouble == "empty":
            (tmp_path / "nothing").mkdir()
            subprocess.run(["tar", "-cf", made, "-C", tmp_path / "nothing", "."], check=True)
        elif trouble == "image":
            made.unlink()
        out, err = (process := start(environment, stage)).communicate(timeout=100)
    finally:
        made.write_bytes(content)
    assert process.returncode == 0
    assert out == f"{environment} from here an argument\n"
    (line,) = err.splitlines()
    assert line.startswith("environment: ")
    assert line.endswith(f"; going on with {image.interpreter(environment)}")
    if trouble in ("damaged", "empty"):
        assert copies(tmp_path) == []


def test_it_is_kept_while_it_is_used_and_goes_when_its_room_is_needed(
    environment: Path, tmp_path: Path
) -> None:
    used = subprocess.Popen(
        [image.interpreter(environment), "-S", "-c", image.START, str(tmp_path), "-c", "print(input())"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert used.stdout is not None
    used.stdout.readline()  # where it is
    (copy,) = copies(tmp_path)
    os.utime(copy, (0, 0))  # old
    inside = os.open(staged.folder(tmp_path), os.O_RDONLY)
    staging.make_room(inside, 0, tmp_path)
    assert copies(tmp_path) == [copy]
    assert used.communicate("end\n", timeout=100)[0] == "end\n"
    ((_, size, name),) = staging._unused(inside)
    assert (name, size) == (copy.name, Path(f"{environment}.tar").stat().st_size)
    staging.make_room(inside, 0, tmp_path)
    assert copies(tmp_path) == []
    os.close(inside)


HEAR = """
import signal
from jobs.supervise import processes
heard = []
processes.wake_on_signals(heard.append, signal.SIGUSR2, signal.SIGTERM)
print(*map(int, heard))
"""


@pytest.mark.parametrize("training", [True, False])
def test_a_signal_is_heard_although_another_unpacks(
    training: bool, environment: Path, tmp_path: Path
) -> None:
    """By the training's supervisor, when its handlers stand; other tasks leave at once."""
    folder = staged.folder(tmp_path)
    folder.mkdir(mode=0o700)
    task = ["-c", HEAR, "jobs.train"] if training else ["-c", "print('ran')"]
    with (folder / "lock-image").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ignoring = ["sh", "-c", 'trap "" USR2 TERM; exec "$@"', "task", image.interpreter(environment)]
        command = [*ignoring, "-S", "-c", image.START, str(tmp_path), *task]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

        def listens() -> bool:
            caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
            return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1)

        wait_until(listens)
        process.send_signal(signal.SIGUSR2)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == (0 if training else RESUME)
    assert out.splitlines()[1:] == (["12"] if training else [])


def test_what_is_no_whole_copy_is_removed(environment: Path, tmp_path: Path) -> None:
    left = staged.folder(tmp_path) / "0123.env.part"
    (left / "lib").mkdir(parents=True)
    left.parent.chmod(0o700)
    start(environment, tmp_path).communicate(timeout=100)
    assert not left.exists()


def test_an_image_that_is_older_than_its_environment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own"
    venv.create(path, symlinks=True)
    python = Path(image.interpreter(path))
    with pytest.raises(UserError, match=r"own\.tar does not exist: env/pack\.sh .*own makes it"):
        image.check(python)
    made = pack(path)
    image.check(python)
    os.utime(made, (1, 1))
    with pytest.raises(UserError, match=r"has changed since .*own\.tar was made"):
        image.check(python)


@pytest.mark.parametrize(
    ("arguments", "says"), [(["a", "b"], "one environment"), (["/no/such"], "there is no"), (["--x"], "--x")]
)
def test_what_cannot_be_packed_is_said(arguments: list[str], says: str) -> None:
    done = subprocess.run([ROOT / "env" / "pack.sh", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_squashfs_needs_its_tool(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    command: list[str | Path] = [ROOT / "env" / "pack.sh", "--squashfs", environment]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == "error: --squashfs needs mksquashfs (Debian: squashfs-tools)\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with code of its own, packed."""
    run = Run(tmp_path / "a run")
    run.code.mkdir(parents=True)
    (run.code / "jobs").symlink_to(ROOT / "jobs")
    (run.code / "mine.py").write_text("")
    code_image.write(run)
    return run


def start_in(run: Run, environment: Path, stage: Path) -> tuple[str, str]:
    python, say = image.interpreter(environment), "import mine, os; print(os.getcwd(), mine.__file__)"
    done = subprocess.run(
        [python, "-S", "-c", image.START, str(stage), "-c", say],
        cwd=run.code, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1], done.stderr


def test_the_code_of_a_run_is_unpacked_too(run: Run, environment: Path, tmp_path: Path) -> None:
    stage = tmp_path / "local"
    out, err = start_in(run, environment, stage)
    (copy,) = (path for path in copies(stage) if path.suffix == staged.CODE)
    assert (out, err) == (f"{copy} {copy}/mine.py", "")
    assert start_in(run, environment, stage) == (out, "")
    before = (run.path / image.CODE).stat().st_ino
    (run.code / "__pycache__").mkdir()
    code_image.write(run)
    assert (run.path / image.CODE).stat().st_ino == before  # the same code
    (run.code / "mine.py").write_text("NEW = 1\n")
    assert start_in(run, environment, stage) == (out, "")  # not submitted again
    code_image.write(run)
    assert start_in(run, environment, stage)[0] != out


def test_what_a_start_imports_is_compiled_when_it_is_submitted(environment: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "a run")
    run.path.mkdir()
    snapshot.take(run.code, tmp_path)
    code_image.write(run)
    command = [image.interpreter(environment), "-v", "-S", "-c", image.START, str(tmp_path), "-c", "1"]
    for _ in range(2):  # the second one finds the copies
        done = subprocess.run(command, cwd=run.code, capture_output=True, text=True, check=True)
    imported = re.findall(rf"^# code object from '?({run.code}/.*?)'?$", done.stderr, re.MULTILINE)
    assert len(imported) == len(image.IMPORTED)
    assert [path for path in imported if not path.endswith(".pyc")] == []


@pytest.mark.parametrize("trouble", ["cut off", "in the way"])
def test_what_cannot_be_kept_compiled_ends_no_start(trouble: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    snapshot.take(run.code, tmp_path)
    if trouble == "in the way":
        (run.code / "jobs/run/__pycache__").write_text("")
    child = os.fork()
    if not child:
        code = 1
        try:
            if trouble == "cut off":
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            code_image.compile_start(run.code)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    start = image.START.replace("main()", "print('here')")
    done = subprocess.run(
        [sys.executable, "-S", "-c", start], cwd=run.code, capture_output=True, text=True, check=True
    )
    assert done.stdout == "here\n"


def test_damaged_code_is_run_from_the_run(run: Run, environment: Path, tmp_path: Path) -> None:
    packed = run.path / image.CODE
    content = bytearray(packed.read_bytes())
    content[-6] ^= 1  # of the checksum
    packed.write_bytes(content)
    out, err = start_in(run, environment, tmp_path / "local")
    assert out == f"{run.code} {run.code}/mine.py"
    (line,) = err.splitlines()
    assert line.startswith(f"code: {packed} could not be unpacked on ")
    assert line.endswith(f"; going on with {run.code}")
    assert [path.suffix for path in copies(tmp_path / "local")] == [staged.ENVIRONMENT]


def test_a_program_of_ones_own_starts_in_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes there must stay."""
    worker = ["my.py", "--x"]
    run.write_request(Request(name="x", config="", data_root="/", created="", worker=worker))
    monkeypatch.setenv(image.VARIABLE, "/copy")
    assert worker_command(run) == ([sys.executable, "-u", "/copy/my.py", "--x"], run.code)
    monkeypatch.delenv(image.VARIABLE)
    assert worker_command(run)[0][2] == str(run.code / "my.py")


def test_a_python_that_is_not_the_systems_is_in_the_image(environment: Path, tmp_path: Path) -> None:
    """And is what the copy runs, wherever the copy lies."""
    say = "import sys; print(sys.base_prefix)"
    python = image.interpreter(environment)
    out = subprocess.run(
        [python, "-S", "-c", image.START, str(tmp_path), "-c", say],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()[-1]  # fmt: skip
    (copy,) = copies(tmp_path)
    system = os.path.realpath(sys.base_prefix).startswith("/usr")
    assert out == (sys.base_prefix if system else str(copy / image.OWN_PYTHON))
