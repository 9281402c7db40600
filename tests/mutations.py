"""Files as damage, haste and malice leave them: seeded mutations of good ones."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

VALUES = (
    *(b"null", b"[]", b"{}", b'""', b'"x"', b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"1.5"),
    *(b"99999999999999999999", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b'"\\ud800"', b'"\\u0000"'),
    *(b"\xff\xfe", b"'2026-13-45T99:99:99Z'", b'"../../../etc/passwd"', b"&a [*a]"),
    b"!!python/object:os.system",
)  # fmt: skip
TOKEN = re.compile(rb"\"(?:[^\"\\]|\\.)*\"|-?\d+(?:\.\d+)?|\b[a-z_A-Z]+\b")


def mutations(good: bytes, number: int, seed: int, text: bool) -> Iterator[bytes]:
    """`number` variants of a file; of `text` also with other values in the place of its own."""
    dice = random.Random(seed)
    ways = [_flipped, _cut, _doubled, _filled, _inserted, _swapped, _edges]
    for _ in range(number):
        content = good
        for _ in range(dice.choice((1, 1, 1, 2, 5))):
            way = dice.choice([*ways, *([_revalued] * 6 if text else [])])
            content = way(content, dice)
        yield content


def _place(content: bytes, dice: random.Random) -> tuple[int, int]:
    one, two = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    return one, min(two, one + dice.choice((1, 2, 4, 64, 512, 1 << 20)))


def _flipped(content: bytes, dice: random.Random) -> bytes:
    if not content:
        return content
    at = dice.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]


def _cut(content: bytes, dice: random.Random) -> bytes:
    one, two = _place(content, dice)
    return dice.choice((content[:one], content[one:], content[:one] + content[two:]))


def _doubled(content: bytes, dice: random.Random) -> bytes:
    one, two = _place(content, dice)
    return content[:two] + content[one:]


def _filled(content: bytes, dice: random.Random) -> bytes:
    one, two = _place(content, dice)
    return content[:one] + dice.choice((b"\0", b"\xff", b"\x80", b"-", b" ")) * (two - one) + content[two:]


def _inserted(content: bytes, dice: random.Random) -> bytes:
    one, _ = _place(content, dice)
    return content[:one] + dice.randbytes(dice.choice((1, 2, 4, 8, 100))) + content[one:]


def _swapped(content: bytes, dice: random.Random) -> bytes:
    one, two = _place(content, dice)
    return content[:one] + content[one:two][::-1] + content[two:]


def _edges(content: bytes, dice: random.Random) -> bytes:
    """A number of two, four or eight bytes at one of its extremes."""
    one, _ = _place(content, dice)
    number = dice.choice((0, 1, -1, 0x7F, 0x80, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 1 << 62, -(1 << 31)))
    size = dice.choice((2, 4, 8))
    packed = (number % (1 << 8 * size)).to_bytes(size, dice.choice(("little", "big")))
    return content[:one] + packed + content[one + size :]


def _revalued(content: bytes, dice: random.Random) -> bytes:
    tokens = list(TOKEN.finditer(content))
    if not tokens:
        return content
    token = dice.choice(tokens)
    return content[: token.start()] + dice.choice(VALUES) + content[token.end() :]


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in a body that takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attack(
    good: bytes,
    read: Callable[[bytes], object],
    allowed: tuple[type[Exception], ...],
    number: int,
    *,
    text: bool,
    seed: int = 0,
) -> int:
    """Has `read` read every mutation: it may raise what is `allowed`, in one line, and nothing else, soon.

    Returns how many were refused.
    """
    read(good)
    refused = 0
    for content in mutations(good, number, seed, text):
        try:
            with in_time(20):
                read(content)
        except allowed as error:
            said = str(error)
            refused += 1
        except BaseException:
            print(f"the mutation: {content[:3000]!r}")
            raise
        else:
            continue
        assert "\n" not in said, content[:3000]
    return refused
