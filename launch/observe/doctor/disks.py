"""What the node's file systems, as the probe has measured them, mean for a dataset: whether packing it into
one file and staging that to the node pay off."""

from __future__ import annotations

from typing import Any

from jobs.catalog.recipes import VOC_FILES
from jobs.run.file_systems import IN_MEMORY, OVER_A_NETWORK
from launch.observe import wording
from launch.observe.doctor.findings import Finding

OPENED = 21_164
"""Files that an epoch of the recipe opens: an image and a mask for each of 10,582."""
PACKED_BYTES = 3e9
"""Upper bound of the size of the recipe's packed dataset."""
LONG = 10.0
"""Acceptable seconds per epoch for opening its files."""
SLOW = 0.5
"""Staging pays off if the shared file system is slower than this fraction of the node's own disk."""


def meaning(host: str, seen: dict[str, Any]) -> list[Finding]:
    """Findings from the `files` in a probe's answer (jobs/probe.py, measured_files)."""
    seconds = OPENED / seen["opens"]
    return [_shared(host, seen, seconds), *_quota(seen["left"]), _own(host, seen, seconds)]


def _shared(host: str, seen: dict[str, Any], seconds: float) -> Finding:
    found = f"{host} opens {seen['opens']:,.0f} of them a second{_speed(seen)} ({seen['kind']})"
    if seconds < LONG:
        means = f"an epoch of the recipe opens its files in {seconds:.1f} s: packing saves little time"
        return Finding("files on the nodes", "good", found, means)
    means = (
        f"an epoch of the recipe opens {OPENED:,} files, {wording.span(seconds)} one by one: packing pays off"
    )
    return Finding(
        "files on the nodes", "warning", found, means, "python launch/prepare.py --pack makes them one file"
    )


def _quota(left: list[int | None]) -> list[Finding]:
    """What is left of the quotas; nothing where no limit is known."""
    size, files = left
    parts = [
        f"{wording.size(size)}" if size is not None else "",
        f"{files:,} files" if files is not None else "",
    ]
    text = " and ".join(part for part in parts if part)
    if files is not None and files < VOC_FILES:
        means = f"the prepared dataset of the recipe is {VOC_FILES:,} files"
        return [Finding("room", "warning", f"{text} are left", means, "python launch/prepare.py --pack: ten")]
    return [Finding("room", "good", f"{text} are left", "for runs and datasets")] if text else []


def _own(host: str, seen: dict[str, Any], seconds: float) -> Finding:
    topic, places = "the nodes' own disks", seen["places"]
    if wrong := next((one["error"] for one in places.values() if "error" in one), ""):
        return Finding(
            topic, "warning", wrong, "a training reads the shared file", "another `stage` in the profile"
        )
    good = {
        path: one
        for path, one in places.items()
        if one["kind"] not in OVER_A_NETWORK and one["read"] and one["room"] >= PACKED_BYTES
    }
    if not good:
        seen_there = ", ".join(
            f"{path} ({one['kind']}, {wording.size(one['room'])})" for path, one in places.items()
        )
        return Finding(
            topic, "note", f"{host} has none with room: {seen_there or 'nothing found'}",
            "trainings read the shared file", "`stage` in the profile, if there is one elsewhere",
        )  # fmt: skip
    # Prefer a disk to memory, which the job needs.
    path = min(good, key=lambda path: good[path]["kind"] in IN_MEMORY)
    one = good[path]
    found = f"{host} has {path} with room for {wording.size(one['room'])}{_speed(one)} ({one['kind']})"
    slow = bool(seen["read"]) and seen["read"] < SLOW * one["read"]
    if slow or seconds >= LONG:
        means = "staging a packed dataset there pays off"
        return Finding(
            topic, "note", found, means, f"stage: {path} in the profile, or train.py --stage '{path}'"
        )
    return Finding(topic, "good", found, "the shared file system is as fast: staging there saves little")


def _speed(one: dict[str, Any]) -> str:
    return f" and reads {one['read'] / 1e6:,.0f} MB/s" if one["read"] else ""
