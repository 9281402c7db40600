"""Runs by name: where they lie, how one is found, how a new one gets its name."""

from __future__ import annotations

import difflib
import fcntl
import itertools
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from jobs.run import files, private
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.slurm.login import SlurmError

T = TypeVar("T")

CHECKOUT = Path(__file__).resolve().parents[2]

# Names become part of paths, Slurm's job names and --output patterns, and commands that people copy.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,99}")
RESERVED = {"prepare", "slurm"}


def runs_root() -> Path:
    """The directory of all runs: $BATON_RUNS, by default logs/runs in the checkout."""
    if chosen := os.environ.get("BATON_RUNS"):
        return Path(chosen).expanduser().absolute()
    return CHECKOUT / "logs" / "runs"


def prepare_root() -> Path:
    """The directory of prepare.py's runs: $BATON_RUNS/prepare, by default logs/prepare in the checkout."""
    return runs_root() / "prepare" if os.environ.get("BATON_RUNS") else CHECKOUT / "logs" / "prepare"


def all_runs(root: Path | None = None) -> list[Run]:
    """Every run directory below `root` (default: runs_root()), by name."""
    root = root or runs_root()
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [Run(root / name) for name in names if _may_be_run(root / name)]


def _may_be_run(path: Path) -> bool:
    """Whether a folder holds a run; True also if it cannot be looked into, which its reader will notice."""
    try:
        return stat.S_ISREG((path / files.REQUEST()).stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def find(name: str) -> Run:
    """The run of that name or path. Raises UserError, naming a sweep's runs or the closest names."""
    for path in (runs_root() / name, prepare_root() / name, Path(name).expanduser().absolute()):
        try:
            if (path / files.REQUEST()).is_file():
                return Run(path)
        except PermissionError:
            raise UserError(f"{path} cannot be read: it belongs to another user") from None
    from launch.observe import sweeps  # which looks for runs, too

    if elements := sweeps.members(name):
        of = f"{len(elements)} runs, {elements[0].name} … {elements[-1].name}"
        raise UserError(
            f"{name} is a sweep of {of}: name one of them (whole sweeps are for status.py, cancel.py, "
            "clean.py and report.py --compare)"
            if len(elements) > 1
            else f"{name} is a sweep of a single run: name {elements[0].name}"
        )
    if name and (folder := runs_root() / name).is_dir():
        raise UserError(f"{folder} has no {files.REQUEST()}, so it is not a run, or not any more")
    names = [run.name for run in all_runs() if NAME.fullmatch(run.name)]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`python launch/status.py` lists all"
    raise UserError(f"there is no run {name!r} in {runs_root()}: {hint}")


def typed(run: Run) -> str:
    """What a command is to be given to find the run: its name, or its path if no run or another one is found
    by that name, as with a run of another checkout."""
    for path in (runs_root() / run.name, prepare_root() / run.name):
        if os.path.isfile(path / files.REQUEST()):
            return run.name if path.samefile(run.path) else shlex.quote(str(run.path))
    return shlex.quote(str(run.path))


def check_name(name: str) -> None:
    """Raises UserError for a name that could go wrong in a path, as a job name or in a shell."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(
            f"--run {name!r} cannot be a run's name: use letters, digits and . _ + = @ - "
            f"(100 at most, a letter or digit first; not {' or '.join(sorted(RESERVED))})"
        )


def check_path(path: Path, what: str) -> None:
    """Raises UserError for a path that Slurm cannot carry in an --output pattern or a directive.

    Spaces, quotes, `;`, `$` and `%` are quoted where they are used; a line break would end a directive, and a
    backslash switches off Slurm's own patterns.
    """
    text = str(path)
    if "\\" in text or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UserError(f"{what} {text!r} has a backslash or a control character: Slurm cannot pass it on")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(
            f"{what} {text!r} has bytes that are not UTF-8, which no text file can hold: rename it"
        )


def check_root(root: Path) -> None:
    """Raises UserError if no run can lie below `root`."""
    check_path(root, "the place of the runs")
    if tags := [tag for tag in ("%j", "%t", "%A", "%a") if tag in str(root)]:
        raise UserError(f"the place of the runs {str(root)!r} has {tags[0]}, which submitit would replace")


def is_taken(name: str, root: Path | None = None) -> bool:
    return os.path.lexists((root or runs_root()) / name)


def free_name(stem: str, root: Path | None = None) -> str:
    """`stem-N` with the first free N; `stem`, such as a config's file name, is made valid as a run name."""
    stem = re.sub(r"[^A-Za-z0-9._+=@-]+", "-", stem).lstrip("._+=@-")[:80] or "run"
    root = root or runs_root()
    number = 1
    while is_taken(f"{stem}-{number}", root):
        number += 1
    return f"{stem}-{number}"


class Taken(UserError):
    """The name of a run is taken."""


ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
"""Signals that end a command: Ctrl-C, the end of its terminal (a lost connection), and kill."""


def named(given: str | None, free: Callable[[], str], work: Callable[[str], T]) -> T:
    """`work(given)`; without a given name, `work` of a free one, and of another if a concurrent launcher
    takes that first. Whatever ends the command is an interruption from here on, so that what was made until
    then, such as half of a sweep, goes again."""
    for one in ENDING:
        if signal.getsignal(one) is signal.SIG_DFL:
            signal.signal(one, signal.default_int_handler)
    while True:
        try:
            return work(given or free())
        except Taken:
            if given:
                raise


@contextmanager
def dated_folder(parent: Path, kept: bool) -> Iterator[Path]:
    """A new folder named by date, which no concurrent command gets; removed afterwards unless it is to be
    `kept` and the body succeeds."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{parent} is neither a folder nor a link to one: remove it, or give --out") from None
    for number in itertools.count(1):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            break
    done = False
    try:
        yield path
        done = kept
    finally:
        if not done:
            path.rmdir()
            with suppress(OSError):  # it has other folders
                parent.rmdir()


@contextmanager
def new_run(name: str, fill: Callable[[Run], None], root: Path | None = None) -> Iterator[Run]:
    """Makes the directory of a new run, and deletes it if the body (which submits it) raises.

    `fill` writes its content into a temporary directory beside it (a Run of another name, with an empty
    `job/`), which is then renamed: nobody sees an incomplete run, and a launcher that is killed, as in a job
    that makes its own run, leaves the name free. The run is kept only if it is not known whether its
    submission arrived (SlurmError.unanswered): a job may need it.

    Raises Taken if the name is taken, even by a launcher that took it at this moment.
    """
    root = root or runs_root()
    run = Run(root / name)
    if is_taken(name, root):
        raise _taken(run)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # No run's name has a comma. With the leading dot, no command takes it for a run.
        unfinished = Run(tempfile.mkdtemp(prefix=f".{name},", dir=root))
    except OSError as error:
        raise UserError(
            f"cannot make {run.path}: {error.strerror}; set BATON_RUNS to a folder of your own"
        ) from None
    try:
        with suppress(PermissionError):  # a file system without modes
            unfinished.path.chmod(0o777 & ~_umask())
        unfinished.job.mkdir()
        fill(unfinished)
        os.rename(unfinished.path, run.path)
    except BaseException as error:
        shutil.rmtree(unfinished.path, ignore_errors=True)
        if isinstance(error, OSError) and is_taken(name, root):
            raise _taken(run) from None
        raise
    for left in root.glob(f".{name},*"):  # of launchers that were killed, or came too late
        shutil.rmtree(left, ignore_errors=True)
    try:
        yield run
    except BaseException as error:
        if not (isinstance(error, SlurmError) and error.unanswered):
            shutil.rmtree(run.path)
        raise


SUBMITTING = "another command, which submits a job of it"


@contextmanager
def turn(run: Run) -> Iterator[None]:
    """Lets only one command at a time submit jobs of a run: each writes the same scripts, which Slurm reads
    at submission, and first checks whether a job is alive."""
    with ExitStack() as stack:
        # Another user's run or a full disk, which the body will report; or a file system without locks.
        with suppress(OSError):
            run.job.mkdir(exist_ok=True)  # it may have been deleted
            # Private: whoever can open a file can lock it, and keep all others waiting.
            path = run.job / files.TURN()
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, file)
            if not private.try_lock(file, SUBMITTING):
                with suppress(OSError):  # the terminal may be gone: it waits all the same
                    print(f"{run.name}: waiting for {private.holder(path)}", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
                private.try_lock(file, SUBMITTING)
        yield


def _taken(run: Run) -> Taken:
    return Taken(
        f"the run name {run.name!r} is taken ({run.path}): choose another, or go on with it: "
        f"--resume {run.name}"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
