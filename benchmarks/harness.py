"""What every benchmark shares: alternating runs, medians, ratios against a peer, raw figures as JSON.

A benchmark is a script that calls `compare` (or `record`, where there is nothing to time twice) and can be
run on its own; `benchmarks/run.py` runs them all and renders the tables from `benchmarks/results/`.

What is published was measured as the script measures by itself: results are written when it was started
without arguments. A quick look (`--rounds 1`) only prints; `--record` writes all the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    *("torch", "numpy", "mmengine", "mmsegmentation", "mmcv-lite", "mmcv", "opencv-python-headless"),
    *("opencv-python", "submitit"),
)
"""Those of them that are installed are named with each result."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's arguments; all have `--record`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--record", action="store_true", help="write benchmarks/results/ although other arguments are given"
    )
    return made


def published() -> bool:
    """Whether this process's figures are to be written: no argument was given, or `--record`."""
    return len(sys.argv) == 1 or "--record" in sys.argv


def restart_with(**variables: str) -> None:
    """Begins this benchmark anew with these environment variables, unless it has them: libraries read them
    when they are imported."""
    if not variables.items() <= os.environ.items():
        os.environ.update(variables)
        os.execv(sys.executable, [sys.executable, *sys.argv])


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
    time goes, say) are kept with the raw figures; what `ours` and `peer` put into them while they run, too.
    """
    figures = alternate({"ours": ours, "peer": peer}, rounds)
    return record(
        name,
        what,
        ratio(figures["ours"], figures["peer"]),
        against=against,
        goal=goal,
        unit=unit,
        better=better,
        raw={**figures, "spread": {side: spread(values) for side, values in figures.items()}}
        | (details or {}),
        note=note,
    )


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The figures of each side, from `rounds` rounds; every second round in the opposite order."""
    figures: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        order = list(sides.items())
        for side, run in order if number % 2 == 0 else reversed(order):
            figures[side].append(run())
    return figures


def ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    return statistics.median(ours) / statistics.median(peer)


def spread(figures: Sequence[float]) -> float:
    """The width of the middle half of some figures (of all, if they are fewer than four), relative to their
    median."""
    if len(figures) < 4:
        return (max(figures) - min(figures)) / statistics.median(figures)
    first, _, third = statistics.quantiles(figures, n=4)
    return (third - first) / statistics.median(figures)


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
    """Prints a result as one line of JSON and, if `published`, writes benchmarks/results/NAME.json.

    `value` is the ratio ours / peer (or the plain figure, where `against` is empty). `note` says in a few
    words what the reader of the table has to know besides. Returns the whole record.
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
        "machine": machine(),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "raw": raw or {},
    }
    shown = {key: result[key] for key in ("name", "value", "goal", "better", "reached")}
    if published():
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    else:
        shown["recorded"] = False
    print(json.dumps(shown), flush=True)
    return result


def machine() -> dict[str, Any]:
    """What the figures depend on: the processor, and the versions of what computes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def commit() -> str | None:
    """The commit that was measured, with `+` if files had been changed since; None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results and the table made of them change while the benchmarks run.
        changed = git(
            "status",
            "--porcelain",
            "--",
            ":/",
            ":!/benchmarks/results",
            ":!/README.md",
            ":!/docs/benchmarks.md",
        )
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def timed(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
