"""A run that goes by another metric than mIoU is shown by that one: in tables, reports, comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.engine import checkpoints
from jobs.engine.saving import Settings
from jobs.run import metrics, story
from jobs.run.directory import Run
from jobs.run.metrics import Figure
from jobs.slurm.queries import Answer
from jobs.worker import Worker
from launch.observe import figures, folding, history, overview, states, tables, waiting
from launch.observe.report import comparison, groups
from launch.observe.report import data as report_data
from launch.observe.report import page as report_page
from launch.observe.tracking import content
from tests.unit.made_runs import T0, common, made_run, started, submitted, write, write_progress


def trained(
    path: Path, *found: dict[str, float], evaluated: dict[str, float] | None = None, **more: Any
) -> Run:
    """A run with a validation each 10 steps; `more`: fields of these events, and of the request by name."""
    request = {key: more.pop(key) for key in ("set", "seed", "worker") if key in more}
    run = made_run(path, **request)
    submitted(run)
    started(run, 1, 1)
    for number, told in enumerate(found, 1):
        write(run, 20 * number, "validated", epoch=0, step=10 * number, seconds=1.0, metrics=told, **more,
              **common(1))  # fmt: skip
        with run.metrics.open("a") as file:
            row = {"step": 10 * number, "epoch": 0, "start": 1, "kind": "val"}
            file.write(json.dumps(row | told) + "\n")
    write(run, 90, "finished", step=40, epoch=1, **common(1))
    if evaluated:
        write(run, 95, "evaluated", stage="evaluate", job="13", checkpoint="x", metrics=evaluated, path="x")
        where = run.eval / "epoch_1-abc"
        where.mkdir(parents=True)
        (where / "metrics.json").write_text(json.dumps(evaluated | {"asked": list(evaluated)}))
    return run


def dice(path: Path, value: float = 60.0, **more: Any) -> Run:
    told = {"mIoU": 40.0, "mAcc": 50.0, "aAcc": 70.0, "mDice": value - 0.5}
    found = ({"aAcc": 80.0, "mIoU": 45.0, "mDice": value}, {"aAcc": 90.0, "mIoU": 50.0, "mDice": value - 10})
    return trained(path, *found, evaluated=told, metric="mDice", **more)


def status(run: Run) -> states.Status:
    return states.status(run, history.read(run), Answer(), T0 + 100)


def table(*runs: Run) -> list[list[str]]:
    found = [status(run) for run in runs]
    heads = figures.heads(found)
    shown = tables.plain(overview.columns(*heads)[0], [one.cells for one in folding.lines(found, heads)])
    return [line.split() for line in shown.splitlines()]


def test_the_table_says_each_runs_own_metric(tmp_path: Path) -> None:
    one = dice(tmp_path / "dice")
    assert status(one).best == Figure("mDice", 60.0, 10), "the best of it, not of mIoU"
    head, row = table(one)
    assert " ".join(head).startswith("RUN STATE EPOCH STEP S/IT BEST MDICE MDICE INTERRUPTED")
    assert "60.00 59.50" in " ".join(row)
    worker = trained(tmp_path / "own", {"accuracy": 0.93126}, metric="accuracy", worker=["a.py"])
    head, row = table(worker)
    assert "BEST ACCURACY ACCURACY" in " ".join(head)
    assert "0.9313" in row
    usual = trained(tmp_path / "old", {"mIoU": 41.5}, evaluated={"mIoU": 42.0})
    assert "BEST MIOU MIOU" in " ".join(table(usual)[0])
    head, *rows = table(one, worker, usual)
    assert "BEST EVALUATED" in " ".join(head)
    assert "mDice 60.00 mDice 59.50" in " ".join(rows[0])
    assert "accuracy 0.9313" in " ".join(rows[1])
    assert "mIoU 41.50 mIoU 42.00" in " ".join(rows[2])
    assert "BEST MIOU MIOU" in " ".join(table(made_run(tmp_path / "new"))[0])


def test_a_hostile_name_reaches_no_terminal(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07" + "long\n" * 100
    found = [status(trained(tmp_path / "run", {name: 1.0}, metric=name))]
    heads = figures.heads(found)
    shown = tables.terminal(*overview.columns(*heads)[:1], [["x"] * 11], [], (), 200)
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert max(map(len, heads)) < 30


def test_a_program_finds_the_metric_and_the_keys_of_before(tmp_path: Path) -> None:
    found = figures.as_json(status(dice(tmp_path / "dice")))
    assert found["best"] == {"metric": "mDice", "value": 60.0, "step": 10, "less": False, "of": ""}
    assert found["evaluated"]["metric"] == "mDice"
    assert (found["best_mIoU"], found["mIoU"]) == (None, None)
    found = figures.as_json(status(trained(tmp_path / "old", {"mIoU": 41.5}, evaluated={"mIoU": 42.0})))
    assert (found["best_mIoU"], found["mIoU"]) == (41.5, 42.0)


def test_of_a_loss_the_least_is_the_best(tmp_path: Path) -> None:
    losses = [trained(tmp_path / f"l-{n}", {"val_loss": v}, {"val_loss": v + 1}, metric="val_loss", less=True)
              for n, v in enumerate((0.25, 0.125))]  # fmt: skip
    found = [status(run) for run in losses]
    assert [one.best.value for one in found if one.best] == [0.25, 0.125]
    heads = figures.heads(found)
    assert folding.folded("l", found, heads).cells[5] == "0.125"
    mixed = [*found, status(dice(tmp_path / "dice"))]
    assert folding.folded("l", mixed, figures.heads(mixed)).cells[5] == "", "no one is the best of them"


def test_before_the_first_event_what_progress_says_counts(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    submitted(run)
    write_progress(run, 9, best={"mIoU": 40.0, "metric": "mDice", "value": 61.0, "step": 7})
    assert status(run).best == Figure("mDice", 61.0)
    write_progress(run, 9, best="nonsense")
    assert status(run).best is None


def test_the_report_and_what_is_tracked_name_it(tmp_path: Path) -> None:
    run = dice(tmp_path / "dice")
    html = report_page.page(report_data.gather([run])[0])
    assert "<b>60.00</b><span>best mDice in validation</span>" in html
    assert "<b>59.50</b><span>mDice, evaluated</span>" in html
    assert "mDice of the validations, in percent" in html
    assert "mIoU of the validations" not in html
    worker = trained(tmp_path / "own", {"accuracy": 0.5}, {"accuracy": 0.75}, metric="accuracy")
    html = report_page.page(report_data.gather([worker])[0])
    assert "<h2>accuracy of the validations</h2>" in html
    facts = content.facts(story.read(run.events), T0 + 100)
    assert (facts["best/mDice"], facts["best/step"]) == (60.0, 10.0)
    assert "best/mIoU" not in facts


def test_runs_are_compared_by_it(tmp_path: Path) -> None:
    runs = [
        dice(
            tmp_path / f"{lr}-{seed}", 60 + lr - seed / 4, seed=seed, set={"lr": lr, "randomness.seed": seed}
        )
        for lr in (1, 5)
        for seed in (0, 1)
    ]
    found = report_data.gather(runs)
    best, other = groups.grouped(found)
    assert (best.name, str(best.estimates["mDice"])) == ("lr=5", "64.38 ± 0.18")
    assert str(other.estimates["best mDice"]) == "60.88 ± 0.18"
    (told,), missing = groups.differences([best, other])
    assert (told.mean, missing) == (pytest.approx(4.0), [])
    html = comparison.comparison(found)
    for text in (">best mDice<", ">mDice<", ">mDice of<"):
        assert text in html, text
    assert "| group | runs | mDice | mIoU | mAcc | aAcc | best mDice |" in groups.as_markdown([best, other])
    losses = [trained(tmp_path / f"l-{lr}", {"loss": lr}, metric="loss", less=True, set={"lr": lr})
              for lr in (0.5, 0.25)]  # fmt: skip
    assert [one.name for one in groups.grouped(report_data.gather(losses))] == [
        "lr=0.25", "lr=0.5",
    ]  # fmt: skip


def test_one_of_another_metric_is_compared_by_what_both_have(tmp_path: Path) -> None:
    usual = trained(tmp_path / "usual", {"mIoU": 41.5}, evaluated={"mIoU": 42.0}, set={"a": 1})
    found = report_data.gather((dice(tmp_path / "dice"), usual))
    assert groups.compared(found) == "mIoU"
    assert groups.grouped(found)[0].runs[0].run.name == "usual"
    html = comparison.comparison(found)
    assert "mDice 60.00" in html
    assert "mIoU 41.50" in html


def test_a_line_of_the_waiting_is_as_before() -> None:
    event = {
        "time": "2026-09-21T13:33:20.000Z", "event": "validated", "stage": "train", "step": 10,
        "metrics": {"mDice": 60.0}, "metric": "mDice", "less": True,
    }  # fmt: skip
    assert waiting._line_of(event) == "13:33:20 train    validated   step=10  metrics=mDice 60"


@pytest.mark.parametrize(
    ("given", "computed", "metric", "less"),
    [
        ({}, ["aAcc", "mIoU"], "mIoU", False),
        ({}, ["accuracy", "x"], "accuracy", False),
        ({"save_best": "auto"}, ["aAcc", "mIoU"], "aAcc", False),
        ({"save_best": "mDice"}, ["mIoU", "mDice"], "mDice", False),
        ({"save_best": "val/mDice"}, ["mIoU", "mDice"], "mDice", False),
        ({"save_best": "my_loss"}, ["my_loss"], "my_loss", True),
        ({"save_best": "my_loss", "rule": "greater"}, ["my_loss"], "my_loss", False),
        ({"save_best": "error", "rule": "less"}, ["error"], "error", True),
        ({}, [], None, False),
    ],
)
def test_what_a_config_goes_by(
    given: dict[str, str], computed: list[str], metric: str | None, less: bool
) -> None:
    settings = Settings(**given)  # type: ignore[arg-type]
    assert settings.metric(computed) == metric
    assert settings.less(metric) is less


def test_a_run_that_goes_by_another_metric_from_now_on_begins_with_it_anew(tmp_path: Path) -> None:
    assert Figure("mDice", 10.0).beats(Figure("mIoU", 60.0))
    assert not Figure("mIoU", 10.0).beats(Figure("mIoU", 60.0))
    assert Figure("loss", 1.0, less=True).beats(Figure("loss", 2.0))
    run = trained(tmp_path / "run", {"mIoU": 60.0})
    write(
        run,
        60,
        "validated",
        epoch=0,
        step=30,
        seconds=1.0,
        metrics={"mDice": 55.0},
        metric="mDice",
        **common(1),
    )
    assert story.read(run.events).best == Figure("mDice", 55.0, 30)
    assert checkpoints.best_figure(run.checkpoints) is None


def test_an_evaluators_prefix_is_no_part_of_the_name() -> None:
    best = Figure("kappa", 0.5)
    assert metrics.evaluated({"mIoU": 40.0, "own/kappa": 0.75}, best) == Figure("kappa", 0.75)
    assert metrics.evaluated({"own/mIoU": 1.0, "mIoU": 40.0}, best) == Figure("mIoU", 40.0)


def test_a_worker_says_what_it_goes_by() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    lines: list[Any] = []
    session = SimpleNamespace(start=1, metrics=SimpleNamespace(append=lines.append))
    session.report = lambda event, **fields: told.append((event, fields))
    worker: Any = object.__new__(Worker)
    worker.main, worker.session, worker._scalars = True, session, {}
    worker.validated(10, accuracy=0.5, val_loss=2.0)
    worker.validated(20, metric="val_loss", accuracy=0.5, val_loss=2.0)
    assert [fields["metric"] for _, fields in told] == ["accuracy", "val_loss"]
    assert [fields["less"] for _, fields in told] == [None, True]
    assert json.loads(lines[0])["kind"] == "val"
    with pytest.raises(ValueError, match="'recall' is not one of accuracy"):
        worker.validated(30, metric="recall", accuracy=0.5)
