"""Which images are trained on and which are validated on: drawn, by groups, or by lists."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from jobs.prepare.own.findings import Finding, error, warning
from jobs.prepare.own.sources import SPLITS, Item
from jobs.run.errors import UserError


def split(
    items: list[Item], share: float | None, seed: int, group_by: str, lists: tuple[str, str]
) -> tuple[list[Item], list[Finding]]:
    """Gives each item its split; returns those that have one. Without a share and lists, folders named train
    and val are the splits, else 0.8 are trained on."""
    if lists[0]:
        return by_lists(items, lists)
    tops = {item.name.split("/")[0] for item in items}
    if share is None and not group_by and tops >= set(SPLITS):
        for item in items:
            top = item.name.split("/")[0]
            item.split = top if top in SPLITS else ""
        left = [
            warning("in no split", item.image, "it lies in neither train/ nor val/", "--split says otherwise")
            for item in items
            if not item.split
        ]
        return [item for item in items if item.split], left
    groups, found = grouped(items, group_by)
    # A pure function of seed and name: the same on every machine and in whatever order the files lie.
    order = sorted(groups, key=lambda group: hashlib.blake2b(f"{seed}:{group}".encode()).digest())
    wanted = len(items) * (0.8 if share is None else share)
    taken = 0
    for number, group in enumerate(order):
        members = groups[group]
        # The first group is trained on and the last one validated on, whatever their sizes.
        train = number == 0 or (taken + len(members) / 2 <= wanted and number + 1 < len(order))
        taken += len(members) if train else 0
        for item in members:
            item.split = "train" if train else "val"
    return items, found


def grouped(items: list[Item], group_by: str) -> tuple[dict[str, list[Item]], list[Finding]]:
    groups: dict[str, list[Item]] = {}
    found = []
    for item in items:
        key = item.name
        if group_by:
            match = re.search(group_by, item.name)
            if match is None:
                found.append(
                    error(
                        "in no group",
                        item.image,
                        f"--group-by {group_by!r} finds nothing in its name",
                        "change it",
                    )
                )
            else:
                key = "\n".join(one or "" for one in (match.groups() or (match.group(),)))
        groups.setdefault(key, []).append(item)
    return groups, found


def by_lists(items: list[Item], lists: tuple[str, str]) -> tuple[list[Item], list[Finding]]:
    named: dict[str, Item] = {}
    for item in items:
        named[item.name] = item
        named.setdefault(item.stem, item)
    bare = Counter(PurePosixPath(item.name).name for item in items)
    for item in items:
        own = PurePosixPath(item.name)
        if bare[own.name] == 1:
            named.setdefault(own.name, item)
            named.setdefault(own.stem, item)
    found = []
    for split_name, file in zip(SPLITS, lists, strict=True):
        for name in names_in(Path(file)) if file else []:
            one = named.get(name)
            if one is None:
                found.append(
                    error("not there", file, f"it lists {name!r}, and no image has that name", "remove it")
                )
            elif one.split and one.split != split_name:
                found.append(
                    error("in both lists", file, f"{name} is in the other list too", "remove it from one")
                )
            else:
                one.split = split_name
    if not lists[1]:
        for item in items:
            item.split = item.split or "val"
    return [item for item in items if item.split], found


def names_in(file: Path) -> list[str]:
    """The names of a list; a byte-order mark, Windows' line ends and blank lines do not count."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text (UTF-8)") from None
    names = [line.strip().replace("\\", "/") for line in lines]
    if not any(names):
        raise UserError(f"{file} lists no image")
    return [name for name in names if name]
