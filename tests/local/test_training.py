"""What a training must get right over several starts: more epochs, early stopping, finetuning, elasticity."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from jobs.engine import checkpoints
from jobs.mmseg import compat
from jobs.run import events
from jobs.run.directory import Run
from jobs.run.exit_codes import FINISHED, RESUME, USER_ERROR
from tests.support import tiny

pytestmark = pytest.mark.slow

HOOKS = {"imports": ["tests.interrupting"], "allow_failed_imports": False}
POLY = {"type": "PolyLR", "eta_min": 1e-4, "power": 0.9, "begin": 0, "by_epoch": True}


def change(run: Run, **settings: object) -> None:
    """Adds overrides to a run's request."""
    request = run.request()
    request.set.update({key.replace("__", "."): value for key, value in settings.items()})
    run.write_request(request)


def schedule(epochs: int) -> dict[str, object]:
    return {"train_cfg__max_epochs": epochs, "param_scheduler": [POLY | {"end": epochs}]}


def rates(run: Run) -> list[float]:
    """The learning rate of each epoch."""
    found = tiny.metrics(run)
    return [found["train", step]["lr"] for step in sorted(s for kind, s in found if kind == "train")][::6]


def test_a_longer_training_follows_the_longer_schedule(data: Path, tmp_path: Path) -> None:
    """mmengine restores the old schedule's end, and the rate stays at its minimum ever after."""
    run = tiny.make_run(tmp_path / "run", data, **schedule(2))
    assert tiny.start(run) == [FINISHED]
    change(run, **schedule(4))
    assert tiny.start(run) == [FINISHED]
    found = rates(run)
    assert len(found) == 4
    # From the longer training on, the rate is that of a run that was made for it.
    straight = tiny.make_run(tmp_path / "straight", data, **schedule(4))
    assert tiny.start(straight) == [FINISHED]
    assert found[2:] == rates(straight)[2:]
    assert found[2] > found[1]
    assert checkpoints.newest(run.checkpoints).epoch == 4  # type: ignore[union-attr]


def test_hooks_go_on_with_what_they_remember(data: Path, tmp_path: Path) -> None:
    hooks = [{"type": "Remember", "kind": kind} for kind in ("set", "array")]
    settings = {"custom_imports": HOOKS, "custom_hooks": [*hooks, {"type": "Interrupt"}]}
    run = tiny.make_run(tmp_path / "run", data, **settings)
    assert tiny.start(run, plan={"at": "step", "step": 8, "signal": "SIGUSR2"}) == [RESUME]
    assert tiny.start(run) == [FINISHED], tiny.log_of(run, 2)
    newest = checkpoints.newest(run.checkpoints)
    assert newest
    kept = compat.load(newest.path)["baton"]["hooks"]
    assert kept["Remember/0"] == {"steps": set(range(18))}
    assert kept["Remember/1"]["steps"].dtype == "uint16"
    assert kept["Remember/1"]["steps"].tolist() == [1] * 18


def test_a_hook_whose_state_no_checkpoint_holds_stops_the_run_before_its_first_step(
    data: Path, tmp_path: Path
) -> None:
    settings = {"custom_imports": HOOKS, "custom_hooks": [{"type": "Remember", "kind": "deque"}]}
    run = tiny.make_run(tmp_path / "run", data, **settings)
    assert tiny.start(run) == [USER_ERROR]
    error = json.loads((run.job / "error-1-0.json").read_text())
    assert error["error"].startswith("Remember.state_dict()['steps']: collections.deque cannot be loaded")
    assert (len(error["error"].splitlines()), error["traceback"]) == (1, "")
    assert not run.checkpoints.exists()
    assert not run.metrics.exists()


def test_early_stopping_counts_on(data: Path, tmp_path: Path) -> None:
    """Its patience is not given anew to every start."""
    stop = {"type": "EarlyStoppingHook", "monitor": "mIoU", "rule": "greater", "patience": 2}
    # No validation is better by so much than the first: it stops after the third.
    hooks = [stop | {"min_delta": 1000.0}, {"type": "Interrupt"}]
    settings = schedule(6) | {"custom_imports": HOOKS, "custom_hooks": hooks}
    run = tiny.make_run(tmp_path / "run", data, **settings)
    for step in (8, 14):
        plan = {"at": "step", "step": step, "signal": "SIGUSR2", "rank": None}
        assert tiny.start(run, 1, plan) == [RESUME]
    assert tiny.start(run) == [FINISHED]
    validated = [event["epoch"] for event in events.read(run.events) if event["event"] == "validated"]
    assert validated == [1, 2, 3]


def test_finetuning_begins_with_the_weights_and_nothing_else(data: Path, tmp_path: Path) -> None:
    first = tiny.make_run(tmp_path / "first", data, **schedule(1))
    assert tiny.start(first) == [FINISHED]
    source = checkpoints.newest(first.checkpoints)
    assert source is not None
    # Without a learning rate the weights stay what they were loaded as.
    still = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.0}}
    settings = schedule(1) | {"load_from": str(source.path), "optim_wrapper": still, "param_scheduler": []}
    run = tiny.make_run(tmp_path / "run", data, **settings)
    assert tiny.start(run) == [FINISHED]
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None
    assert (newest.step, newest.epoch) == (6, 1)
    before, after = (compat.load(path)["state_dict"] for path in (source.path, newest.path))
    trained = [key for key in before if "running" not in key and "num_batches" not in key]
    assert tiny.differences({k: before[k] for k in trained}, {k: after[k] for k in trained}) == []


