"""What the services that show curves are told, and when: launch/observe/tracking, --track."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.run import trackers
from jobs.run.directory import Run
from launch.observe.tracking import content
from tests.unit.made_runs import T0, common, made_run, started, submitted, with_everything, write


def rows_of(run: Run) -> dict[int, dict[str, float | Path]]:
    return dict(content.read(run, T0 + 1000).rows)


def train(run: Run, start: int, begin: int, end: int) -> None:
    """The rows of some steps, with a loss that says which start did them."""
    with run.metrics.open("a") as file:
        for step in range(begin, end + 1):
            file.write(
                json.dumps(
                    {"step": step, "epoch": 0, "start": start, "kind": "train", "loss": step + start / 10}
                )
                + "\n"
            )


def saved(run: Run, at: float, start: int, step: int) -> None:
    write(
        run, at, "checkpoint", step=step, epoch=0, path=f"iter_{step}.pth", bytes=1, seconds=0.5, why="time",
        **common(start),
    )  # fmt: skip


def validated(run: Run, start: int, step: int, value: float) -> None:
    with run.metrics.open("a") as file:
        file.write(
            json.dumps({"step": step, "epoch": 0, "start": start, "kind": "val", "mIoU": value}) + "\n"
        )


def test_a_step_is_told_when_no_start_can_do_it_again(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    told: dict[int, dict[str, float | Path]] = {}

    def look() -> list[int]:
        """The steps that are new; what was told before must stay as it is."""
        now = rows_of(run)
        assert all(now[step] == row for step, row in told.items())
        new = sorted(now.keys() - told.keys())
        assert not told or not new or new[0] > max(told)
        told.update(now)
        return new

    submitted(run)
    started(run, 1, 1)
    train(run, 1, 1, 5)
    assert look() == []
    saved(run, 20, 1, 4)
    assert look() == [1, 2, 3, 4]
    saved(run, 21, 1, 5)
    assert look() == [], "its validation may be still to come"
    validated(run, 1, 5, 30.0)
    assert look() == [5]
    train(run, 1, 6, 9)
    write(run, 30, "failed", reason="killed", **common(1))
    started(run, 40, 2, step=5)
    assert look() == []
    train(run, 2, 6, 8)
    saved(run, 60, 2, 8)
    assert look() == [6, 7]
    assert told[6]["train/loss"] == 6.2, "done again, it replaces the first"
    assert told[6]["start"] == 2
    # The checkpoint of step 8 turns out to be damaged: what came after step 5 is done once more.
    started(run, 80, 3, step=5)
    train(run, 3, 6, 12)
    assert rows_of(run).keys() == set(range(1, 6)), "and nothing of it is told twice: `sent` says 7"
    saved(run, 90, 3, 12)
    write(run, 91, "finished", step=12, epoch=1, **common(3))
    final = rows_of(run)
    assert final.keys() == set(range(1, 13))
    assert final[12]["checkpoint/seconds"] == 0.5
    assert final[5]["val/mIoU"] == 30.0
    assert {final[step]["start"] for step in range(6, 13)} == {3}


def test_interruptions_and_the_evaluation_are_told(tmp_path: Path) -> None:
    found = content.read(with_everything(tmp_path / "run"), T0 + 1000)
    assert found.state == "finished"
    assert found.facts["interruptions"] == 2
    assert found.facts["steps_done_again"] == 50
    assert 0 < found.facts["ettr"] < 1
    assert found.facts["best/mIoU"] == 55.25
    assert found.facts["checkpoint/step"] == 400
    assert found.evaluation == "epoch_4-abcdef12"
    assert found.scores == {"mIoU": 51.0, "mAcc": 60.0, "aAcc": 70.0}
    assert [one["IoU"] for one in found.classes] == [50.0, 51.0, 52.0]
    assert found.named == "eval"


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("epoch_4-abcdef12-tta", "eval-tta"),
        ("epoch_2-00000000", "eval-epoch_2"),
        ("epoch_4-00000000-tta", "eval-another-epoch_4-tta"),
    ],
)
def test_figures_that_others_do_not_compare_with_have_another_name(
    tmp_path: Path, folder: str, named: str
) -> None:
    run = with_everything(tmp_path / "run")
    run.checkpoints.mkdir()
    (run.checkpoints / "best.json").write_text(json.dumps({"path": "epoch_4.pth"}))
    manifest = {"path": "epoch_4.pth", "digest": "abcdef12" * 8, "step": 400, "epoch": 4, "bytes": 0}
    (run.checkpoints / "epoch_4.pth.json").write_text(json.dumps(manifest))
    (run.eval / "epoch_4-abcdef12").rename(run.eval / folder)
    assert content.read(run, T0 + 1000).named == named


def test_what_hooks_show_is_told_too(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    with run.metrics.open("a") as file:
        for start, step in ((1, 150), (2, 240), (3, 240)):
            line = {"step": step, "epoch": 0, "start": start, "kind": "own", "gradient": start}
            file.write("\n" + json.dumps(line))
    picture = run.path / "track/pictures/200/one.jpg"
    picture.parent.mkdir(parents=True)
    picture.touch()
    rows = rows_of(run)
    assert (rows[150]["gradient"], rows[240]["gradient"]) == (1.0, 3.0)
    assert rows[200]["pictures/one"] == picture


def test_a_run_has_one_name_everywhere(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a@run-3", set={"model.api_token": "secret", "train_cfg.max_epochs": 3})
    first = content.about(run)
    run.config.write_text(
        "visualizer = dict(vis_backends=[dict(type='LocalVisBackend'),"
        " dict(type='WandbVisBackend', init_kwargs=dict(project='mine'))])\noptim_wrapper = dict(lr=0.1)\n"
    )
    about = content.about(run)
    assert about.id == first.id
    assert about.id != trackers.id_of("a@run-3", "2026-09-21T13:33:21Z")
    assert len(trackers.id_of("x" * 100, "")) <= 64
    assert about.backends == {"wandb": {"init_kwargs": {"project": "mine"}}}
    assert about.parameters["config.optim_wrapper.lr"] == 0.1
    assert about.parameters["set.train_cfg.max_epochs"] == 3
    assert "secret" not in str(about.parameters)
    assert about.group == ""
    write(run, 1, "submitted", executor="slurm", job="7_3", element=3)
    assert content.about(run).group == "a@run"
    assert trackers.wanted(run) == ["wandb"]
