"""Runs compared in groups: report.py --compare, its tables, the paired bootstrap."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from pathlib import Path

import msgspec
import numpy as np
import pytest

from jobs.evaluate import per_image
from jobs.mmseg import figures
from jobs.run.directory import Run
from launch.observe import evaluations
from launch.observe.report import data as report_data
from launch.observe.report import groups
from tests.unit.made_runs import T0, common, made_run, started, submitted, write

IMAGES, CLASSES = 200, 3


def evaluated(path: Path, lr: float, seed: int, skill: float, counts: bool = True, **request: object) -> Run:
    """A run whose evaluation is right with probability `skill` on each pixel, the same images for all."""
    overrides = {"optim_wrapper.optimizer.lr": lr, "randomness.seed": seed}
    run = made_run(path, set=overrides, seed=seed, **request)
    submitted(run)
    started(run, 1, 1)
    write(run, 50, "validated", epoch=1, step=9, seconds=1.0, metrics={"mIoU": 100 * skill}, **common(1))
    write(run, 60, "finished", step=9, epoch=1, **common(1))
    hard = np.random.default_rng(1).uniform(-0.2, 0.1, IMAGES)  # the same images are hard for all
    random = np.random.default_rng([seed, int(1000 * lr)])
    each, total = per_image.PerImage(), np.zeros((CLASSES, CLASSES), np.int64)
    for image in range(IMAGES):
        truth = random.integers(0, CLASSES, 400)
        wrong = random.random(400) > skill + hard[image]
        matrix = figures.confusion(
            truth, np.where(wrong, random.integers(0, CLASSES, 400), truth), CLASSES, 255
        )
        each.add(len(each.rows), matrix, matrix)
        total += matrix
    where = run.eval / "epoch_1-abc"
    where.mkdir(parents=True)
    if counts:
        joined = per_image.joined([each.tobytes()], IMAGES, CLASSES)
        per_image.write(where, [f"{image}.jpg" for image in range(IMAGES)], joined)
    found = figures.figures(total, [f"class {number}" for number in range(CLASSES)])
    (where / "metrics.json").write_text(json.dumps(found))
    return run


def gathered(*runs: Run) -> list[groups.Group]:
    return groups.grouped(report_data.gather(runs))


def grid(folder: Path, skills: dict[float, float], seeds: int = 3, **more: bool) -> list[Run]:
    return [
        evaluated(folder / f"g-{number}", lr, seed, skill + seed / 100, **more)
        for number, (lr, skill, seed) in enumerate(
            (lr, skill, seed) for lr, skill in skills.items() for seed in range(seeds)
        )
    ]


def test_the_same_training_done_again_is_no_further_run(tmp_path: Path) -> None:
    """Two of the same settings and seed are no two draws: neither for ± nor for a difference."""
    done = grid(tmp_path, {0.1: 0.7, 0.2: 0.8}, seeds=1)
    again = [
        evaluated(tmp_path / f"again-{number}", lr, 0, skill, counts=False)
        for number, (lr, skill) in enumerate(((0.1, 0.71), (0.2, 0.81)))
    ]
    best, other = found = gathered(*done, *again)
    assert (best.estimates["best mIoU"].count, best.estimates["best mIoU"].deviation) == (1, None)
    assert best.estimates["best mIoU"].mean == pytest.approx(80.5)
    (first, _) = groups.repeated(found)
    assert first.startswith(
        "optim_wrapper.optimizer.lr=0.2: g-1, again-1 have the same settings and the same"
    )
    assert [row[1] for row in groups.rows(found)[1]] == ["2 (1 seed)", "2 (1 seed)"]
    with pytest.raises(ValueError, match="no two seeds that both have"):
        groups.difference(best, other, "mIoU")
    # A seed that only --set names is one, too.
    by_set = [made_run(tmp_path / f"s-{seed}", set={"randomness.seed": seed}) for seed in (1, 2)]
    assert groups.repeated(gathered(*by_set)) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_difference_is_that_of_the_means_where_a_seed_is_there_twice(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    twice = [evaluated(tmp_path / f"t-{skill}", 0.1, 0, skill) for skill in (0.9, 0.7)]
    rest = [evaluated(tmp_path / "a", 0.1, 1, 0.8)]
    rest += [evaluated(tmp_path / f"b-{seed}", 0.2, seed, 0.75) for seed in (0, 1)]
    first, second = gathered(*(twice[one] for one in order), *rest)
    one = groups.difference(first, second, "mIoU")
    means = [group.estimates["mIoU"].mean for group in (first, second)]
    assert one.mean == pytest.approx(means[0] - means[1], abs=0.01)
    assert one.over == "images and seeds"


def test_runs_are_grouped_by_what_differs_but_the_seed(tmp_path: Path) -> None:
    runs = grid(tmp_path, {0.1: 0.7, 0.2: 0.8})
    best, other = gathered(*runs)
    assert (best.name, other.name) == ("optim_wrapper.optimizer.lr=0.2", "optim_wrapper.optimizer.lr=0.1")
    values = [json.loads((run.eval / "epoch_1-abc/metrics.json").read_text())["mIoU"] for run in runs[3:]]
    assert best.estimates["mIoU"].mean == pytest.approx(statistics.mean(values))
    assert best.estimates["mIoU"].deviation == pytest.approx(statistics.stdev(values))
    assert best.estimates["best mIoU"].mean == pytest.approx(81.0)
    (alone,) = gathered(*runs[:3])
    assert alone.name == "all"
    assert groups.repeated([best, other]) == []


def test_a_config_and_a_missing_override_are_differences_too(tmp_path: Path) -> None:
    one = evaluated(tmp_path / "a", 0.1, 0, 0.8)
    two = evaluated(tmp_path / "b", 0.1, 0, 0.7, config="configs/other.py")
    three = made_run(tmp_path / "c", set={"randomness.seed": 0})
    names = [group.name for group in gathered(one, two, three)]
    assert names == ["demo, optim_wrapper.optimizer.lr=0.1", "other, optim_wrapper.optimizer.lr=0.1",
                     "demo, optim_wrapper.optimizer.lr=–"]  # fmt: skip


def with_checkpoints(run: Run, **epochs: str) -> Run:
    """The run with these checkpoints, name -> digest, the last of them the best."""
    run.checkpoints.mkdir(exist_ok=True)
    for step, (name, digest) in enumerate(epochs.items()):
        (run.checkpoints / f"{name}.pth").write_bytes(b"1234")
        manifest = {"step": step, "epoch": step, "bytes": 4, "digest": digest + 24 * "0"}
        (run.checkpoints / f"{name}.pth.json").write_text(json.dumps(manifest))
        (run.checkpoints / "best.json").write_text(json.dumps({"path": f"{name}.pth"}))
    return run


def evaluate(run: Run, at: float, folder: str, miou: float) -> None:
    """A further evaluation, `at` seconds later than the first."""
    (run.eval / folder).mkdir(parents=True)
    found = {"mIoU": miou, "checkpoint": f"{folder.partition('-')[0]}.pth"}
    (run.eval / folder / "metrics.json").write_text(json.dumps(found))
    write(run, at, "evaluated", stage="evaluate", job="9", checkpoint=found["checkpoint"],
          metrics={"mIoU": miou}, path=f"/elsewhere/{folder}")  # fmt: skip
    os.utime(run.eval / folder / "metrics.json", (T0 + at + 1e8, T0 + at + 1e8))


def test_a_run_goes_by_the_evaluation_of_its_best_checkpoint(tmp_path: Path) -> None:
    run = with_checkpoints(evaluated(tmp_path / "a", 0.1, 0, 0.8), epoch_1="00000001", epoch_2="00000002")
    shutil.rmtree(run.eval)

    def told() -> tuple[str, str]:
        data = report_data.gather([run])[0]
        assert data.evaluation is not None
        assert str(data.evaluation.metrics["mIoU"]) in str(data.status.evaluated)
        return str(data.status.evaluated), groups._asked(data)["checkpoint"]

    evaluate(run, 70, "epoch_1-00000001", 30.25)
    assert told() == ("30.25 (epoch_1)", "epoch_1")
    evaluate(run, 80, "epoch_2-00000009", 90.25)  # given by its path, another run's
    assert told() == ("90.25 (another epoch_2)", "another epoch_2")
    evaluate(run, 90, "epoch_2-00000002-tta", 55.25)
    assert told() == ("55.25 (tta)", "best")
    evaluate(run, 100, "epoch_2-00000002", 50.25)
    evaluate(run, 110, "epoch_1-00000001-tta", 35.25)
    assert told() == ("50.25", "best")
    (run.checkpoints / "epoch_2.pth").unlink()
    assert told() == ("50.25", "best"), "a best checkpoint that was deleted is the best one yet"


def test_an_augmented_evaluation_is_marked(tmp_path: Path) -> None:
    run = with_checkpoints(made_run(tmp_path / "a"), epoch_1="00000001", epoch_2="00000002")

    def chosen(*folders: str) -> tuple[int, str]:
        return evaluations.chosen([run.eval / folder for folder in folders], run.checkpoints)

    assert chosen("epoch_1-00000001-tta") == (0, "epoch_1, tta")
    assert chosen("epoch_2-00000002-tta", "epoch_1-00000001") == (0, "tta")
    assert chosen("epoch_2-00000002", "epoch_2-00000002-tta") == (0, "")
    (run.eval / "mine").mkdir(parents=True)  # --out
    told = {"checkpoint": "epoch_2.pth", "digest": "00000002" + 24 * "0", "augmented": "6 scales, flipped"}
    (run.eval / "mine" / "metrics.json").write_text(json.dumps(told))
    assert chosen("mine") == (0, "tta")
    assert chosen("gone") == (0, "?")


def test_compared_runs_whose_best_checkpoint_was_deleted_are_of_one_group(tmp_path: Path) -> None:
    both = [evaluated(tmp_path / f"a-{seed}", 0.1, seed, 0.8) for seed in (0, 1)]
    for run in both:
        with_checkpoints(run, epoch_5="00000005", epoch_4="00000004")
        (run.checkpoints / "epoch_5.pth.json").write_text((run.checkpoints / "epoch_4.pth.json").read_text())
        shutil.rmtree(run.eval)
        evaluate(run, 70, "epoch_4-00000004", 50)
    (both[0].checkpoints / "epoch_4.pth").unlink()
    assert [group.name for group in gathered(*both)] == ["all"]


def test_an_evaluation_of_another_checkpoint_is_a_group_of_its_own(tmp_path: Path) -> None:
    both = [evaluated(tmp_path / f"a-{seed}", 0.1, seed, 0.8) for seed in (0, 1)]
    for run, digest in zip(both, ("00000001", "00000002"), strict=True):
        with_checkpoints(run, epoch_3="00000003", epoch_4=digest)
        shutil.rmtree(run.eval)
        evaluate(run, 70, f"epoch_4-{digest}", 50)
    assert [group.name for group in gathered(*both)] == ["all"]
    shutil.rmtree(both[1].eval)
    evaluate(both[1], 80, "epoch_3-00000003", 30)
    assert [group.name for group in gathered(*both)] == ["checkpoint=best", "checkpoint=epoch_3"]
    # What all of them were to be evaluated by sets none apart.
    lasts = [msgspec.structs.replace(run.request(), checkpoint="epoch_3.pth") for run in both]
    shutil.rmtree(both[0].eval)
    evaluate(both[0], 80, "epoch_3-00000003", 40)
    for run, request in zip(both, lasts, strict=True):
        run.write_request(request)
    assert [group.name for group in gathered(*both)] == ["all"]


def test_a_paired_difference_is_told_apart_from_chance(tmp_path: Path) -> None:
    clear = gathered(*grid(tmp_path / "clear", {0.1: 0.7, 0.2: 0.8}))
    told, missing = groups.differences(clear)
    assert missing == []
    (one,) = told
    measured = clear[0].estimates["mIoU"].mean - clear[1].estimates["mIoU"].mean
    assert one.mean == pytest.approx(measured), "the figures from the counts are the evaluation's"
    assert 0 < one.low < one.mean < one.high
    assert one.p < 0.01
    assert one.over == "images and seeds"
    alike = gathered(*grid(tmp_path / "alike", {0.1: 0.75, 0.2: 0.75}))
    (chance,) = groups.differences(alike)[0]
    assert chance.low < 0 < chance.high
    assert chance.p > 0.05


def test_pairing_is_what_makes_it_sure(tmp_path: Path) -> None:
    """The interval of the difference is narrower than the two groups' own would make it, for what is hard for
    one is hard for the other."""
    first, second = gathered(*grid(tmp_path, {0.1: 0.7, 0.2: 0.72}, seeds=1))
    (one,) = groups.differences([first, second])[0]
    assert one.over == "images"
    random = np.random.default_rng(0)
    spreads = []
    for group in (first, second):
        counts = [[groups._counts(group.runs[0])]]
        (side,) = (groups._figures(side) for side in groups._drawn(counts, random))
        spreads.append(float(np.var(side[0, 1:])))
    assert (one.high - one.low) / (2 * 1.96) < 0.9 * sum(spreads) ** 0.5


def test_no_difference_has_no_sign() -> None:
    assert [groups.signed(value) for value in (-0.001, 0.0, 0.004)] == ["0.00"] * 3
    assert [groups.signed(value) for value in (-0.006, 0.5, -30.0)] == ["-0.01", "+0.50", "-30.00"]


def test_without_counts_the_seeds_tell_or_it_is_said_that_nothing_does(tmp_path: Path) -> None:
    told, _ = groups.differences(gathered(*grid(tmp_path / "seeds", {0.1: 0.6, 0.2: 0.8}, counts=False)))
    assert told[0].over == "seeds"
    assert told[0].low > 0
    told, missing = groups.differences(
        gathered(*grid(tmp_path / "one", {0.1: 0.6, 0.2: 0.8}, 1, counts=False))
    )
    assert told == []
    assert "there are no per-image counts for the same images" in missing[0]
    not_evaluated = [evaluated(tmp_path / "x", 0.1, 0, 0.8), made_run(tmp_path / "y")]
    assert "not both are evaluated" in groups.differences(gathered(*not_evaluated))[1][0]


def test_counts_of_several_processes_are_joined() -> None:
    random = np.random.default_rng(0)
    matrices = [random.integers(0, 9, (CLASSES, CLASSES)) for _ in range(7)]
    parts = []
    for rank in range(3):
        each = per_image.PerImage()
        for matrix in matrices[rank::3]:
            each.add(len(each.rows), matrix, matrix)
        parts.append(each.tobytes())
    found = per_image.joined(parts, 7, CLASSES)
    for counts, matrix in zip(found, matrices, strict=True):
        assert counts.tolist() == 2 * [
            np.diag(matrix).tolist(),
            matrix.sum(1).tolist(),
            matrix.sum(0).tolist(),
        ]
