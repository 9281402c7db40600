"""Writes a run's report: one HTML file with curves, starts, where the time went, the evaluation and pictures.

The file needs no network and no other file. Every evaluation writes it; this command rewrites it.
"""

import json
import shlex
import sys
from pathlib import Path

import checkout

from jobs.run import output
from jobs.run.errors import UserError
from launch.observe import ending, sweeps, wording
from launch.observe.report import comparison, groups
from launch.observe.report import data as report_data
from launch.observe.report import page as report_page
from launch.submit import runs

EXAMPLES = """\
  python launch/report.py first                                writes RUN/report.html
  python launch/report.py first --out /tmp/first.html
  python launch/report.py --compare first second third         several runs on one page
  python launch/report.py --compare lr-sweep --table latex     a sweep's groups, as a table for a paper
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name or path")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="runs, or a sweep, to compare"
    )
    parser.add_argument(
        "--table", choices=sorted(groups.FORMATS), help="with --compare: print the table in this format"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="where to (default RUN/report.html; with --compare comparison.html beside the runs)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args()
    if arguments.table and arguments.json:
        raise UserError(f"--table {arguments.table} is text: for a program use --table csv, without --json")
    names = list(dict.fromkeys([*([arguments.run] if arguments.run else []), *arguments.compare]))
    if not names:
        parser.error("name a run, or several with --compare")
    if arguments.table and not arguments.compare:
        raise UserError(f"--table {arguments.table} compares several runs: name them with --compare")
    chosen = sweeps.find(names) if arguments.compare else [runs.find(names[0])]
    if arguments.out:
        arguments.out = output.check_file(arguments.out, "--out")
        if not arguments.out.parent.is_dir():
            raise UserError(f"--out {arguments.out}: there is no directory {arguments.out.parent}")
    found = report_data.gather(chosen)
    if arguments.compare:
        found = comparable(found)
    if arguments.table:
        return print_table(found, arguments.table, arguments.out)
    if arguments.compare:
        html, out = comparison.comparison(found), arguments.out or runs.runs_root() / "comparison.html"
    else:
        html, out = report_page.page(found[0]), arguments.out or found[0].run.report
    if arguments.out and not may_replace(out):
        raise UserError(f"--out {out} already exists and is not a report: choose another name")
    ending.write(out, html)
    if arguments.json:
        print(json.dumps({"report": str(out), "bytes": len(html.encode())}))
    else:
        print(f"wrote {out} ({wording.size(len(html.encode()))}); open it in any browser")
        if not arguments.compare:
            named = shlex.quote(names[0])
            print(f"next: python launch/report.py --compare {named} RUN compares it with another")
    return 0


def comparable(found: list[report_data.Data]) -> list[report_data.Data]:
    """The runs whose request could be read. Raises UserError if there are fewer than two."""
    for data in found:
        if data.request is None:
            print(f"note: {data.run.name} is left out: {data.problems[-1]}", file=sys.stderr)
    found = [data for data in found if data.request is not None]
    if len(found) < 2:
        raise UserError("--compare needs two runs or more")
    return found


def print_table(found: list[report_data.Data], form: str, out: Path | None) -> int:
    them = groups.grouped(found)
    text = groups.FORMATS[form](them)
    for note in groups.repeated(them):
        print(f"note: {note}", file=sys.stderr)
    if out is None:
        print(text, end="")
    elif out.exists():
        raise UserError(f"--out {out} is there already: choose another name")
    else:
        ending.write(out, text)
    return 0


def may_replace(file: Path) -> bool:
    """Whether a report may be written there: nothing but an earlier report of ours would be lost."""
    try:
        with file.open("rb") as content:
            head = content.read(4096)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not head or f'<meta name="generator" content="{report_page.GENERATOR}">'.encode() in head


if __name__ == "__main__":
    checkout.run(main)
