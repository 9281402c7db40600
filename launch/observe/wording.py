"""Numbers, times and text formatted for people."""

from __future__ import annotations

import re
import time

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What a terminal obeys instead of showing it: control characters except tab and newline, marks that change
# the direction of text, line separators; and lone surrogates, which cannot be printed.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
WIDEST = 100
"""The most characters of a prose cell in a table."""


def safe(text: str) -> str:
    """`text` of any origin, made safe to print: what a terminal would obey is shown as an escape, such as
    \\x1b; colours are removed; tabs and newlines stay."""
    if text.isascii() and text.isprintable():
        return text
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], _COLOUR.sub("", text))


def gist(text: str) -> str:
    """The line that matters in a text: that of the exception, else the first; with the next line if it ends
    with a colon."""
    before, traceback, after = text.partition("Traceback (most recent call last):")
    if traceback:
        ends = [line for line in after.splitlines() if line.strip() and not line.startswith(" ")]
        text = before + (ends[-1] if ends else traceback)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def cut(text: str, most: int = WIDEST) -> str:
    """`text` in at most so many characters, without its middle: a file name often comes last."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


def span(seconds: float | None) -> str:
    """A duration: 34 ms, 3.1 s, 42 s, 12 min, 3 h 05 min, 2 d 4 h; "" for None. Negative ones, as from clocks
    that differ or were adjusted, count as 0."""
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
    """A time stamp in local time, to the second; "" for None."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else ""


def clock(seconds: float, now: float) -> str:
    """A time near `now`: 14:05 if within 20 hours, Tue 14:05 within 6 days, otherwise with the date."""
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
