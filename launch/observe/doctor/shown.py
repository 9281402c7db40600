"""Findings on the terminal, the worst in colour, or as JSON."""

from __future__ import annotations

import json
import os
import sys

import msgspec

from launch.observe import tables, wording
from launch.observe.doctor.findings import Finding

PROBE = "python launch/doctor.py --submit-probe --write-profile mine"


def show(
    found: list[Finding], as_json: bool, written: str = "", name: str = "", following: str = PROBE
) -> int:
    """Prints them; returns the exit code. `following`: the command that comes next if nothing is wrong."""
    if as_json:
        print(json.dumps({"findings": msgspec.to_builtins(found), "profile": written or None}))
        return 0
    colours = {"good": tables.GREEN, "note": tables.CYAN, "warning": tables.YELLOW, "bad": tables.BOLD_RED}
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for one in found:
        head = wording.safe(f"{one.level:8} {one.topic}: {one.found}")
        tables.control(f"{tables.paint(head, colours[one.level], coloured)}\n")
        print(f"         {one.means}")
        if one.fix:
            print(f"         fix: {one.fix}")
    worst = sum(1 for one in found if one.level == "bad")
    print()
    if written:
        print(f"wrote {written}; next: python launch/train.py --cluster {name} --dry-run")
    elif worst:
        prevent = "prevents" if worst == 1 else "prevent"
        print(f"{worst} of {len(found)} findings {prevent} a run; each says how to fix it")
    else:
        print(f"nothing prevents a run; next: {following}")
    return 0
