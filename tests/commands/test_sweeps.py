"""Sweeps by the commands: train.py makes them, status.py folds them, report.py compares their groups."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run.directory import Run
from launch.observe.report.data import repeat_command
from tests.support.terminal import Terminal
from tests.unit.fake_slurm import Site, one_line
from tests.unit.made_runs import common, made_run, started, write, write_progress
from tests.unit.test_groups import grid
from tests.unit.test_identity import row

ROOT = Path(__file__).resolve().parents[2]


def call(runs: Path, script: str, *arguments: object, code: int = 0) -> str:
    """What a command says: on standard output, or, where it is to end with an error, on the other."""
    done = subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"BATON_RUNS": str(runs)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


TRAIN = ("train", "--config", "tests/support/configs/tiny.py", "--cluster", "slurm")


def test_a_grid_of_runs_is_made(tmp_path: Path) -> None:
    axes = ["--sweep", "optim_wrapper.optimizer.lr=0.1,0.2", "--seeds", "0,7"]
    told = call(tmp_path, *TRAIN, *axes, "--run", "g", "--no-submit", "--json")
    assert [one["run"] for one in json.loads(told)] == [f"g-{number}" for number in range(4)]
    found = [Run(tmp_path / f"g-{number}").request() for number in range(4)]
    assert [(one.seed, one.set["randomness.seed"]) for one in found] == [(0, 0), (7, 7)] * 2
    assert [one.set["optim_wrapper.optimizer.lr"] for one in found] == [0.1, 0.1, 0.2, 0.2]
    assert {one.sweep for one in found} == {"g"}
    assert "#SBATCH --array=0-3" in (tmp_path / "g-3/job/train.sbatch").read_text()
    # The script of a dry run makes the same runs, each element its own.
    shown = call(tmp_path, *TRAIN, *axes, "--run", "h", "--dry-run")
    assert "--seeds=0,7" in shown
    assert "--sweep=optim_wrapper.optimizer.lr=0.1,0.2" in shown
    repeated = repeat_command(found[3])
    assert repeated[-4:] == ["--set", "optim_wrapper.optimizer.lr=0.2", "--set", "randomness.seed=7"]


@pytest.mark.parametrize(("given", "used"), [([], 3), (["--seed", "0"], 0), (["--seed", "7"], 7)])
def test_a_seed_that_is_given_goes_before_the_configs(tmp_path: Path, given: list[str], used: int) -> None:
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = {str(ROOT / TRAIN[2])!r}\nrandomness = dict(seed=3)\n")
    call(tmp_path, *TRAIN, "--config", config, *given, "--run", "one", "--no-submit")
    request = Run(tmp_path / "one").request()
    assert request.set.get("randomness.seed", 3) == used
    assert request.seed == (used if given else 0)


@pytest.mark.parametrize(
    "axes", [["--sweep", "optim_wrapper.optimizer.lr=0.1,0.2"], []], ids=["sweep", "run"]
)
def test_the_evaluation_is_shown_of_a_training_that_has_begun(axes: list[str], tmp_path: Path) -> None:
    """Whose job has been submitted by hand, and made the run, while the user asks for the second script."""
    call(tmp_path, *TRAIN, *axes, "--run", "mine", "--no-submit")
    script = call(tmp_path, *TRAIN, *axes, "--run", "mine", "--dry-run=evaluate")
    assert "-m jobs.evaluate" in script
    assert "is taken" in call(tmp_path, *TRAIN, *axes, "--run", "mine", "--dry-run", code=2)


def test_options_of_a_sweep_without_one(tmp_path: Path) -> None:
    said = call(tmp_path, *TRAIN, "--zip", "--no-submit", code=2)
    assert said.startswith("error: --zip pairs the values of several --sweep")
    assert "it takes no --seeds" in call(tmp_path, *TRAIN, "--resume", "x", "--seeds", "1", code=2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 runs: a sweep of 60 and 140 others, of which two have failed long ago."""
    runs = tmp_path_factory.mktemp("runs")
    for number in range(60):
        run = made_run(runs / f"grid-{number}", sweep="grid")
        write(run, 5000, "submitted", stage="train", job=f"local-{number}", executor="local", element=number)
        started(run, 5001, 1, job=f"local-{number}")
        write(run, 5060, "finished", step=9, epoch=1, **common(1, f"local-{number}"))
    for number in range(140):
        run = made_run(runs / f"single-{number:03d}")
        write(run, number, "submitted", stage="train", job=f"local-9{number}", executor="local")
        end = "stopped" if number in (3, 77) else "finished"
        fields: dict[str, Any] = (
            {"reason": "a very long reason that no screen has the room for" * 3} if end == "stopped" else {}
        )
        write(run, number + 1, end, **(fields or {"step": 9, "epoch": 1}), **common(1, f"local-9{number}"))
    return runs


