"""The processes that send a run to W&B, MLflow and ClearML: `launch/track.py` of the run's own code, one for
each service, beside the training on rank 0's node, and once more after an evaluation.

Only a job's end waits for them, and only briefly: what a service has not accepted is reported in the log, and
sent by the next start, by the evaluation, or by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from jobs.run import exit_codes, trackers
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.supervise import processes

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "track.py"

SECONDS_AT_END = {exit_codes.FINISHED: 30.0}
"""Exit code -> how long a training that ends with it waits for them."""
SECONDS_LEAVING = 2.0
"""With any other exit code. If a rank has failed, srun soon ends the others."""
SECONDS_ONCE = 90.0


class Beside:
    """The processes beside a training. Starting and ending them never raises."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pids: set[int] = set()
        """Pids of those that are alive."""
        self.begun = False
        self.write_end: int | None = None
        """They continue while it is open."""

    def begin(self) -> None:
        """Starts them, if the run names a service; only the first call does anything. Needs the run's
        resolved config."""
        if self.begun:
            return
        self.begun = True
        try:
            names = trackers.wanted(self.run) if COMMAND.exists() else []
            if not names:
                return
            read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
            try:
                for name in names:
                    argv = command(self.run, name, "--beside", str(read_end))
                    self.pids.add(processes.start(argv, os.environ, pass_fds=[read_end]))
            finally:
                os.close(read_end)
        except (OSError, UserError) as error:
            print(f"baton: no curves are sent: {error}", file=sys.stderr, flush=True)

    def ask_to_end(self) -> None:
        """Makes them send the rest and exit. Returns at once."""
        if self.write_end is not None:
            os.close(self.write_end)
            self.write_end = None

    def end(self, code: int) -> None:
        """Waits for them, as long as a start that ends with `code` may, and kills those that remain."""
        self.ask_to_end()
        deadline = time.monotonic() + SECONDS_AT_END.get(code, SECONDS_LEAVING)
        while self.pids and time.monotonic() < deadline:
            self.pids -= processes.reap().keys()
            time.sleep(0.02)
        if self.pids and code == exit_codes.FINISHED:
            print(
                "baton: a service has not accepted all curves; the evaluation sends what is missing",
                flush=True,
            )


def command(run: Run, name: str, *rest: str) -> list[str]:
    return [sys.executable, "-u", str(COMMAND), str(run.path), "--to", name, *rest]


def once(run: Run) -> None:
    """Sends what the services lack, for at most SECONDS_ONCE. Never raises."""
    try:
        names = trackers.wanted(run) if COMMAND.exists() else []
        begun = [subprocess.Popen(command(run, name), stdin=subprocess.DEVNULL) for name in names]
    except (OSError, UserError) as error:
        print(f"no curves are sent: {error}", file=sys.stderr, flush=True)
        return
    deadline = time.monotonic() + SECONDS_ONCE
    for name, process in zip(names, begun, strict=True):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            by_hand = f"python launch/track.py {run.name} --to {name}"
            print(f"{name} does not answer; {by_hand} sends what is missing", file=sys.stderr, flush=True)
