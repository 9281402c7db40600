"""`python -m jobs.prepare`: the prepare job's command, for a batch script as for a terminal.

Exit codes: 0 the dataset is there and sound; 2 the user's mistake, or `--verify` found something wrong;
85 the job was asked to exit (preemption): the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from jobs.catalog import own_images as own_options
from jobs.catalog import prepare_options
from jobs.catalog.manifest import Manifest
from jobs.prepare import weights, workers
from jobs.prepare.progress import say
from jobs.run import events, exit_codes, failure, files, notify
from jobs.run.directory import Run
from jobs.run.errors import UNREACHABLE, UserError, run_command

SHOWN = 20
"""The most problems that --verify prints; the rest is counted."""


class Preempted(BaseException):
    """USR2 or TERM arrived. Everything on disk can be resumed at any moment, so exiting at once is right."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number).name


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m jobs.prepare",
        description="Downloads, converts and verifies a dataset. May be killed and started again.",
    )
    add = result.add_argument
    add(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="where datasets lie (default data)",
    )
    add(
        "--wait-only",
        nargs="?",
        type=int,
        const=0,
        metavar="PID",
        help="make nothing; wait until another process (that one, if it is about to begin) has made it",
    )
    add("--no-wait", action="store_true", help="end at once if another process prepares the same data root")
    add("--processes", type=int, metavar="N", help="worker processes (default: all cores of the job)")
    add("--run", type=Path, metavar="DIR", help="run directory that gets the events")
    prepare_options.add(result)
    result.set_defaults(dataset="voc")
    return result


def main() -> int:
    args = parser().parse_args()
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: at least 1")
    with notify.failures_of(Run(args.run) if args.run else None, "prepare"):
        return prepared(args)