def test_sweeps_are_folded_and_unfolded(many: Path) -> None:
    names = [line.split()[0] for line in call(many, "status").splitlines()]
    assert names[1] == "grid"
    assert sum(name.startswith("grid") for name in names) == 1
    assert sum(name.startswith("single") for name in names) == 140
    assert sum(line.startswith("grid-") for line in call(many, "status", "--all").splitlines()) == 60
    elements = [
        line.split()[0] for line in call(many, "status", "grid").splitlines() if line.startswith("grid-")
    ]
    assert elements == [f"grid-{number}" for number in range(60)]
    found = json.loads(call(many, "status", "--json"))["runs"]
    assert len(found) == 200, "a script sees them all"
    assert {one["sweep"] for one in found} == {"", "grid"}


@pytest.mark.parametrize(("columns", "height"), [(80, 24), (100, 40), (200, 50)])
def test_watch_fits_on_the_screen(columns: int, height: int, many: Path) -> None:
    """What needs somebody is there, although it is old."""
    command = [sys.executable, str(ROOT / "launch/status.py"), "--watch", "0.1"]
    # A size that the surroundings name would win over the terminal's.
    named = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
    environment = named | {"BATON_RUNS": str(many), "NO_COLOR": "1"}
    with Terminal(command, environment, columns, height) as terminal:
        terminal.until(r"one run: (.|\n)*one run: ")
    clear = "\x1b[2J\x1b[H"
    screen = terminal.text.split(clear)[1].replace("\r", "")
    lines = screen.splitlines()
    assert height - 5 < len(lines) < height
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("200 runs: 2 stopped, 198 finished")
    text = "\n".join(lines)
    assert "grid (60 runs)" in text
    assert "single-003" in text
    assert "single-077" in text
    assert re.search(r"^\d+ more lines: \d+ finished; python launch/status.py lists all$", text, re.MULTILINE)


