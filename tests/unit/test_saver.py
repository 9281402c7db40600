"""Saving for the last time, while the disk does not take it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.hooks import CheckpointHook

from jobs.engine import checkpoints, saving
from jobs.engine.session import Session
from jobs.run import events
from jobs.run.directory import Request, Run
from jobs.run.metrics import Figure
from tests.unit.test_checkpoints import fill, manifest, names, write


@pytest.fixture
def saver(tmp_path: Path) -> saving.Saver:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    request = Request(name="x", config="", data_root="", created="")
    session = Session(run, request, rank=0, ranks=1, local_rank=0, local_ranks=1, start=1, job=None)
    heart: Any = SimpleNamespace(beat=lambda *_: None)
    return saving.Saver(session, saving.Settings(), "x", heart, lambda *_: {"step": 6})


@pytest.mark.parametrize("begin", [0, 3, 4])
@pytest.mark.parametrize("every", [-1, 0, 1, 3])
def test_the_interval_is_mmengines(every: int, begin: int) -> None:
    settings = saving.Settings(interval=every, save_begin=begin)
    theirs = [
        CheckpointHook().every_n_epochs(SimpleNamespace(epoch=done - 1), every, begin) for done in range(1, 9)
    ]
    assert [settings.asks(done) for done in range(1, 9)] == theirs


def at(step: int) -> Any:
    plan = SimpleNamespace(batch=4)
    return SimpleNamespace(
        train_loop=SimpleNamespace(iter=step, epoch=1, position=2, by_epoch=True, plan=plan)
    )


def told(saver: saving.Saver, event: str) -> list[Any]:
    return [one["step"] for one in events.read(saver.session.run.events) if one["event"] == event]


def test_a_save_that_failed_is_told_and_tried_again(
    saver: saving.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.directory.touch()  # instead of a folder
    saver.save(at(6), "interval", asked=True)
    saver.retry_for(0.0)
    assert told(saver, "checkpoint_failed") == [6]
    assert saving.RETRY - 30 < saver.next - time.monotonic() <= saving.RETRY
    with pytest.raises(OSError, match=r"iter_6\.pth: "):
        saver.check_finished()
    saver.directory.unlink()
    saver.save(at(6), "end", asked=True, wait=0.0)  # which tries once
    saver.check_finished()
    assert saver.on_disk == (6, 1)

    saver.directory.rename(aside := saver.directory.with_name("aside"))
    saver.directory.touch()

    def mend(_: float) -> None:
        saver.directory.unlink()
        aside.rename(saver.directory)

    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=time.monotonic, sleep=mend))
    saver.save(at(7), "preemption", wait=600.0)
    assert told(saver, "checkpoint_failed") == [6, 7]
    assert told(saver, "checkpoint") == [6, 7]
    assert saver.on_disk == (7, 1)


def test_a_save_is_waited_for_only_where_it_must_be(
    saver: saving.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    beats: list[tuple[str, int]] = []

    def beat(*told: Any) -> None:
        beats.append(told)
        go_on.set()

    monkeypatch.setattr(checkpoints, "on_phase", lambda _: go_on.wait(10))
    monkeypatch.setattr(saver.heart, "beat", beat)
    saver.save(at(6), "time")
    assert saver.busy()
    saver.save(at(7), "end", wait=0.0)
    assert beats[0] == ("save", 7)
    assert not saver.busy()
    stalls = [one.get("stall_seconds") for one in events.read(saver.session.run.events)]
    assert [stall is None for stall in stalls] == [False, True]


def test_what_cannot_be_pruned_is_told_and_left(saver: saving.Saver) -> None:
    stays = saver.directory / "iter_1.pth"
    stays.mkdir(parents=True)
    checkpoints.beside(stays).write_text(json.dumps(manifest(1, bytes=stays.stat().st_size)))
    for step in (2, 3):
        saver.save(at(step), "end", wait=0.0)
    assert told(saver, "checkpoint_failed") == [3]
    assert saver.on_disk == (3, 1)
    assert saver.next > time.monotonic()


def test_both_threads_that_leave_know_what_came_of_the_save(
    saver: saving.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a validation and a signal during it may meet: neither leaves while the other writes."""
    tries: list[str] = []
    first_sleeps, second_sleeps, retrying, go_on = (threading.Event() for _ in range(4))
    second: set[int] = set()

    def write(path: Path, *_: Any) -> Any:
        tries.append(path.name)
        if len(tries) == 1:
            raise OSError("read-only")
        retrying.set()
        assert go_on.wait(60)
        return SimpleNamespace(path=path, manifest={"bytes": 1})

    def sleep(_: float) -> None:
        if threading.get_ident() in second:
            second_sleeps.set()
            assert retrying.wait(60)
        else:
            first_sleeps.set()
            second_sleeps.wait(1)  # it does not come here where threads take turns

    def leave(late: bool) -> tuple[int, int]:
        if late:
            second.add(threading.get_ident())
            assert first_sleeps.wait(60)
        saver.retry_for(60)
        return saver.on_disk

    monkeypatch.setattr(checkpoints, "write", write)
    monkeypatch.setattr(checkpoints, "prune", lambda *_: None)
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    saver.save(at(6), "validation", validation_due=True)
    saver.finish()
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(leave, late) for late in (False, True)]
        assert retrying.wait(60)
        done, _ = wait(both, timeout=1)
        go_on.set()
        assert not done
        assert [one.result(60) for one in both] == [(6, 1)] * 2
    assert saver.failed is None


