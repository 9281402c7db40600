"""Numbers and times as people read them."""

from __future__ import annotations

import re
import time

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What a terminal obeys instead of showing it: control characters but for tab and newline, marks that turn the
# direction of the text round, separators that end a line; and halves of a character, which cannot be printed.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
WIDEST = 100
"""Characters of a cell of words in a table, at most."""


def safe(text: str) -> str:
    """`text` as it may be printed wherever it comes from: what a terminal would obey is shown as an escape,
    such as \\x1b; colours are left out. Tabs and newlines stay."""
    if text.isascii() and text.isprintable():
        return text
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], _COLOUR.sub("", text))


def gist(text: str) -> str:
    """The line that matters of a text of several: that of the exception, else the first; with the next where
    it ends with a colon."""
    before, traceback, after = text.partition("Traceback (most recent call last):")
    if traceback:
        ends = [line for line in after.splitlines() if line.strip() and not line.startswith(" ")]
        text = before + (ends[-1] if ends else traceback)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def cut(text: str, most: int = WIDEST) -> str:
    """`text` in at most so many characters: its middle is left out, for a file's name often comes last."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


def span(seconds: float | None) -> str:
    """A span: 34 ms, 3.1 s, 42 s, 12 min, 3 h 05 min, 2 d 4 h; "" for None. None is below zero, as between
    the clocks of two machines, or of one that was put right."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if 0 < seconds < 0.095:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(seconds: float | None) -> str:
    """A moment in local time, to the second; "" for None."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else ""


def clock(seconds: float | None, now: float) -> str:
    """A moment near `now`, as short as is clear: 14:05, tomorrow's as Tue 14:05, later with the date."""
    if seconds is None:
        return ""
    local = time.localtime(seconds)
    if abs(seconds - now) < 20 * 3600:
        return time.strftime("%H:%M", local)
    if abs(seconds - now) < 6 * 86400:
        return time.strftime("%a %H:%M", local)
    return time.strftime("%Y-%m-%d %H:%M", local)


def size(count: float) -> str:
    """Bytes: 512 B, 1.3 MB, 532 MB, 1.2 TB (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.1f} {unit}" if unit != "B" and count < 9.95 else f"{count:.0f} {unit}"
        count /= 1000
    raise AssertionError


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
