"""Files that a training keeps open while it goes on writing them."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from pathlib import Path

import msgspec
import pytest

from jobs.run.lines import Board, Lines, line_of


def test_a_board_is_put_in_place_once_and_then_written_over(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text("an older start's")
    board = Board(path)
    board.show(b'{"step": 1000}')
    first = path.stat()
    board.show(b'{"step": 1}')
    assert json.loads(path.read_bytes()) == {"step": 1}
    assert (path.stat().st_ino, path.stat().st_size) == (first.st_ino, Board.SIZE)
    assert os.listdir(tmp_path) == ["progress.json"]

    later = Board(path)  # of a later start, which the older one then no longer disturbs
    later.show(b'{"step": 2}')
    board.show(b'{"step": 3}')
    assert json.loads(path.read_bytes()) == {"step": 2}


def test_a_board_takes_more_than_it_has_room_for(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    board = Board(path)
    for content in (["a"], ["b" * Board.SIZE], ["c"]):
        board.show(json.dumps(content).encode())
        assert json.loads(path.read_bytes()) == content


def test_lines_are_appended_without_opening_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("whole\ntor")
    lines = Lines(path)
    lines.append("1")
    monkeypatch.setattr(os, "open", None)
    lines.append("2")
    assert path.read_text() == "whole\ntor\n1\n2\n"


def test_half_a_character_hides_no_line_from_its_readers() -> None:
    """Python's for a byte of a file's name that is no text; most readers of JSON refuse it."""
    line = line_of({"whole": "\U0001f600 \\ud", "half": "caf\udce9.jpg", "nan": math.nan})
    assert msgspec.json.decode(line) == {"whole": "\U0001f600 \\ud", "half": "caf\\udce9.jpg", "nan": None}


def test_after_an_error_the_file_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    lines.append("1")
    write = os.write

    def full(fd: int, data: bytes) -> int:
        return write(fd, data[:1])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        lines.append("22")
    monkeypatch.undo()
    lines.append("3")
    assert path.read_text() == "1\n2\n3\n"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    lines = Lines(tmp_path / "m.jsonl")
    lines.append("1")
    assert lines.fd is not None, "nothing went wrong"
    lines.append("2")
    assert lines.path.read_text() == "1\n2\n"
