"""events.jsonl: lines of many writers stay whole, torn lines cost only themselves, the schema is kept."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jobs.run import events, kinds, lines

ROOT = Path(__file__).resolve().parents[2]


def test_a_record_comes_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    written = events.append(path, "resumed", stage="train", start=2, step=7, epoch=1, checkpoint="iter_7.pth")
    assert events.read(path) == [written]
    assert written["time"].endswith("Z")
    assert events.seconds_of(written["time"]) > 1.7e9


def test_fields_that_are_none_are_left_out(tmp_path: Path) -> None:
    record = events.append(tmp_path / "e", "requeued", how="scontrol", successor=None)
    assert "successor" not in record


@pytest.mark.parametrize(
    ("event", "fields", "message"),
    [
        ("launched", {}, "unknown event 'launched'"),
        ("resumed", {"step": 1}, "lacks checkpoint, epoch"),
        ("finished", {"steps": 1}, "unknown fields steps"),
    ],
)
def test_the_schema_is_kept(tmp_path: Path, event: str, fields: dict[str, int], message: str) -> None:
    path = tmp_path / "events.jsonl"
    with pytest.raises(events.EventError, match=message):
        events.append(path, event, **fields)
    assert not path.exists()


def test_no_file_means_no_events(tmp_path: Path) -> None:
    assert events.read(tmp_path / "none") == []


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events.append(path, "finished", step=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    events.append(path, "finished", step=2)
    assert [record["step"] for record in events.read(path)] == [1, 2]


def test_what_json_does_not_know_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events.append(
        path, "validated", epoch=1, step=2, seconds=float("inf"), metrics={"mIoU": float("nan"), "x": 1.5}
    )
    (record,) = msgspec.json.decode(b"[" + path.read_bytes() + b"]")
    assert (record["seconds"], record["metrics"]) == (None, {"mIoU": None, "x": 1.5})


def test_what_a_full_disk_refuses_is_written_later_in_order_and_with_its_own_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.jsonl"
    path.mkdir()  # nothing can be written there
    story = events.Writer(path, stage="train", start=3)
    story.append("finished", step=1)
    assert "finished waits to be written" in capsys.readouterr().err
    assert not story.flush()
    path.rmdir()
    before = events.now()
    story.append("finished", step=2)
    assert [(e["step"], e["start"]) for e in events.read(path)] == [(1, 3), (2, 3)]
    assert events.read(path)[0]["time"] <= before
    assert story.flush()
    with pytest.raises(events.EventError):
        story.append("launched")


def _append_many(path: Path, writer: int) -> None:
    for number in range(200):
        events.append(path, "failed", reason="x" * 500, rank=writer, exit_code=number)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writers = [multiprocessing.Process(target=_append_many, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    records = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert len(records) == 800
    for writer_number in range(4):
        numbers = [r["exit_code"] for r in records if r["rank"] == writer_number]
        assert numbers == list(range(200))


AN_NFS_CLIENT = """
import os, sys, time
real_open, real_write = os.open, os.write

def open_(path, flags, mode=0o777):
    fd = real_open(path, flags & ~os.O_APPEND, mode)
    os.lseek(fd, 0, os.SEEK_END)
    return fd

def write(fd, data):
    end = os.lseek(fd, 0, os.SEEK_END)
    time.sleep(0.005)
    return os.pwrite(fd, data, end)

os.open, os.write = open_, write
from pathlib import Path
from jobs.run import events, lines
for number in range(40):
    events.append(Path(sys.argv[1]), "cancelled", by=f"{os.getpid()} {number}")
"""


def test_lines_of_several_nodes_do_not_mix_on_nfs(tmp_path: Path) -> None:
    """Where a client itself works out where the file ends, and writes there later."""
    path = tmp_path / "events.jsonl"
    command = [sys.executable, "-c", AN_NFS_CLIENT, str(path)]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len({record["by"] for record in events.read(path)}) == 3 * 40


def test_a_lock_that_somebody_holds_keeps_no_event_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    monkeypatch.setattr(lines, "TURN_SECONDS", 0.1)
    path.touch()
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        events.append(path, "cancelled", by="the user")
        holder.communicate(b"\n")
    assert len(events.read(path)) == 1


def test_what_is_read_typed_is_what_this_version_knows(tmp_path: Path) -> None:
    """Lines of earlier and later versions, torn, foreign and edited ones."""
    path = tmp_path / "events.jsonl"
    events.append(path, "finished", stage="train", job="7", step=3)
    started = '"time":"2026-01-01T00:00:00.000Z","event":"started","stage":"train","start":1,"hosts":["n1"]'
    with path.open("a") as file:
        file.write(f'{{{started},"world_size":1,"device":"cpu"}}\n')  # with a field that there is no more
        file.write('{"time":"2026-01-01T00:00:00.000Z","event":"launched"}\n')
        file.write(f"{{{started}}}\n")
        file.write('{"time":"2026-01-01T00:00:00.000Z","event":"stopped","reason":7}\n')
        file.write('{"time":"2026-01-01T00:00:00.000Z","event":"sto\n[1]\nnull\n\xff\n')
        file.write(
            '{"time":"2026-01-01T00:00:00.000Z","event":"validated","step":1,"epoch":1,"seconds":1,'
            '"metrics":{"mIoU":NaN}}\n'
        )
    lines = path.read_bytes().split(b"\n")
    finished, first, validated = filter(None, map(events.of_line, lines))
    assert finished == kinds.Finished(time=finished.time, job="7", step=3)
    assert first == kinds.Started(time="2026-01-01T00:00:00.000Z", start=1, hosts=["n1"], world_size=1)
    assert isinstance(validated, kinds.Validated)
