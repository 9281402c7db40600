"""Runs the benchmarks one after the other and renders their results: the table of docs/benchmarks.md, and the
five figures of the README (`make bench`).

examples:
  python benchmarks/run.py                 all of them, then the table
  python benchmarks/run.py pipeline        one of them, then the table
  python benchmarks/run.py --render        only the table, from benchmarks/results/
"""

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import repository

from benchmarks.harness import RESULTS
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError, run_command

ROOT: Path = repository.ROOT

NOT_BENCHMARKS = {"harness", "repository", "run", "__init__"}
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"

HEADLINE = ("chaos", "ettr_lost", "step_time", "save_stall", "prepare-dataset")
"""The results that the README shows."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="which benchmarks (default: all)")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the tables")
    arguments = parser.parse_args()

    there = scripts()
    unknown = set(arguments.names) - set(there)
    if unknown:
        raise UserError(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    failed = []
    if not arguments.render:
        for name in arguments.names or there:
            print(f"== {name}", flush=True)
            began = time.monotonic()
            if subprocess.run([sys.executable, f"benchmarks/{name}.py"], cwd=ROOT, check=False).returncode:
                failed.append(name)
            print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    write_atomically(PAGE, render(PAGE.read_text(), results(), names()).encode())
    write_atomically(README, headline(README.read_text(), results()).encode())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def scripts() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def names() -> set[str]:
    """The results that there are benchmarks for: what the scripts hand to `compare` and `record` as name."""
    found = set()
    for script in scripts():
        for node in ast.walk(ast.parse((ROOT / f"benchmarks/{script}.py").read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("compare", "record") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return found


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def render(page: str, records: list[dict[str, Any]], expected: set[str]) -> str:
    """The page with the table between its two markers made anew, and the names of results in `expected` that
    are still to be measured below it. Raises UserError without the markers."""
    lines = ["| what | against | measured | goal | command |", "|---|---|---|---|---|"]
    lines += [row(record) for record in records]
    machines = sorted(set(filter(None, map(machine, records))))
    if machines:
        lines += ["", f"Measured on {'; '.join(machines)}."]
    missing = sorted(expected - {record["name"] for record in records})
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return between(page, "benchmarks", lines)


def headline(readme: str, records: list[dict[str, Any]]) -> str:
    """The README with its few figures made anew. Raises UserError without the markers."""
    by_name = {record["name"]: record for record in records}
    lines = ["| what | against | measured | goal |", "|---|---|---|---|"]
    lines += [row(by_name[name]).rpartition("| `")[0] + "|" for name in HEADLINE if name in by_name]
    return between(readme, "headline", lines)


def between(page: str, marker: str, lines: list[str]) -> str:
    """The page with `lines` between the two comments that name the marker. Raises UserError without these."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"there is no {begin} … {end} in the page: put the two markers back")
    return f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}"


def row(record: dict[str, Any]) -> str:
    sign = "≤" if record["better"] == "lower" else "≥"
    unit = "×" if record["against"] and "×" not in record["unit"] else f" {record['unit']}"
    measured = f"{record['value']:.3g}{unit}"
    if not record["reached"]:
        # 1.014 must not look like a goal of 1.01 that was reached.
        measured = f"{record['value']:.4g}{unit} (not reached)"
    what = record["what"] + (f" ({record['note']})" if record["note"] else "")
    return (
        f"| {what} | {record['against'] or '–'} | {measured} | {sign} {record['goal']:g}{unit} "
        f"| `{record['command']}` |"
    )


def machine(record: dict[str, Any]) -> str | None:
    """The machine and the library that count most, of a record that names them."""
    found = record["machine"]
    if "cpu" not in found:
        return None
    torch = found["versions"].get("torch", "not installed")
    return f"{found['cpu']}, {found['cpus']} CPUs, torch {torch}"


if __name__ == "__main__":
    run_command(main)
