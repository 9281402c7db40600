"""What every benchmark shares: alternating runs, medians, ratios against a peer, raw figures as JSON.

A benchmark is a script that calls `compare` (or `record`, where there is nothing to time twice) and can be
run on its own; `benchmarks/run.py` runs them all and renders the README's table from `benchmarks/results/`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def compare(
    name: str,
    what: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    against: str,
    goal: float,
    unit: str,
    better: str,
    rounds: int = 5,
    note: str = "",
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs `ours` and `peer` in turn, `rounds` times each, and records median(ours) / median(peer).

    Both return one figure in `unit` (they time themselves, so that set-up is left out). They alternate, and
    who goes first alternates too, so that a machine that slows down half-way slows both.
    `better` is "lower" or "higher": the side of `goal` on which the ratio should be. `details` (where the
    time goes, say) are kept with the raw figures.
    """
    figures: dict[str, list[float]] = {"ours": [], "peer": []}
    for round_number in range(rounds):
        pair = [("ours", ours), ("peer", peer)]
        for key, run in pair if round_number % 2 == 0 else reversed(pair):
            figures[key].append(run())
    ratio = statistics.median(figures["ours"]) / statistics.median(figures["peer"])
    raw = {**figures, **(details or {})}
    return record(name, what, ratio, against=against, goal=goal, unit=unit, better=better, raw=raw, note=note)


def record(
    name: str,
    what: str,
    value: float,
    *,
    against: str,
    goal: float,
    better: str,
    unit: str = "ratio",
    raw: dict[str, Any] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Writes benchmarks/results/NAME.json and prints it as one line of JSON. Returns the record.

    `value` is the ratio ours / peer (or the plain figure, where `against` is empty).
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better is 'lower' or 'higher', not {better!r}")
    reached = value <= goal if better == "lower" else value >= goal
    result = {
        "name": name,
        "what": what,
        "against": against,
        "value": value,
        "goal": goal,
        "better": better,
        "reached": reached,
        "unit": unit,
        "note": note,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", *sys.argv]),
        "raw": raw or {},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("name", "value", "goal", "better", "reached")}))
    return result


def timed(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
