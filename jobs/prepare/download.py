"""Downloads that survive a bad network: resumed where they broke, mirrors in order, nothing invalid kept.

Partial content stays in `NAME.part`; only a file of the right size and digest gets its name. Proxies are
taken from the environment (`https_proxy`, …), as in requests.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from jobs.catalog.sources import Source
from jobs.prepare.archives import DamagedArchive, looks_like_html
from jobs.prepare.disk import sync
from jobs.prepare.local_archives import check_archive
from jobs.prepare.progress import say, task
from jobs.run.errors import UserError

BLOCK = 1 << 16
"""A broken transfer loses at most this much."""

HEADERS = {"Accept-Encoding": "identity", "User-Agent": "baton-prepare"}


class Broken(Exception):
    """The transfer broke; a retry may help."""


class Unusable(Exception):
    """This mirror does not have the file; another may."""


@dataclass(frozen=True)
class Patience:
    attempts: int = 6
    """The most consecutive attempts, on one mirror, without a new byte."""
    backoff: float = 2.0
    """Seconds before the second attempt; doubled for each further one, up to a minute."""
    connect: float = 15.0
    stall: float = 60.0
    """Seconds without a byte after which a transfer counts as broken."""


def fetch(
    source: Source, folder: Path, patience: Patience = Patience(), room: int = 0, unpacked: bool = False
) -> Path:
    """The archive in `folder`, downloaded and checked; goes on with what an earlier call left there.

    `room`: bytes that will be needed beside it; `unpacked`: those of its content too, which is images and as
    large again. Raises UserError if the disk is too small or no mirror has
    it (with every mirror's reason), OSError if the disk refuses.
    """
    target = folder / source.name
    if target.exists():
        try:
            check_archive(source, target, None, True, folder)
        except DamagedArchive as error:  # by its disk: it was complete
            say(f"{error}; doing so")
            target.unlink()
        else:
            return target
    if not source.size:
        source = with_size(source, patience)
    part = folder / f"{source.name}.part"
    check_room(folder, source.size * (1 + unpacked) - size_of(part) + room)
    reasons = []
    for url in source.urls:
        try:
            transfer_all(url, source, part, patience)
            # Before the check, whose result counts from then on, even after a crash of this machine.
            sync(folder)
            check_archive(source, part, None, True, folder)
        except (Unusable, Broken) as error:
            reasons.append(f"{url}: {error}")
        except DamagedArchive as error:
            part.unlink()
            reasons.append(f"{url}: {error}")
        else:
            os.replace(part, target)
            return target
        say(f"{reasons[-1]}; trying the next mirror" if url != source.urls[-1] else reasons[-1])
    raise no_mirror(source, reasons)


def with_size(source: Source, patience: Patience) -> Source:
    """The source, of unpublished size, with the size from the first mirror that answers."""
    reasons = []
    for url in source.urls:
        try:
            return replace(source, size=length_of(url, patience))
        except (Unusable, Broken) as error:
            reasons.append(f"{url}: {error}")
    raise no_mirror(source, reasons)


def length_of(url: str, patience: Patience) -> int:
    """The size of the file on the server. Raises Unusable if it does not tell, Broken once patience ends."""
    tries = Tries(url, patience)
    while True:
        try:
            return ask_length(url, patience)
        except Broken as error:
            tries.again(error, "")


def ask_length(url: str, patience: Patience) -> int:
    """Requests the file itself without reading the body: some servers refuse HEAD, or sign URLs only for
    GET. Raises Unusable or Broken."""
    timeouts = (patience.connect, patience.stall)
    try:
        with requests.get(url, headers=HEADERS, stream=True, timeout=timeouts) as response:
            check_status(response)
            length = response.headers.get("Content-Length", "")
    except requests.exceptions.SSLError as error:
        raise Unusable(f"has no valid certificate ({short(error)})") from None
    except requests.RequestException as error:
        raise Broken(short(error)) from None
    if not length.isdecimal() or not int(length):
        raise Unusable("tells no size")
    return int(length)


def no_mirror(source: Source, reasons: list[str]) -> UserError:
    return UserError(
        f"{source.name} could not be downloaded ({'; '.join(reasons)}): download it on another machine and "
        "give its folder with --archives"
    )


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:,.0f} MB free and the download needs {needed / 1e6:,.0f} MB: "
            "make room or choose another --data-root"
        )


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Tries:
    """Counts consecutive failed attempts, and waits before the next one, longer each time."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url = url
        self.patience = patience
        self.fruitless = 0

    def again(self, error: Broken, where: str, fruitful: bool = False) -> None:
        """Waits. Raises `error` once patience ends."""
        self.fruitless = 1 if fruitful else self.fruitless + 1
        if self.fruitless >= self.patience.attempts:
            raise error
        pause = min(60.0, self.patience.backoff * 2 ** (self.fruitless - 1)) * random.uniform(0.5, 1.0)
        say(f"{self.url}: {error}; again in {pause:.0f} s{where}")
        time.sleep(pause)


def transfer_all(url: str, source: Source, part: Path, patience: Patience) -> None:
    """Transfers until `part` is complete. Raises Unusable, or Broken once patience ends."""
    tries = Tries(url, patience)
    # The most that has ever been there: a server without ranges starts anew each time, and getting further
    # than the last time alone is not progress.
    most = size_of(part)
    while True:
        try:
            with task(f"download {source.name}", source.size, "B", done=size_of(part)) as advance:
                for count in transfer(url, source, part, patience):
                    advance(count)
            return
        except Broken as error:
            size = size_of(part)
            fruitful, most = size > most, max(size, most)
            tries.again(error, f" from {size:,} bytes", fruitful)


def transfer(url: str, source: Source, part: Path, patience: Patience) -> Iterator[int]:
    """One request, from where `part` ends; yields each written block's size. Raises Unusable or Broken."""
    have = size_of(part)
    if have == source.size:
        return
    if have > source.size:
        part.unlink()
        have = 0
    headers = HEADERS | ({"Range": f"bytes={have}-"} if have else {})
    timeouts = (patience.connect, patience.stall)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeouts) as response:
            begins = check_response(response, source, have)
            with open(part, "r+b" if begins else "wb") as file:
                file.seek(begins)
                file.truncate()
                for block in response.iter_content(BLOCK):
                    if begins == 0 and file.tell() == 0 and looks_like_html(block[:512]):
                        raise Unusable("sent an HTML page instead of the file")
                    file.write(block)
                    yield len(block)
    except requests.exceptions.SSLError as error:
        raise Unusable(f"has no valid certificate ({short(error)})") from None
    except requests.RequestException as error:
        raise Broken(short(error)) from None
    arrived = size_of(part)
    if arrived > source.size:
        part.unlink()
        raise Unusable(f"sent {arrived:,} bytes, the release has {source.size:,}")
    if arrived < source.size:
        raise Broken(f"ended after {arrived:,} of {source.size:,} bytes")