def test_tables_for_papers(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for run in grid(runs, {0.1: 0.7, 0.2: 0.8}):
        request = run.request()
        request.sweep = "g"
        run.write_request(request)
    markdown = call(runs, "report", "--compare", "g", "--table", "markdown")
    assert len({line.count("|") for line in markdown.splitlines()}) == 1
    assert re.search(
        r"^\| optim_wrapper\.optimizer\.lr=0\.2 \| 3 \| \d\d\.\d\d ± \d\.\d\d \|", markdown, re.M
    )
    latex = call(runs, "report", "--compare", "g", "--table", "latex")
    assert r"optim\_wrapper.optimizer.lr=0.2 & 3 & " in latex
    assert r"$\pm$" in latex
    table = list(csv.DictReader(io.StringIO(call(runs, "report", "--compare", "g", "--table", "csv"))))
    assert [row["runs"] for row in table] == ["3", "3"]
    assert float(table[0]["mIoU mean"]) > float(table[1]["mIoU mean"])
    assert float(table[0]["mIoU std"]) > 0
    assert table[0]["difference"] == ""
    assert float(table[1]["low"]) < float(table[1]["difference"]) < float(table[1]["high"]) < 0
    assert re.search(r"lr=0\.1 \|.*\| -\d+\.\d\d \| -\d+\.\d\d … -\d+\.\d\d \| 0\.\d{3} \|$", markdown, re.M)
    out = tmp_path / "table.tex"
    call(runs, "report", "--compare", "g", "--table", "latex", "--out", out)
    assert out.read_text() == latex
    assert "is there already" in call(
        runs, "report", "--compare", "g", "--table", "latex", "--out", out, code=2
    )
    nowhere = call(runs, "report", "--compare", "g", "--table", "csv", "--out", "/nowhere/t.csv", code=2)
    assert nowhere == "error: --out /nowhere/t.csv: there is no directory /nowhere\n"
    both = call(runs, "report", "--compare", "g", "--table", "csv", "--json", code=2)
    assert both.startswith("error: --table csv is text")
    assert "name them with --compare" in call(runs, "report", "g-0", "--table", "csv", code=2)


def test_a_run_of_a_newer_version_is_left_out_of_a_comparison(tmp_path: Path) -> None:
    """What it was asked for is not known, so it would be a group of its own with nothing in it."""
    runs = tmp_path / "runs"
    _, second, third = grid(runs, {0.1: 0.7})
    with third.request_file.open("a") as file:
        file.write("horizon: 3\n")
    command = [sys.executable, "launch/report.py", "--table", "csv", "--compare", "g-0", "g-1", "g-2"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"BATON_RUNS": str(runs)}, capture_output=True, text=True
    )
    assert [row["runs"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["2"]
    assert done.stderr == (
        f"note: g-2 is left out: {third.request_file} has a field 'horizon' that this version does not know: "
        "it was written by a newer version; use that one\n"
    )
    second.request_file.write_text("name: [\n")
    told = call(runs, "report", "--compare", "g-0", "g-1", "g-2", code=2)
    assert told.endswith("error: --compare needs two runs or more\n")
    assert "note: g-1 is left out" in told


def test_the_page_has_the_groups(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    grid(runs, {0.1: 0.7, 0.2: 0.8})
    page = tmp_path / "page.html"
    call(runs, "report", "--compare", *[f"g-{number}" for number in range(6)], "--out", page)
    text = page.read_text()
    assert "<h2>Groups</h2>" in text
    assert re.search(r"optim_wrapper\.optimizer\.lr=0\.2</td>.*?3</td>", text)
    assert "Paired bootstrap" in text
    assert "images and seeds" in text


def test_a_run_is_not_hidden_by_a_sweep_of_its_name(tmp_path: Path) -> None:
    for name, sweep in (("lr", ""), ("lr-0", "lr"), ("lr-1", "lr")):
        made_run(tmp_path / name, sweep=sweep)
    assert json.loads(call(tmp_path, "status", "lr", "--json"))["name"] == "lr"


LR = "optim_wrapper.optimizer.lr=0.1,0.2"


def test_a_sweep_that_was_only_made_is_submitted_as_it_says(site: Site) -> None:
    tiny = ("--config", "tests/support/configs/tiny.py", "--cluster", "local")
    made = site("train", *tiny, "--sweep", LR, "--run", "g", "--no-submit")
    assert "to submit all: for run in g-0 g-1; do python launch/train.py --resume $run; done\n" in made.stderr
    assert "next: python launch/train.py --resume g-1\n" in site("status", "g-1").stdout


def test_a_sweeps_name_is_all_of_its_runs_or_they_are_named(site: Site) -> None:
    """Cancelled together: none is waited for while another one has not been told."""
    rows = []
    for number in range(2):
        run = made_run(site.runs / f"lr-{number}", sweep="lr")
        write(run, 0, "submitted", stage="train", job=str(12 + number), executor="slurm", nodes=1, ranks=1)
        rows.append(row(f"{run.path}/job/train.sbatch", run.name, number=str(12 + number)))
    told = f'grep -q ^scancel {site.log} || printf "%s\\n" ' + " ".join(map(shlex.quote, rows))
    site.command("squeue", told)
    one_line(site("logs", "lr"), "lr is a sweep of 2 runs, lr-0 … lr-1: name one of them")
    for command in (["evaluate", "lr"], ["train", "--resume", "lr"], ["report", "lr"]):
        one_line(site(*command), "name one of them")
    assert json.loads(site("clean", "lr", "--json").stdout)["skipped"][1][0] == "lr-1"
    done = site("cancel", "lr", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        {"run": f"lr-{number}", "jobs": [str(12 + number)], "left": []} for number in range(2)
    ]
    assert site.calls("scancel") == ["scancel 12 13"], "one call, however many runs the sweep has"
    assert json.loads(site("cancel", "lr-1", "lr-0", "--json").stdout)[0]["run"] == "lr-1"
    assert json.loads(site("cancel", "lr-1", "--json").stdout)["jobs"] == []


def test_a_run_and_a_sweep_have_no_name_in_common(tmp_path: Path) -> None:
    """`cancel.py lr` would end the one instead of the other."""
    made_run(tmp_path / "lr-0", sweep="lr")
    made_run(tmp_path / "one")
    said = call(tmp_path, *TRAIN, "--run", "lr", "--no-submit", code=2)
    assert said == "error: --run lr is a sweep's name, of lr-0 and others: choose another\n"
    said = call(tmp_path, *TRAIN, "--seeds", "0,1", "--run", "one", "--no-submit", code=2)
    assert said == "error: 'one' is the name of a run, and would mean that one: choose another --run\n"


def test_a_sweep_that_was_never_submitted_is_one_line_too(tmp_path: Path) -> None:
    """--no-submit makes one, and a launcher that is killed."""
    for name, sweep in (("g-0", "g"), ("g-1", "g"), ("one-1", "")):
        made_run(tmp_path / name, sweep=sweep)
    shown = [line.split("  ")[:2] for line in call(tmp_path, "status").splitlines()[1:3]]
    assert shown == [["g (2 runs)", "2 not submitted"], ["one-1", ""]]


def test_what_is_left_of_a_run_is_called_that(tmp_path: Path) -> None:
    gone, half = made_run(tmp_path / "gone"), made_run(tmp_path / "half")
    write_progress(gone, 1, step=5)
    half.request_file.unlink()
    made_run(tmp_path / "s-0", sweep="s")
    assert "events.jsonl is gone or damaged" in call(tmp_path, "status", "gone")
    assert "half has no run.yaml, so it is not a run" in call(tmp_path, "status", "half", code=2)
    assert "s is a sweep of a single run: name s-0" in call(tmp_path, "logs", "s", code=2)


def test_slurm_is_asked_once_about_all_runs_of_a_sweep(site: Site) -> None:
    for number in range(4):
        run = made_run(site.runs / f"lr-{number}", sweep="lr")
        write(run, 0, "submitted", stage="train", job=f"12_{number}", executor="slurm", element=number)
    said = ["4 of 4 runs had no job that was queued or running", "how they stand: python launch/status.py lr"]
    assert site("cancel", "lr").stdout.splitlines() == said
    assert len(site.calls("squeue")) == 1
    site.log.write_text("")
    assert site("report", "--compare", "lr").returncode == 0
    assert (len(site.calls("squeue")), len(site.calls("sacct"))) == (1, 2)


def test_one_job_that_slurm_will_not_cancel_keeps_no_other_going(site: Site) -> None:
    rows = []
    for name, job in (("a", "12"), ("b", "13"), ("c", "14")):
        run = made_run(site.runs / name)
        write(run, 0, "submitted", stage="train", job=job, executor="slurm", nodes=1, ranks=1)
        rows.append(row(f"{run.path}/job/train.sbatch", name, number=job))
    site.command("squeue", "printf '%s\\n' " + " ".join(map(shlex.quote, rows)))
    refused = 'echo "scancel: error: Kill job error on job id 13: Access/permission denied" >&2; exit 1'
    site.command("scancel", f'case "$*" in *13*) {refused};; esac')
    done = site("cancel", "a", "b", "c", "--now", "--json")
    one_line(done, "cannot cancel 13", "only the user who submitted them can")
    assert [one["run"] for one in json.loads(done.stdout)] == ["a", "c"]
    assert site.calls("scancel")[1:] == ["scancel 12", "scancel 13", "scancel 14"]
    assert [(site.runs / name / "job/cancelled").exists() for name in "abc"] == [True, False, True]


def test_one_that_cannot_be_cancelled_keeps_no_other_going(site: Site) -> None:
    (made_run(site.runs / "a").events).mkdir()
    made_run(site.runs / "b")
    done = site("cancel", "a", "b")
    assert done.returncode == 2
    assert done.stderr.startswith("error: a is unreadable")
    assert done.stdout.startswith("b: none of its jobs was queued")
    done = site("cancel", "a", "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
