"""Runs the benchmarks one after the other and renders their results into the README's table (`make bench`).

examples:
  python benchmarks/run.py                 all of them, then the table
  python benchmarks/run.py pipeline        one of them, then the table
  python benchmarks/run.py --render        only the table, from benchmarks/results/
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.harness import RESULTS  # noqa: E402
from jobs.errors import UserError, run_command  # noqa: E402
from jobs.run_directory import write_atomically  # noqa: E402

NOT_BENCHMARKS = {"harness", "run", "__init__"}
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="which benchmarks (default: all)")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the README's table")
    arguments = parser.parse_args()

    there = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NOT_BENCHMARKS)
    if unknown := set(arguments.names) - set(there):
        raise UserError(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    failed = []
    if not arguments.render:
        for name in arguments.names or there:
            print(f"== {name}", flush=True)
            if subprocess.run([sys.executable, f"benchmarks/{name}.py"], cwd=ROOT, check=False).returncode:
                failed.append(name)
    readme = ROOT / "README.md"
    write_atomically(readme, render(readme.read_text(), results()).encode())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def render(readme: str, records: list[dict[str, Any]]) -> str:
    """The README with the table between its two markers made anew. Raises UserError without the markers."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README.md has no {BEGIN} … {END}: put the two markers back")
    lines = ["| what | against | measured | goal | command |", "|---|---|---|---|---|"]
    for record in records:
        sign = "≤" if record["better"] == "lower" else "≥"
        unit = "×" if record["against"] and "×" not in record["unit"] else f" {record['unit']}"
        measured = f"{record['value']:.3g}{unit}"
        if not record["reached"]:
            measured += " (not reached)"
        lines.append(
            f"| {record['what']} | {record['against'] or '–'} | {measured} | {sign} {record['goal']:g}{unit} "
            f"| `{record['command']}` |"
        )
    return f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}"


if __name__ == "__main__":
    run_command(main)
