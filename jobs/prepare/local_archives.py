"""Archives that exist already: finds them, tells whether they are the real release, and checks them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.catalog.sources import Source
from jobs.prepare.archives import DamagedArchive, looks_like_html
from jobs.prepare.progress import say, task
from jobs.prepare.workers import NICER
from jobs.run.digests import digest
from jobs.run.directory import write_atomically
from jobs.run.errors import MALFORMED, UserError

SUMS = {"SHA256SUMS": "sha256", "SHA1SUMS": "sha1", "MD5SUMS": "md5"}
STAMP = "checked.json"


@dataclass(frozen=True)
class Checked:
    size: int
    algorithm: str
    """Empty if nothing was checked (--no-checksum)."""
    digest: str
    real: bool
    """Whether it is the published release, byte for byte."""

    @property
    def record(self) -> dict[str, int | str]:
        """The entry for the manifest."""
        return {"bytes": self.size, self.algorithm or "unchecked": self.digest}


def find_local(folder: Path, wanted: Iterable[Source]) -> dict[str, Path]:
    """The archives in `folder`. Raises UserError, naming those that are missing."""
    if not folder.is_dir():
        raise UserError(f"--archives {folder} is not a folder")
    paths = {source.name: folder / source.name for source in wanted}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise UserError(
            f"--archives {folder} lacks {' and '.join(missing)}: put it there, or drop --archives"
        )
    return paths


class Checks:
    """The checks of several archives, each in a thread: reading and hashing both release the GIL."""

    def __init__(self, futures: dict[str, Future[Checked]]) -> None:
        self.futures = futures

    def look(self) -> None:
        """Raises the error of a check that has failed so far; does not wait."""
        for future in self.futures.values():
            if future.done():
                future.result()

    def results(self) -> dict[str, Checked]:
        """The results by archive name. Waits; raises the error of a failed check."""
        return {name: future.result() for name, future in self.futures.items()}


@contextmanager
def checking(
    wanted: Iterable[Source], paths: dict[str, Path], checksum: bool, work: Path
) -> Iterator[Checks]:
    """Checks the archives while the body uses them; it must publish nothing before `results`.

    If the body fails and a check finds damage, raises the latter, which is the cause.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(initializer=stand_back) as threads:
        futures = {}
        for source in wanted:
            path = paths[source.name]
            # A user's own archive may have its checksum beside it; a download must be the release.
            given = path.parent if path.parent != work else None
            futures[source.name] = threads.submit(check_archive, source, path, given, checksum, work, stop)
        checks = Checks(futures)
        try:
            yield checks
        except UserError:
            checks.results()
            raise
        finally:
            stop.set()


def stand_back() -> None:
    """Lowers this thread's priority below that of the decompression, which takes longest."""
    # On Linux, each thread has its own nice value.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + NICER)


class Stopped(Exception):
    """This check is no longer needed."""


def check_archive(
    source: Source,
    path: Path,
    given: Path | None,
    checksum: bool,
    work: Path,
    stop: threading.Event | None = None,
) -> Checked:
    """Checks an archive against the release's digest, or against a checksums file beside it.

    Raises DamagedArchive if it is damaged, UserError if that cannot be determined, Stopped after `stop`.
    """
    status = path.stat()
    algorithm, expected = next(iter(source.digests.items()))
    real = status.st_size == source.size
    if not real:
        with open(path, "rb") as file:
            if looks_like_html(file.read(512)):
                raise DamagedArchive(f"{path} is an HTML page, not the archive: download it again")
        if not checksum:
            say(
                f"WARNING: {path.name} is used without a checksum, as requested: damage in it may go "
                "unnoticed"
            )
            return Checked(status.st_size, "", "", False)
        algorithm, expected = listed(source, path, given)
    elif not checksum:
        say(
            f"{path.name} has the same size as the release, so it is checked even though --no-checksum was "
            "given"
        )
    key = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {algorithm}"
    # A start that continues an interrupted one need not read gigabytes again.
    stamp = work / f"{source.name}.{STAMP}"
    found = recall(stamp, key)
    if found is None:
        with task(f"{algorithm} of {path.name}", status.st_size, "B") as advance:

            def advance_to(count: int) -> None:
                if stop and stop.is_set():
                    raise Stopped
                advance(count)

            found = digest(path, algorithm, advance_to)
        write_atomically(stamp, json.dumps({key: found}).encode())
    if found != expected:
        raise DamagedArchive(
            f"{path} is damaged: its {algorithm} is {found}, not {expected}: download it again"
        )
    return Checked(status.st_size, algorithm, found, real or found == source.digests.get(algorithm))


def recall(stamp: Path, key: str) -> str | None:
    try:
        return json.loads(stamp.read_text()).get(key)
    except (FileNotFoundError, *MALFORMED):
        return None


def listed(source: Source, path: Path, given: Path | None) -> tuple[str, str]:
    """(algorithm, digest) for an archive that does not have the release's size. Raises DamagedArchive."""
    if given is not None and (found := listed_digest(path)):
        return found
    if source.size == 0:  # no size is published, the digest alone decides
        return next(iter(source.digests.items()))
    size = path.stat().st_size
    why = f"has {size:,} bytes, the release {source.size:,}" if source.size > 0 else "has no known checksum"
    raise DamagedArchive(
        f"{path} {why}: download it again "
        f"(or, if it is meant to be so, list it in {path.parent / 'SHA256SUMS'} or give --no-checksum)"
    )


def listed_digest(path: Path) -> tuple[str, str] | None:
    """(algorithm, digest) from a checksums file beside the archive; None without one. Raises UserError."""
    for name, algorithm in SUMS.items():
        try:
            lines = (path.parent / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            value, _, file = line.partition(" ")
            if file.strip().removeprefix("*").removeprefix("./") == path.name:
                if len(value) != hashlib.new(algorithm).digest_size * 2:
                    raise UserError(f"{path.parent / name}: {value!r} is not a {algorithm} digest")
                return algorithm, value.lower()
    return None
