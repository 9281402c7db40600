"""A rank's training. Read `train` for all that happens in a start."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.engine import checkpoints, endings, safe_load
from jobs.engine.preemption import Preemption, closing
from jobs.engine.session import Session, from_environment
from jobs.mmseg import compat
from jobs.run import files
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UserError, described
from jobs.run.exit_codes import FINISHED, USER_ERROR
from jobs.run.streams import TolerantStream
from jobs.supervise.heartbeat import Heartbeat


def main(preemption: Preemption) -> int:
    if len(sys.argv) != 2:
        print("usage: python -m jobs.mmseg.rank RUN", file=sys.stderr)
        return USER_ERROR
    sys.stdout, sys.stderr = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
    run = Run(Path(sys.argv[1]).resolve())
    run.job.mkdir(parents=True, exist_ok=True)
    session = None
    atexit.register(thaw)
    try:
        session = from_environment(run)
        stacks = (run.job / files.STACKS(START=session.start, RANK=session.rank)).open("a")
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
        faulthandler.enable(2)  # shows where it was if native code ends it
        train(session, preemption)
    except BaseException as error:
        start, rank = (session.start, session.rank) if session else (1, 0)
        if isinstance(error, SystemExit) and error.code == USER_ERROR:  # a hook's, perhaps without a message
            print(described(error), file=sys.stderr, flush=True)
        endings.end(error, run, start, rank, preemption)
    return FINISHED


def train(session: Session, preemption: Preemption) -> None:
    """One start of a training, until it is finished, or until `preemption.leave`."""
    heart = Heartbeat()
    heart.beat("start", 0)
    # Nothing created before the first step is garbage; collecting would take a second.
    gc.disable()
    compat.prepare()
    safe_load.prove()

    from jobs.catalog import supported
    from jobs.engine import distributed, saving
    from jobs.mmseg import config, curves, data, metrics, runner, state
    from jobs.mmseg.survival import Survival

    # mmengine itself collects garbage for each dataset: exclude what exists already.
    gc.freeze()

    # Connect the ranks; the run directory says what to resume from.
    distributed.join(session)
    cfg = config.resolve(session)
    settings = config.saving(cfg)
    found = checkpoints.newest(session.run.checkpoints, session.report) if session.main else None
    told = distributed.everywhere(session, found and (str(found.path), found.manifest))
    checkpoint = checkpoints.Checkpoint(Path(told[0]), told[1]) if told else None
    batch = keep_global_batch(session, cfg, checkpoint) if session.main else None
    global_batch: int = distributed.everywhere(session, batch)
    config.write(cfg, session)
    weights = config.begin_from(cfg, resuming=checkpoint is not None)
    config.check_data(cfg, session)

    # Build the runner from the config, with exact sampling, loop and saving.
    prepared = config.prepare(cfg, session, global_batch)
    with user_errors(session, lambda: checkpoint is None):
        runner_ = runner.build(prepared, session, checkpoint, weights)
    saver = saving.Saver(session, settings, config.digest(cfg), heart, state.collect)
    log_interval = (prepared.default_hooks.get("logger") or {}).get("interval", 10)
    own = supported.settings(cfg)
    numbers = metrics.Metrics(
        session, heart, log_interval, lambda: preemption.stood_still, own["stop_at_nan"]
    )
    runner_.register_hook(numbers)
    runner_.register_hook(curves.Flush())
    if session.main and own["check_data"]:
        with user_errors(session, runner_.begins):
            if checkpoint is None:
                data.look(runner_)
            elif checkpoint.manifest["world_size"] != session.ranks:
                data.check_batches(runner_)
    runner_.survival = Survival(runner_, preemption, saver, numbers, heart)

    if checkpoint and session.main:
        say_resumed(session, checkpoint, prepared)

    # The whole training: loading, every epoch and validation, every save.
    with user_errors(session, runner_.begins):
        runner_.train()

    # The training is finished, its state on disk.
    closing()
    distributed.part(session)


def keep_global_batch(session: Session, cfg: Any, checkpoint: checkpoints.Checkpoint | None) -> int:
    """Samples per iteration: those that the run started with, whatever its number of ranks is now. Only for
    rank 0, since it also writes them."""
    if checkpoint:
        return int(checkpoint.manifest["global_batch"])
    path = session.run.job / files.GLOBAL_BATCH()
    if path.is_file():
        return int(path.read_text())
    batch = session.ranks * int(cfg.train_dataloader.get("batch_size", 1))
    write_atomically(path, f"{batch}\n".encode())
    return batch


def thaw() -> None:
    """Undoes `gc.freeze` at the end of the process, which costs a second, if an extension module was built
    with nanobind, as Triton's is from 3.9 on: that lists on standard error what is never freed
    (https://nanobind.readthedocs.io/en/latest/refleaks.html)."""
    modules = [getattr(one, "__dict__", {}) for one in list(sys.modules.values())]
    extensions = [one for one in modules if str(one.get("__file__")).endswith(".so")]
    if any(type(value).__module__ == "nanobind" for one in extensions for value in one.values()):
        gc.unfreeze()


def say_resumed(session: Session, checkpoint: checkpoints.Checkpoint, prepared: Any) -> None:
    before = checkpoint.manifest["world_size"]
    rounds = prepared.train_dataloader.sampler["rounds"]
    changed = before != session.ranks
    session.report(
        "resumed",
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        checkpoint=checkpoint.path.name,
        world_size_before=before if changed else None,
        accumulate=rounds if changed else None,
    )
    print(
        f"resumed from {checkpoint.path.name}: step {checkpoint.step}, epoch {checkpoint.epoch}", flush=True
    )
    if changed:
        batch = checkpoint.manifest["global_batch"]
        print(
            f"{session.ranks} ranks instead of {before}: global batch {batch} kept, {rounds} rounds per step"
        )


@contextlib.contextmanager
def user_errors(session: Session, begins: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turns errors from a mistake in a config or in the user's code into a UserError: always while something
    is built from the config, and of any code as long as the run `begins`, since the next start would compute
    the same. Errors that a machine may be to blame for stay as they are."""
    try:
        yield
    except MISTAKES as error:
        from jobs.mmseg import mistakes

        if (what := mistakes.told(error, begins())) is None:
            raise
        raise UserError(f"{session.request.named}: {what}") from error


MISTAKES = (
    *(TypeError, ValueError, AssertionError, LookupError, AttributeError, NameError, ArithmeticError),
    *(ImportError, NotImplementedError, RecursionError),
)
"""Errors that a mistake in a config or in code raises."""