def prepared(args: argparse.Namespace) -> int:
    """Prepares, and records the outcome. Returns the exit code."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, leave)
    begun, host = time.monotonic(), socket.gethostname()
    try:
        record(args.run, "started", hosts=[host], world_size=1, pid=os.getpid(), restart=restart())
        code = run(args, begun)
    except Preempted as preempted:
        with failure.unhindered():
            record(args.run, "signal", signal=preempted.signal, rank=0, host=host)
        say(f"{preempted.signal}: leaving; the same command goes on from here")
        return exit_codes.RESUME
    except OSError as error:
        explained = explain(error, args.data_root)
        with failure.unhindered():
            record(args.run, "failed", reason=str(explained or error), exit_code=2 if explained else 1)
        if explained:
            raise explained from None
        raise
    except Exception as error:
        code = exit_codes.USER_ERROR if isinstance(error, UserError) else exit_codes.FAILED
        with failure.unhindered():
            record(args.run, "failed", reason=" ".join(str(error).split()) or repr(error), exit_code=code)
        raise
    return code


def run(args: argparse.Namespace, begun: float) -> int:
    workers.no_inner_threads()
    # Imported here: numpy and PIL are not needed to answer --help.
    from jobs.catalog.recipes import VOC, check_name, folder_of
    from jobs.prepare import converters as others
    from jobs.prepare.packed import convert
    from jobs.prepare.voc import pipeline as prepare

    root = args.data_root / folder_of(args.dataset)
    if args.wait_only is not None:
        found = prepare.wait_only(args.data_root, root.name, args.wait_only)
        say(f"{root} is ready: {found.files:,} files")
        return 0
    if args.check:
        return check(args, begun)
    own = own_options.asked(args)
    there = own_options.is_there(args.data_root, args.dataset)
    if (args.verify or args.unpack) and not there:
        check_name(args.dataset, own_arguments=True)
    if args.verify:
        return look(args, root, begun)
    if args.unpack:
        found = convert.unpack(args.data_root, root.name, not args.no_wait)
        say(f"{root} is unpacked: {found.files:,} files")
        record_prepared(args, found, time.monotonic() - begun)
        return 0
    voc = args.dataset.lower() in VOC
    if own:
        from jobs.prepare.own.pipeline import prepare_own

        result = prepare_own(args)
    elif voc:
        result = prepare.prepare(
            args.data_root, args.archives, not args.no_checksum, not args.no_wait, args.processes, args.pack
        )
    elif there and args.pack and args.converter_args is None:  # nobody else knows how it was made
        found = convert.pack(args.data_root, root.name, not args.no_wait)
        result = prepare.Result(found, time.monotonic() - begun, True)
    else:
        result = others.prepare_other(others.order_of(args))
    if args.pack and not result.manifest.packed:
        convert.pack(args.data_root, root.name, not args.no_wait)
    lists = result.manifest.lists
    counts = ", ".join(f"{name} {values['count']:,}" for name, values in lists.items())
    say(f"{root} {'was ready' if result.done_before else 'is ready'}: {counts} ({result.seconds:.1f} s)")
    for reference in prepare_options.weights_of(args, "voc" if voc else ""):
        if file := weights.fetch(reference, args.data_root, args.archives):
            weights.check_content(file)
    record_prepared(args, result.manifest, result.seconds, **result.told)
    return 0


def record_prepared(args: argparse.Namespace, found: Manifest, seconds: float, **told: Any) -> None:
    record(
        args.run,
        "prepared",
        data_root=str(args.data_root),
        seconds=round(seconds, 3),
        images=images_of(found),
        files=found.files,
        **told,
    )


def images_of(found: Manifest) -> int | None:
    """The number of images in a dataset's lists; None for a converter's dataset, which counts files."""
    for names in (("trainaug", "val"), ("train", "val")):
        if all(name in found.lists for name in names):
            return sum(int(found.lists[name]["count"]) for name in names)
    return None


def check(args: argparse.Namespace, begun: float) -> int:
    """--check. Raises UserError, naming the first file that is wrong."""
    from jobs.prepare.own.check import check_config

    files = check_config(args)
    seconds = round(time.monotonic() - begun, 3)
    record(args.run, "verified", data_root=str(args.data_root), check="config", seconds=seconds, files=files)
    return 0


def look(args: argparse.Namespace, root: Path, begun: float) -> int:
    """--verify. Raises UserError, naming the first file that is wrong."""
    from jobs.catalog import manifest
    from jobs.prepare import verify

    problems = verify.deep(root, args.processes) if args.verify == "deep" else verify.quick(root)
    for problem in problems[:SHOWN]:
        print(problem, file=sys.stderr)
    if problems:
        more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
        # A preparation checks only names and sizes, and would find it ready.
        fix = "prepare it again" if verify.quick(root) else "move it away, and prepare it again"
        raise UserError(f"{root} is not sound: {problems[0]}{more}; {fix}")
    seconds = time.monotonic() - begun
    say(f"{root} is sound ({args.verify} check, {seconds:.1f} s)")
    found = manifest.read(root)
    record(
        args.run,
        "verified",
        data_root=str(args.data_root),
        check=args.verify,
        seconds=round(seconds, 3),
        files=found.files if found else None,
    )
    return 0


def leave(number: int, _: object) -> None:
    # Only the first signal counts; a second one must not interrupt the exit.
    for other in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Preempted(number)


def record(run_directory: Path | None, event: str, **fields: Any) -> None:
    if run_directory is not None:
        job = os.environ.get("BATON_JOB") or os.environ.get("SLURM_JOB_ID") or f"local-{os.getpid()}"
        events.append(run_directory / files.EVENTS(), event, stage="prepare", job=job, **fields)


def restart() -> int | None:
    count = os.environ.get("SLURM_RESTART_COUNT")
    return int(count) if count else None


def explain(error: OSError, data_root: Path) -> UserError | None:
    """The one-line error for what a file system can refuse; None for a bug of ours."""
    if error.errno == errno.ENOENT and not os.path.exists(data_root):
        return UserError(f"{data_root} no longer exists: somebody has removed it")
    where = error.filename or "the data root"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left at {where} (bytes, inodes or quota): make room and start again; it goes on "
            "from there"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"{where} cannot be written or read ({error.strerror}): choose another --data-root")
    if error.errno == errno.EEXIST:
        return UserError(f"{where} is in the way: it is not a folder, or it links to nothing")
    if error.errno == errno.EXDEV:
        return UserError(
            f"{where} cannot be moved to {error.filename2}: they are on two file systems, or in "
            "two layers of a container's: choose another --data-root"
        )
    if error.errno in (*UNREACHABLE, errno.ENOTDIR):
        return UserError(f"{where}: {error.strerror}")
    return None


if __name__ == "__main__":
    run_command(main)
