"""What another user of the machine does, in tests that attack as one: a forked process under another uid."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator

import pytest

UID = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to attack as")


@contextlib.contextmanager
def stranger(work: Callable[[], object]) -> Iterator[None]:
    """While the block runs, so does `work` in another user's process, which is then killed."""
    pid = _fork(work, UID)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def succeeds_as_stranger(work: Callable[[], object], uid: int = UID) -> bool:
    """Whether another user can do `work`, or is refused (OSError). Any other error is one of the test."""
    code = os.waitstatus_to_exitcode(os.waitpid(_fork(work, uid), 0)[1])
    assert code in (0, 1), "the attack itself is broken; its traceback is above"
    return code == 0


def _fork(work: Callable[[], object], uid: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 2
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        work()
        code = 0
    except OSError:
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
