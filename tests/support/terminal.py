"""A command on a real terminal (a pty) of a given size, for tests of what people see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from types import TracebackType

SECONDS = 60.0
"""Ends a test that would wait for ever."""


class Terminal:
    """A command whose standard streams are a terminal; `text` is all that it has shown so far."""

    def __init__(
        self, command: list[str], environment: dict[str, str], columns: int = 80, lines: int = 40
    ) -> None:
        self.text = ""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            command, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def read(self, seconds: float) -> bool:
        """Takes what has come; False when the command has closed the terminal."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            self.text += os.read(self.master, 65536).decode(errors="replace")
        except OSError:  # EIO: nobody holds the other side
            return False
        return True

    def until(self, pattern: str) -> None:
        """Reads on until what follows from here matches `pattern`, colours left out."""
        begin, give_up = len(self.text), time.monotonic() + SECONDS
        while not re.search(pattern, plain(self.text[begin:])):
            assert time.monotonic() < give_up, f"{pattern!r} is not shown: {self.text[-2000:]!r}"
            assert self.read(1.0), f"it ended before {pattern!r}: {self.text[-2000:]!r}"

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def code(self) -> int:
        """The exit code, after everything it still says is read."""
        give_up = time.monotonic() + SECONDS
        while self.read(1.0):
            assert time.monotonic() < give_up, self.text[-2000:]
        return self.process.wait(SECONDS)


def run(command: list[str], environment: dict[str, str], columns: int = 80) -> str:
    """All that a command shows; it must end well."""
    with Terminal(command, environment, columns) as shown:
        code = shown.code()
        assert code == 0, shown.text
        return shown.text


def plain(text: str) -> str:
    """Without colours and other sequences of the terminal."""
    return re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
