"""Quotas as the programs of file systems tell them, and who is told about them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from jobs import probe
from jobs.run import file_systems, quotas
from jobs.run.quotas import Left
from launch.observe.doctor import disks
from launch.submit import room

# quota -u -w -p (quota 4.06)
QUOTA = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/export/home  900  1000  2000  0  24000  25000  30000  0
/dev/sda2  1500*  1000  2000  1700000000  10  0  30  0
"""
# lfs quota -q -u: a long name breaks the line; what a server did not tell is in brackets
LFS = """/mnt/lustre/with/a/long/name
                [900]*       0     1000       -   99000*   90000  100000  6d23h
"""


@pytest.mark.parametrize(
    ("text", "source", "left"),
    [
        (QUOTA, "server:/export/home", Left(100 * 1024, 1000)),
        (QUOTA, "/dev/sda2", Left(0, 20)),
        (QUOTA, "/dev/sdb", Left()),
        (LFS, None, Left(100 * 1024, 0)),
        ("Disk quotas for user me (uid 0): none\n", "/dev/sda2", Left()),
        ("", None, Left()),
    ],
)
def test_what_quota_programs_say_is_understood(text: str, source: str | None, left: Left) -> None:
    assert quotas.of_text(text, source) == left


@pytest.mark.parametrize(("kind", "program"), [("lustre", "lfs"), ("nfs4", "quota")])
def test_the_program_of_the_file_system_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, program: str
) -> None:
    for name in ("lfs", "quota"):
        file = tmp_path / name
        said = f"srv:/x 1 0 10 0 5 0 {7 if name == program else 6} 0"
        file.write_text(f"#!/bin/sh\necho '{said}'\nexit 1\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(file_systems, "_mounted", lambda _: (kind, "srv:/x"))
    assert quotas.of_user(tmp_path) == Left(9 * 1024, 2)
    assert quotas.left(tmp_path) == Left(9 * 1024, 2)


def test_without_a_program_the_file_system_has_the_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert quotas.of_user(tmp_path) == Left()

    def look() -> tuple[int, int | None, int]:
        return shutil.disk_usage(tmp_path).free, quotas.left(tmp_path).bytes, shutil.disk_usage(tmp_path).free

    before, found, after = look()
    while before != after:  # another program has written
        before, found, after = look()
    assert found == before > 0


@pytest.mark.parametrize(
    ("dataset", "pack", "unpack", "left", "said"),
    [
        (
            "voc",
            False,
            False,
            25_000,
            "will be about 25,533 files, .* has room for only 25,000 more of yours: --pack makes",
        ),
        ("voc", False, False, 25_533, ""),
        ("voc", True, False, 5, "about 10 files"),
        ("voc", True, False, 25_000, ""),
        ("ade20k", True, False, 1000, "make room, or another --data-root"),
        ("mine", False, False, 0, ""),
        ("voc", False, False, None, ""),
    ],
)
def test_a_preparation_of_too_many_files_is_warned_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dataset: str,
    pack: bool,
    unpack: bool,
    left: int | None,
    said: str,
) -> None:
    asked = []

    def told(path: Path) -> Left:
        asked.append(path)
        return Left(None, left)

    monkeypatch.setattr(quotas, "left", told)
    room.warn_of_files(tmp_path / "data/VOCdevkit", dataset, pack, unpack)
    assert asked == [tmp_path]
    output = capsys.readouterr().err
    assert len(output.splitlines()) == bool(said)
    assert re.search(said, output)


def test_what_is_there_already_is_not_warned_of_unless_it_is_unpacked(
    voc_small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quotas, "left", lambda _: Left(None, 1))
    room.warn_of_files(voc_small / "VOCdevkit", "voc", False, False)
    assert capsys.readouterr().err == ""
    room.warn_of_files(voc_small / "VOCdevkit", "voc", False, True)
    assert "leave it packed" in capsys.readouterr().err


DISK = {"kind": "xfs", "room": 500e9, "read": 2e9}
FAST = {"kind": "nfs4", "opens": 20_000.0, "read": 1.9e9, "left": [None, None], "places": {"$TMPDIR": DISK}}


@pytest.mark.parametrize(
    ("change", "levels", "said"),
    [
        ({}, ["good", "good"], "staging there saves little"),
        ({"opens": 300.0}, ["warning", "note"], "one by one: packing pays off"),
        ({"opens": 300.0}, ["warning", "note"], "train.py --stage '$TMPDIR'"),
        ({"read": 0.2e9}, ["good", "note"], "staging a packed dataset there pays off"),
        ({"left": [1e12, 20_000]}, ["good", "warning", "good"], "20,000 files are left"),
        ({"left": [1e12, 90_000]}, ["good", "good", "good"], "90,000 files are left"),
        ({"places": {"$TMPDIR": DISK | {"room": 1e9}}}, ["good", "note"], "has none with room"),
        ({"places": {"$TMPDIR": DISK | {"kind": "lustre"}}}, ["good", "note"], "has none with room"),
        ({"places": {"/x": {"error": "/x: none"}}}, ["good", "warning"], "/x: none"),
        (
            {"places": {"/dev/shm": DISK | {"kind": "tmpfs"}, "/l": DISK}, "read": 1e8},
            ["good", "note"],
            "has /l ",
        ),
        ({"places": {}}, ["good", "note"], "nothing found"),
    ],
)
def test_whether_packing_and_staging_pay_off(change: dict, levels: list[str], said: str) -> None:
    found = disks.meaning("n1", FAST | change)
    assert [one.level for one in found] == levels
    assert any(said in " ".join((one.found, one.means, one.fix)) for one in found), found
    assert all(one.means and (one.fix or one.level == "good") for one in found)


def test_a_node_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("")
    (tmp_path / "block").write_bytes(b"x" * 1000)
    (tmp_path / "stage").write_text("$OWN/x")
    monkeypatch.setenv("OWN", str(tmp_path))
    monkeypatch.setattr(probe, "BLOCK", 1000)
    seen = probe.measured_files(tmp_path)
    assert seen["opens"] > 0
    assert seen["read"] > 0
    assert seen["places"]["$OWN/x"]["read"] > 0
    assert seen["left"].bytes > 0
    monkeypatch.delenv("OWN")
    assert "OWN is not set" in probe.measured_files(tmp_path)["places"]["$OWN/x"]["error"]
    assert disks.meaning("n1", json.loads(json.dumps(seen)))
