"""The id lists: parsed strictly, and joined so that no validation image is trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jobs.catalog import sources
from jobs.run.errors import UserError

ID = re.compile(r"[0-9]{4}_[0-9]{6}")


class BadList(UserError):
    """An id list is damaged, or the union of the lists is wrong."""


@dataclass(frozen=True)
class Splits:
    """The sorted ids of every list of the dataset."""

    train: list[str]
    """VOC's own training set."""
    val: list[str]
    trainval: list[str]
    trainaug: list[str]
    """(SBD train ∪ SBD val ∪ VOC train) without VOC val: the guide's list."""
    aug: list[str]
    """SBD without VOC train and val: together with train, the lists that mmseg's config reads."""

    def by_name(self) -> dict[str, list[str]]:
        return {name: getattr(self, name) for name in ("train", "val", "trainval", "trainaug", "aug")}


def parse(content: bytes, where: str) -> list[str]:
    """The ids of a list file. Raises BadList, naming the line, for anything that is not an id."""
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadList(f"{where} begins with a byte-order mark: its first id would be lost; save it as ASCII")
    ids = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        if not ID.fullmatch(text):
            raise BadList(f"{where}, line {number}: {text[:40]!r} is no image id like 2008_000051")
        ids.append(text)
    if not ids:
        raise BadList(f"{where} is empty")
    if len(set(ids)) != len(ids):
        double = next(name for name in ids if ids.count(name) > 1)
        raise BadList(f"{where} lists {double} twice")
    return ids


def join(train: list[str], val: list[str], sbd_train: list[str], sbd_val: list[str]) -> Splits:
    """The five lists, from the four published ones.

    Raises BadList if the four contradict each other, or if they have the real lists' lengths but not the real
    union.
    """
    for name, one, two in (("VOC", train, val), ("SBD", sbd_train, sbd_val)):
        if both := sorted(set(one) & set(two)):
            raise BadList(f"{both[0]} is in {name}'s train list and in its val list")
    sbd = {*sbd_train, *sbd_val}
    splits = Splits(
        train=sorted(train),
        val=sorted(val),
        trainval=sorted([*train, *val]),
        trainaug=sorted((sbd | set(train)) - set(val)),
        aug=sorted(sbd - set(train) - set(val)),
    )
    counts = dict(zip(sources.REAL_COUNTS, map(len, (train, val, sbd_train, sbd_val)), strict=True))
    if counts == sources.REAL_COUNTS:
        check_real(splits)
    return splits


def check_real(splits: Splits) -> None:
    """Raises BadList unless trainaug is, id for id, the commonly used list."""
    found = md5(splits.trainaug)
    if found != sources.REAL_TRAINAUG_MD5:
        raise BadList(
            f"trainaug has {len(splits.trainaug):,} ids with md5 {found}, not the "
            f"{sources.REAL_TRAINAUG:,} of the field's list ({sources.REAL_TRAINAUG_MD5})"
        )


def text(ids: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in ids).encode("ascii")


def md5(ids: Iterable[str]) -> str:
    return hashlib.md5(text(sorted(ids)), usedforsecurity=False).hexdigest()
