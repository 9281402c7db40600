"""Checksums that are taken while the archives are already being used."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.catalog import sources
from jobs.prepare import disk
from jobs.prepare import local_archives as given
from jobs.prepare.archives import DamagedArchive
from jobs.prepare.local_archives import checking
from jobs.prepare.synthetic import VOC_ARCHIVE
from jobs.run.errors import UserError

WAIT = 30.0


@pytest.fixture
def archive(voc_archives: Path, tmp_path: Path) -> dict[str, Path]:
    """An archive that its checksums file does not fit."""
    (tmp_path / "work").mkdir()
    path = tmp_path / VOC_ARCHIVE
    path.write_bytes((voc_archives / VOC_ARCHIVE).read_bytes() + b"\0")
    (tmp_path / "SHA256SUMS").write_bytes((voc_archives / "SHA256SUMS").read_bytes())
    return {VOC_ARCHIVE: path}


def test_damage_is_seen_before_the_work_is_done(archive: dict[str, Path], tmp_path: Path) -> None:
    def work() -> None:
        with checking([sources.VOC], archive, True, tmp_path / "work") as checks:
            for future in checks.futures.values():
                future.exception(WAIT)
            checks.look()
            pytest.fail("the work goes on")

    with pytest.raises(DamagedArchive, match="sha256"):
        work()


def test_damage_is_named_rather_than_what_it_led_to(archive: dict[str, Path], tmp_path: Path) -> None:
    with (
        pytest.raises(DamagedArchive, match="sha256"),
        checking([sources.VOC], archive, True, tmp_path / "work"),
    ):
        raise UserError("the mask is unreadable")


def test_who_is_told_to_leave_does_not_wait_for_a_checksum(
    archive: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of an endless file is left with the first block after the order."""
    begun = threading.Event()

    def endless(_: Path, __: str, advance: Callable[[int], object]) -> str:
        while True:
            advance(1)
            begun.set()

    monkeypatch.setattr(given, "digest", endless)

    def work() -> None:
        with checking([sources.VOC], archive, True, tmp_path / "work") as checks:
            made.append(checks)
            assert begun.wait(WAIT)
            checks.look()
            raise KeyboardInterrupt

    made: list[given.Checks] = []
    with pytest.raises(KeyboardInterrupt):
        work()
    with pytest.raises(given.Stopped):
        made[0].results()


def test_a_disk_that_failed_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells a failed write once: who has heard of it must pass it on."""
    asked = threading.Event()

    def refuse(folder: Path) -> None:
        asked.set()
        raise OSError(errno.EIO, "input/output error", str(folder))

    monkeypatch.setattr(disk, "sync", refuse)
    monkeypatch.setattr(disk, "INTERVAL", 0.001)
    with pytest.raises(OSError, match="input/output error"), disk.writing_behind(tmp_path):
        assert asked.wait(WAIT)
