"""The copies of a node's packed datasets that a training asks for: started by the supervisor of the node's
first rank once a worker says what it reads, made beside the training (copier.py), reported as events."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.run import file_systems, staged
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.task import Task
from jobs.supervise import processes

MOST = 64 << 10
"""The most bytes of an answer, which is one line."""


class Copies:
    """Does nothing if the run has no `stage`, or on ranks other than a node's first."""

    def __init__(self, run: Run, task: Task, environ: Mapping[str, str]) -> None:
        setting = run.request().cluster.stage if run.request_file.exists() else ""
        self.first = bool(setting) and task.local_rank == 0
        self.stage: Path | None = None
        self.problem = ""
        """Why nothing can be copied; "" if it can."""
        if setting:
            try:
                self.stage = staged.expand(setting, environ)
            except UserError as error:
                self.problem = str(error)
        self.environ = environ
        self.asked: set[str] = set()
        self.answers: list[dict[str, Any]] = []
        self.copiers: dict[int, str] = {}
        """Read end of each copier's pipe -> what it copies."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for the worker."""
        return {staged.VARIABLE: str(self.stage or "")}

    def begin(self, path: str) -> None:
        """Starts copying the container at `path`, which a worker has opened."""
        if not self.first or path in self.asked:
            return
        self.asked.add(path)
        if self.stage is None:
            self.answers.append(_not_staged(path, self.problem))
            return
        with contextlib.suppress(OSError):  # which the copier will report
            if there := staged.found(self.stage, Path(path), os.stat(path)):
                self.answers.append({"event": "staged", "path": path, "seconds": 0.0, **there})
                return
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        command = [sys.executable, "-m", "jobs.supervise.copier", path, str(self.stage), str(write_end)]
        try:
            processes.start(command, self.environ, pass_fds=[write_end])
            self.copiers[read_end] = path
        except OSError as error:
            os.close(read_end)
            self.answers.append(_not_staged(path, f"the copier could not be started: {error}"))
        finally:
            os.close(write_end)

    def events(self, over: bool) -> Iterator[dict[str, Any]]:
        """The results of the copies since the last call, as fields of events. Once it is `over`, the copiers
        have been ended and report nothing."""
        while self.answers:
            yield self.answers.pop(0)
        for end, path in list(self.copiers.items()):
            try:
                answer = os.read(end, MOST)
            except BlockingIOError:
                continue
            os.close(end)
            del self.copiers[end]
            if answer:
                yield json.loads(answer)
            elif not over:
                yield _not_staged(path, "the copier was killed, or its error is in the log")

    def leave(self, finished: bool) -> None:
        """After a `finished` training, removes unused copies in memory, which later jobs may need."""
        if not finished or self.stage is None or not self.first:
            return
        with contextlib.suppress(OSError):
            if file_systems.kind(self.stage) in file_systems.IN_MEMORY:
                for path in self.asked:
                    staged.discard(self.stage, Path(path), os.stat(path), unused=True)


def _not_staged(path: str, reason: str) -> dict[str, Any]:
    return {"event": "not_staged", "path": path, "reason": reason}
