"""What the benchmarks share: the order of runs, what is reached, what is published, the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, run
from benchmarks.slow_files import mount
from benchmarks.trainings import past
from jobs.run import events

ROOT = Path(__file__).resolve().parents[2]
LINE: dict[str, Any] = {"against": "a peer", "unit": "seconds", "better": "lower", "goal": 1.0}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go, with a command line that asks for them."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks/made.py")])
    return tmp_path


def test_sides_alternate_and_so_does_who_begins(results: Path) -> None:
    order: list[str] = []

    def side(name: str, figure: float) -> Any:
        def measured() -> float:
            order.append(name)
            return figure * len(order)

        return measured

    found = harness.compare("x", "what", side("ours", 1.0), side("peer", 2.0), rounds=3, **LINE)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert (found["raw"]["ours"], found["raw"]["peer"]) == ([1.0, 4.0, 5.0], [4.0, 6.0, 12.0])
    assert found["value"] == 4.0 / 6.0
    assert json.loads((results / "x.json").read_text()) == found


@pytest.mark.parametrize(
    ("better", "value", "reached"),
    [
        ("lower", 0.9, True),
        ("lower", 1.0, True),
        ("lower", 1.1, False),
        ("higher", 1.0, True),
        ("higher", 0.9, False),
    ],
)
@pytest.mark.usefixtures("results")
def test_a_goal_is_reached_on_its_side(better: str, value: float, reached: bool) -> None:
    assert harness.record("x", "what", value, **LINE | {"better": better})["reached"] is reached
    with pytest.raises(ValueError, match="sideways"):
        harness.record("x", "what", value, **LINE | {"better": "sideways"})


@pytest.mark.parametrize(
    ("arguments", "written"), [([], True), (["--rounds", "1"], False), (["--rounds", "1", "--record"], True)]
)
def test_a_quick_look_overwrites_nothing(
    arguments: list[str], written: bool, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "x.json").write_text("published")
    monkeypatch.setattr(sys, "argv", [sys.argv[0], *arguments])
    harness.record("x", "what", 0.5, **LINE)
    assert ((results / "x.json").read_text() != "published") is written


@pytest.mark.usefixtures("results")
def test_a_result_says_what_it_was_measured_on() -> None:
    found = harness.record("x", "what", 0.5, **LINE)
    assert found["machine"]["cpu"]
    assert {"torch", "mmengine", "mmsegmentation"} <= found["machine"]["versions"].keys()
    assert found["command"] == "python benchmarks/made.py"
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12


def result(**fields: Any) -> dict[str, Any]:
    base = {
        "name": "x",
        "what": "a thing",
        "value": 0.5,
        "reached": True,
        "note": "",
        "command": "python x.py",
    }
    return base | LINE | {"machine": {"cpus": 2, "python": "3.11"}} | fields


def test_the_table_says_what_was_measured_and_what_was_not() -> None:
    begin, end = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
    page = f"before\n{begin}\nold\n{end}\nafter"
    new = run.render(
        page,
        [
            result(),
            result(name="y", value=1.5, reached=False, note="so and so"),
            result(name="z", against="", unit="s"),
        ],
        {"x", "w"},
    )
    assert new.startswith(f"before\n{begin}\n| what |")
    assert new.endswith(f"\n\nNot measured yet: w.\n{end}\nafter")
    assert "| a thing | a peer | 0.5× | ≤ 1× | `python x.py` |" in new
    assert "| a thing (so and so) | a peer | 1.5× (not reached) | ≤ 1× |" in new
    assert "| a thing | – | 0.5 s | ≤ 1 s |" in new


def test_the_tables_are_what_the_results_say() -> None:
    page, readme = run.PAGE.read_text(), run.README.read_text()
    assert run.render(page, run.results(), run.names()) == page, "python benchmarks/run.py --render"
    assert run.headline(readme, run.results()) == readme, "python benchmarks/run.py --render"
    assert set(run.HEADLINE) <= {record["name"] for record in run.results()}


def test_every_result_has_a_benchmark_that_makes_it() -> None:
    assert {record["name"] for record in run.results()} <= run.names()
    assert {"step_time", "save_stall", "resume_start", "resume_flat", "pipeline", "evaluation"} <= run.names()


@pytest.mark.parametrize("script", run.scripts())
def test_every_benchmark_has_help_with_examples(script: str) -> None:
    """And measures nothing when it is asked for that."""
    command = [sys.executable, str(ROOT / f"benchmarks/{script}.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"python benchmarks/{script}.py" in shown.partition("examples:")[2]


def test_a_made_past_is_one_that_could_have_been(tmp_path: Path) -> None:
    starts = past.write(tmp_path / "events.jsonl", epochs=30, interruptions=7)
    records = events.read(tmp_path / "events.jsonl")
    for record in records:
        events.check(record)
    names = [record["event"] for record in records]
    assert starts == 8 == names.count("started")
    assert (names.count("epoch"), names.count("validated"), names.count("preempted")) == (30, 3, 7)
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)


def test_what_lies_in_a_slow_directory_is_slow_once(tmp_path: Path) -> None:
    for name in ("checkout/env", "python"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkout/linked").symlink_to(tmp_path / "python")
    places = [tmp_path / "checkout", tmp_path / "checkout/env", tmp_path / "checkout/linked", Path("/usr")]
    assert mount.outermost(places) == [tmp_path / "checkout", tmp_path / "python"]
