"""Which images are for training and which for validation: drawn, by groups, or by lists."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from jobs.prepare.own.findings import Finding, error, warning
from jobs.prepare.own.naming import composed
from jobs.prepare.own.sources import SPLITS, Item
from jobs.run.errors import UserError


def split(
    items: list[Item], share: float | None, seed: int | None, group_by: str, lists: tuple[str, str]
) -> tuple[list[Item], list[Finding]]:
    """Assigns each item its split; returns those that have one. Without `share` and `lists`, folders named
    like splits are the splits, else 0.8 is for training. Raises UserError for folders that may be meant as
    splits, and for a seed together with those that are."""
    if lists[0]:
        return by_lists(items, lists)
    found: list[Finding] = []
    if share is None and not group_by:
        tops = {item.name.partition("/")[0] for item in items if "/" in item.name}
        named = {split: called(split, tops) for split in FOLDERS}
        if folders := folders_of(named):
            if seed is not None:
                raise UserError(
                    f"--seed: nothing is drawn, because the folders {'/ and '.join(folders)}/ below "
                    "--images are "
                    "the split: leave it out, or draw from all of them with --split 0.8"
                )
            return by_folders(items, folders)
        refuse_deeper(items)
        alone = [top for tops_of in named.values() for top in tops_of]
        if alone and len(tops) > 1:
            text = f"there is a folder {alone[0]}/ and none for another split: the split is drawn from all"
            found.append(
                warning(
                    "folders mixed",
                    "",
                    text,
                    "--split if so; --train-list, or folders train/ and val/, if not",
                )
            )
    groups, ungrouped = grouped(items, group_by)
    found += ungrouped
    # A pure function of seed and name: the same on every machine, in any order of files.
    order = sorted(groups, key=lambda group: hashlib.blake2b(f"{seed or 0}:{group}".encode()).digest())
    wanted = len(items) * (0.8 if share is None else share)
    taken = 0
    for number, group in enumerate(order):
        members = groups[group]
        # The first group is for training and the last one for validation, whatever their sizes.
        train = number == 0 or (taken + len(members) / 2 <= wanted and number + 1 < len(order))
        taken += len(members) if train else 0
        for item in members:
            item.split = "train" if train else "val"
    return items, found


FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split -> names of its folders, in any case."""


def called(split: str, tops: set[str]) -> list[str]:
    """The folders named like a split; only the exact name if there is one."""
    return [split] if split in tops else sorted(top for top in tops if top.lower() in FOLDERS[split])


def folders_of(named: dict[str, list[str]]) -> dict[str, str]:
    """Folder -> split, if there is one folder for each. Raises UserError if it is unclear which is meant:
    images kept for a test might be trained on. `named`: split -> folders named like it."""
    train, val = (named[split] for split in SPLITS)
    if len(train) == len(val) == 1:
        return {train[0]: "train", val[0]: "val"}
    if sum(map(bool, named.values())) < 2:
        return {}
    there = ", ".join(f"{top}/" for tops_of in named.values() for top in tops_of)
    lacking = next((f"none for {split}" for split in SPLITS if not named[split]), "several for one split")
    raise UserError(
        f"--images: its folders {there} look like a split, with {lacking}: call them train and val, give "
        "--train-list and --val-list, or draw from all of them with --split 0.8"
    )


def refuse_deeper(items: list[Item]) -> None:
    """Raises UserError for split folders below others, as in site1/train and site1/val: their author wants
    validation images to be separate."""
    seen: dict[str, str] = {}
    for item in items:
        parts = item.name.split("/")
        for at, part in enumerate(parts[:-1], 1):
            called_so = (split for split, names in FOLDERS.items() if part.lower() in names)
            for split in called_so if at > 1 else ():
                seen.setdefault(split, "/".join(parts[:at]))
    if len(seen) > 1:
        raise UserError(
            f"--images: its folders {'/, '.join(seen.values())}/ look like a split, below others: give the "
            "folder that they lie in, or --train-list and --val-list, or draw from all with --split 0.8"
        )


def by_folders(items: list[Item], folders: dict[str, str]) -> tuple[list[Item], list[Finding]]:
    found = []
    for item in items:
        top, _, rest = item.name.partition("/")
        item.split = folders.get(top, "")
        # The path includes the split already. A name that starts with a blank would not survive in a list.
        item.folder = top if item.split and rest == rest.strip() else ""
        if not item.split:
            text = f"it lies in neither {'/ nor '.join(folders)}/"
            found.append(warning("in no split", item.image, text, "--split says otherwise"))
    return [item for item in items if item.split], found


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
                        f"--group-by {group_by!r} does not match its name",
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
    # Only names that are unique: without suffix, there may be others in other folders.
    for called_as in (lambda path: path.name, lambda path: path.stem):
        times = Counter(called_as(PurePosixPath(item.name)) for item in items)
        for item in items:
            bare = called_as(PurePosixPath(item.name))
            if times[bare] == 1:
                named.setdefault(bare, item)
    composed_names = {composed(name): item for name, item in named.items()}
    found = []
    for split_name, file in zip(SPLITS, lists, strict=True):
        for name in names_in(Path(file)) if file else []:
            one = named.get(name) or composed_names.get(composed(name))
            if one is None:
                found.append(
                    error(
                        "not there",
                        file,
                        f"it lists {name!r}, which matches no image, or several",
                        "remove it, or write its path below --images",
                    )
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
    """The names in a list, without byte-order mark, Windows line ends and blank lines. Raises UserError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text (UTF-8)") from None
    names = [line.strip().replace("\\", "/") for line in lines]
    if not any(names):
        raise UserError(f"{file} lists no image")
    return [name for name in names if name]