def test_a_better_one_is_found_while_the_one_before_is_noted(
    saver: saving.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save for the last time may be on its way while a validation ends."""
    under_way, found = threading.Event(), threading.Event()
    mark = checkpoints.mark_best

    def slow(folder: Path, checkpoint: checkpoints.Checkpoint, *rest: Any) -> None:
        if checkpoint.step == 1 and threading.current_thread() is not threading.main_thread():
            under_way.set()
            found.wait(0.2)
        elif checkpoint.step == 1:
            raise OSError("full")
        mark(folder, checkpoint, *rest)

    monkeypatch.setattr(checkpoints, "mark_best", slow)
    write(saver.directory, 1)
    saver.validated(1, {"mIoU": 40.0})
    write(saver.directory, 2)
    with ThreadPoolExecutor(1) as thread:
        noted = thread.submit(saver._note_best)
        assert under_way.wait(60)
        saver.validated(2, {"mIoU": 60.0})
        found.set()
        noted.result(60)
    assert saver.unnoted is None
    best = checkpoints.best(saver.directory)
    assert best is not None
    assert best.step == 2


def test_after_the_best_is_gone_the_next_validation_is_the_best(saver: saving.Saver) -> None:
    write(saver.directory, 1)
    saver.validated(1, {"mIoU": 60.0})
    write(saver.directory, 2)
    saver.validated(2, {"mIoU": 40.0})
    assert checkpoints.best_figure(saver.directory) == Figure("mIoU", 60.0)
    (saver.directory / "iter_1.pth").unlink()
    assert checkpoints.best(saver.directory) is None
    saver.validated(2, {"mIoU": 40.0})
    assert checkpoints.best_figure(saver.directory) == Figure("mIoU", 40.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_the_best_that_a_full_disk_could_not_note_is_noted_later_and_never_pruned(
    saver: saving.Saver,
) -> None:
    folder = saver.directory
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        for step, value in ((1, 40.0), (2, 60.0), (3, 50.0)):
            write(folder, step)
            if step == 2:
                with pytest.raises(OSError, match="No space"):
                    fill(folder / "filler")
            saver.validated(step, {"mIoU": value})
            if step == 2:
                with pytest.raises(OSError, match=r"No space.*best\.json"):
                    saver.check_finished()
                (folder / "filler").unlink()
        write(folder, 4)
        saver._write("iter_5.pth", {"step": 5}, manifest(5), time.monotonic(), None)
        saver.check_finished()
        best = checkpoints.best(folder)
        assert best is not None
        assert best.step == 2
        assert names(folder) == ["iter_2.pth", "iter_4.pth", "iter_5.pth"]
    finally:
        subprocess.run(["umount", folder], check=True)
