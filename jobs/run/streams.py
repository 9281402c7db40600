"""Output whose failure must not end the process."""

from __future__ import annotations

import contextlib
from typing import Any


class TolerantStream:
    """Standard output or error whose writes never raise: a log on a full disk must not end a training."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
