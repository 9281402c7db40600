"""How a rank exits on an error: what it leaves for its supervisor, and with which exit code."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from typing import NoReturn

from jobs.engine.checkpoints import FencedOff
from jobs.engine.preemption import Preemption, leave
from jobs.run import files
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UserError, described
from jobs.run.exit_codes import FAILED, SUPERSEDED, USER_ERROR
from jobs.run.lines import line_of
from jobs.supervise import heartbeat

ONE_GPU = UserError(
    "several ranks of one node were given the same GPU: give each its own (does a prolog or profile set "
    "one CUDA_VISIBLE_DEVICES for all tasks?)"
)


def end(error: BaseException, run: Run, start: int, rank: int, preemption: Preemption) -> NoReturn:
    """Exits because of `error`, at once: other ranks may wait for this one, so destructors could hang."""
    heartbeat.tell_held()
    if "Duplicate GPU detected" in described(error):  # NCCL's message, in the first collective
        error = ONE_GPU
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        record(run, start, rank, str(error), "")
        leave(USER_ERROR)
    if isinstance(error, FencedOff):
        print(error, file=sys.stderr, flush=True)
        leave(SUPERSEDED)
    if isinstance(error, SystemExit) and error.code == USER_ERROR:
        # Such as argparse's, which has printed what is wrong: the supervisor takes that from the log.
        leave(USER_ERROR)
    if preemption.leaving:
        # The other ranks have left a collective; this one's listening thread is about to do so, too.
        threading.Event().wait()
    # Also for KeyboardInterrupt and other SystemExit: the user wants to know whatever ends a rank.
    text = "".join(traceback.format_exception(error))
    print(text, file=sys.stderr, flush=True)
    record(run, start, rank, described(error), text)
    leave(FAILED)


def record(run: Run, start: int, rank: int, error: str, text: str) -> None:
    """Writes the error where the supervisor finds it: `job/error-START-RANK.json`."""
    content = {"error": error, "traceback": text}
    with contextlib.suppress(OSError):  # it is on stderr as well
        write_atomically(run.job / files.ERROR(START=start, RANK=rank), line_of(content).encode())