def test_saving_by_time(data: Path, tmp_path: Path) -> None:
    checkpoint = {"type": "CheckpointHook", "interval": -1, "save_best": None, "_delete_": True}
    often = tiny.make_run(
        tmp_path / "often", data, baton__save_seconds=0.001, default_hooks__checkpoint=checkpoint
    )
    never = tiny.make_run(
        tmp_path / "never", data, baton__save_seconds=0, default_hooks__checkpoint=checkpoint
    )
    for run in (often, never):
        assert tiny.start(run) == [FINISHED]
    assert [e["step"] for e in saves(often) if e["why"] == "time"]
    assert [e for e in saves(never) if e["why"] == "time"] == []


def saves(run: Run) -> list[dict]:
    return [event for event in events.read(run.events) if event["event"] == "checkpoint"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_every_sample_once_over_another_number_of_ranks(
    before: int, after: int, data: Path, tmp_path: Path
) -> None:
    run = tiny.make_run(
        tmp_path / "run",
        data,
        train_dataloader__batch_size=4 // before,
        train_dataloader__num_workers=1,
        custom_imports=HOOKS,
        custom_hooks=[{"type": "Interrupt"}, {"type": "RecordSamples"}],
        **schedule(2),
    )
    plan = {"at": "step", "step": 3, "signal": "SIGUSR2", "rank": 0}
    assert tiny.start(run, before, plan) == [RESUME] * before
    assert tiny.start(run, after) == [FINISHED] * after
    seen: dict[int, list[str]] = {1: [], 2: []}
    for path in run.job.glob("samples-*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            seen[1 + (record["step"] - 1) // 6] += record["names"]
    names = (data / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert sorted(seen[1]) == sorted(seen[2]) == sorted(names)
    assert seen[1] != seen[2]


def test_the_checkpoint_hook_counts_iterations_or_epochs_as_it_says(data: Path, tmp_path: Path) -> None:
    """Also where the training loop counts the other way."""
    hook = {"type": "CheckpointHook", "save_best": None, "_delete_": True}
    loop = {"type": "IterBasedTrainLoop", "max_iters": 9, "val_interval": 100, "_delete_": True}
    settings = {"val_cfg": None, "val_dataloader": None, "val_evaluator": None, "baton__save_seconds": 0}
    steps = tiny.make_run(
        tmp_path / "steps", data, default_hooks__checkpoint=hook | {"interval": 4, "by_epoch": False},
        **schedule(2), **settings,
    )  # fmt: skip
    epochs = tiny.make_run(
        tmp_path / "epochs", data, default_hooks__checkpoint=hook | {"interval": 1}, train_cfg=loop,
        **settings,
    )  # fmt: skip
    for run in (steps, epochs):
        assert tiny.start(run) == [FINISHED], tiny.log_of(run, 1)
    assert [e["step"] for e in saves(steps)] == [4, 8, 12]
    assert [e["step"] for e in saves(epochs)] == [9]


def test_a_loss_that_is_no_number_leaves_files_that_everybody_reads(data: Path, tmp_path: Path) -> None:
    """JSON knows no NaN: strict readers refuse a file with one, and would know nothing more of the run."""
    optimizer = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 1e30}}
    run = tiny.make_run(tmp_path / "run", data, optim_wrapper=optimizer, **schedule(1))
    assert tiny.start(run) == [FINISHED], tiny.log_of(run, 1)
    strict = msgspec.json.Decoder()
    losses = [
        row.get("loss") for row in strict.decode_lines(run.metrics.read_bytes()) if row["kind"] == "train"
    ]
    assert losses[0] > 0
    assert losses[-1] is None
    names = [event["event"] for event in strict.decode_lines(run.events.read_bytes())]
    assert {"epoch", "validated", "finished"} <= set(names)
    strict.decode((run.path / "progress.json").read_bytes())
    strict.decode((run.checkpoints / "best.json").read_bytes())


def test_the_workers_of_a_validation_are_born_deaf(data: Path, tmp_path: Path) -> None:
    """A signal to the whole group may reach them before they know what to do about it."""
    hooks = [{"type": "SignalTheNewborn"}]
    run = tiny.make_run(
        tmp_path / "run", data, custom_imports=HOOKS, custom_hooks=hooks, val_dataloader__num_workers=2,
        **schedule(1),
    )  # fmt: skip
    assert tiny.start(run) == [FINISHED], tiny.log_of(run, 1)
    assert [e["step"] for e in events.read(run.events) if e["event"] == "validated"] == [6]


def test_a_resumed_start_does_nothing_needless(data: Path, tmp_path: Path) -> None:
    """Neither asks what the machine is, nor formats the config, nor initialises weights to be loaded over."""
    imports = {"imports": ["tests.interrupting", "tests.needless"], "allow_failed_imports": False}
    run = tiny.make_run(
        tmp_path / "run", data, custom_imports=imports, custom_hooks=[{"type": "Interrupt"}], **schedule(1)
    )
    assert tiny.start(run, 1, {"at": "step", "step": 2, "signal": "SIGUSR2"}) == [RESUME]
    assert tiny.start(run) == [FINISHED], tiny.log_of(run, 2)