def check_response(response: requests.Response, source: Source, have: int) -> int:
    """The offset at which the body begins. Raises Unusable or Broken for anything that is not the file."""
    if response.status_code == 416:
        # The file there is shorter than what we have.
        raise Unusable(f"has not the release's {source.size:,} bytes (HTTP 416)")
    check_status(response)
    begins = 0
    if response.status_code == 206:
        begins, total = content_range(response.headers.get("Content-Range", ""))
        if begins != have:
            raise Unusable(f"sent a part from byte {begins:,}, asked for {have:,}")
    else:
        # A server without range support sends everything again.
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
    if total is not None and total != source.size:
        raise Unusable(f"has {total:,} bytes, the release {source.size:,}")
    return begins


def check_status(response: requests.Response) -> None:
    """Raises Broken if a later try may help, Unusable if it is not the file."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        raise Broken(f"HTTP {status}")
    if status not in (200, 206):
        raise Unusable(f"HTTP {status}")
    if "text/html" in response.headers.get("Content-Type", ""):
        raise Unusable("sent an HTML page instead of the file")


def content_range(value: str) -> tuple[int, int | None]:
    """(first byte, total or None) of a Content-Range header."""
    unit, _, span = value.partition(" ")
    first, _, rest = span.partition("-")
    total = rest.rpartition("/")[2]
    if unit != "bytes" or not first.isdecimal():
        raise Unusable(f"answered with the range {value!r}")
    return int(first), int(total) if total.isdecimal() else None


def short(error: Exception) -> str:
    """A requests error in a few words: its innermost cause, without object addresses."""
    cause: BaseException = error
    while cause.args and isinstance(cause.args[-1], BaseException):
        cause = cause.args[-1]
    reason = getattr(cause, "reason", cause)
    text = " ".join(str(reason).split())
    return text.rpartition(">: ")[2][:160] or type(error).__name__
