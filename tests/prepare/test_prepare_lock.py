"""The preparation's lock: one owner, and none held up by a dead one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs.catalog.owner import NAME, Owner, is_dead, myself
from jobs.catalog.readiness import state
from jobs.prepare import lock
from jobs.prepare.lock import hold
from jobs.run.errors import UserError
from tests import strangers
from tests.stages import wait_until

ELSEWHERE = Owner("node17", 4242, 99, "another boot pid:[1]", "811", 0, "token-of-node17")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL", 0.02)


def write(root: Path, owner: Owner) -> Path:
    path = root / NAME
    path.write_text(json.dumps(asdict(owner)))
    return path


def dead_process() -> Owner:
    child = subprocess.Popen(["true"])
    child.wait()
    return replace(myself(), pid=child.pid, token="dead")


def test_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        hold(tmp_path),
        pytest.raises(UserError, match=f"process {os.getpid()} on "),
        hold(tmp_path, wait=False),
    ):
        pass
    assert not (tmp_path / NAME).exists()


def test_waits_and_is_told_when_the_owner_has_done_it(tmp_path: Path) -> None:
    told: list[Owner] = []
    with hold(tmp_path), hold(tmp_path, on_wait=told.append, done=lambda: bool(told)) as second:
        assert second is None
    assert [owner.pid for owner in told] == [os.getpid()]


def test_goes_on_when_the_owner_lets_go(tmp_path: Path) -> None:
    holding = threading.Event()
    release = threading.Event()

    def first() -> None:
        with hold(tmp_path):
            holding.set()
            release.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    holding.wait(10)
    with hold(tmp_path, on_wait=lambda _: release.set()) as second:
        assert second is not None
        second.check()
    thread.join()


def test_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    write(tmp_path, dead_process())
    assert state(tmp_path).kind == "missing"
    with hold(tmp_path, wait=False) as taken:
        assert taken is not None


def test_reused_process_id_is_not_the_owner() -> None:
    assert not is_dead(myself())
    assert is_dead(replace(myself(), process_start=1))


def test_lock_of_another_node_is_respected_while_its_heart_beats(tmp_path: Path) -> None:
    path = write(tmp_path, ELSEWHERE)
    now = state(tmp_path)
    assert (now.kind, now.owner) == ("in progress", ELSEWHERE)
    with pytest.raises(UserError, match="job 811 on node17"), hold(tmp_path, wait=False):
        pass
    beats = []

    def beat(_: Owner) -> None:
        def run() -> None:
            for _ in range(8):
                time.sleep(0.15)
                beats.append(path.exists())
                if beats[-1]:
                    os.utime(path)

        threading.Thread(target=run).start()

    began = time.monotonic()
    with hold(tmp_path, on_wait=beat, stale=0.9):
        # Not before the last of the eight beats.
        assert time.monotonic() - began > 1.2
    assert beats == [True] * 8


def test_earlier_start_of_this_very_job_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "811")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_dead(ELSEWHERE)
    assert not is_dead(replace(ELSEWHERE, restart=1))
    assert not is_dead(replace(ELSEWHERE, job="812"))


def test_lock_without_content_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    assert state(tmp_path).kind == "in progress"
    with hold(tmp_path, stale=0.3) as taken:
        assert taken is not None


@strangers.needs_root
@pytest.mark.parametrize("mode", [None, 0o600])
def test_a_colleague_is_told_whatever_the_umask(mode: int | None) -> None:
    """`mode`: that of a lock which is closed all the same."""
    before = os.umask(0o077)
    try:
        with tempfile.TemporaryDirectory() as name, hold(Path(name), folder="VOCdevkit"):
            root = Path(name)
            root.chmod(0o777)  # pytest's own folders let nobody else in
            if mode is not None:
                (root / NAME).chmod(mode)

            def look() -> None:
                assert state(root).kind == "in progress"
                who = f"process {os.getppid()} on" if mode is None else "on an unknown host"
                with pytest.raises(UserError, match=f"is being prepared by .*{who}"):
                    lock.acquire(root, myself(), False, lambda _: None, lambda: False, 60)

            assert strangers.succeeds_as_stranger(look)
    finally:
        os.umask(before)


def test_what_is_no_lock_or_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("/nowhere")
    with pytest.raises(UserError, match="a dangling link"), hold(tmp_path):
        pass
    root = tmp_path / "data"
    root.mkdir()
    with ThreadPoolExecutor(1) as thread:

        def wait() -> None:
            with hold(root, on_wait=lambda _: waiting.set()):
                pass

        waiting = threading.Event()
        with hold(root):
            second = thread.submit(wait)
            assert waiting.wait(60)
            shutil.rmtree(root)
            with pytest.raises(UserError, match="somebody has removed it"):
                second.result(60)


def test_a_file_server_that_does_not_answer_for_a_while_does_not_cost_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to itself stands for it: it can be neither read nor missed."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with hold(tmp_path) as mine:
        assert mine is not None
        aside = mine.path.rename(tmp_path / "aside")
        mine.path.symlink_to(NAME)
        time.sleep(0.1)
        with pytest.raises(OSError, match=NAME):
            mine.check()
        aside.rename(mine.path)
        os.utime(mine.path, (0, 0))
        wait_until(lambda: mine.path.stat().st_mtime > 0)
    assert not (tmp_path / NAME).exists()


def test_owner_that_was_superseded_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path) as mine:
        assert mine is not None
        mine.check()
        path = write(tmp_path, ELSEWHERE)
        os.utime(path, (1, 1))
        monkeypatch.setattr(lock, "BEAT", 0.02)
        heart = threading.Thread(target=mine.beat, daemon=True)
        heart.start()
        heart.join(10)
        assert path.stat().st_mtime == 1  # beating, it would keep a dead one's lock
        with pytest.raises(UserError, match="taken over by job 811 on node17"):
            mine.check()
    # And leaves the other's lock alone.
    assert json.loads(path.read_text())["token"] == ELSEWHERE.token


def test_heartbeat_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with hold(tmp_path):
        path = tmp_path / NAME
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)


def test_many_at_once_one_at_a_time(tmp_path: Path) -> None:
    write(tmp_path, dead_process())
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with hold(tmp_path):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 6
