"""The training loops: mmengine's, with batches by iteration number, and a check for preemption at each step.

What happens between two steps is in survival.py.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.utils import calc_dynamic_intervals

from jobs.mmseg import data, state, values
from jobs.mmseg.sampling import HOOKS, STEP, Batches, Plan, mix, seed_everything


class Exact:
    """Common to both loops. `runner.survival` (survival.py) must be set before `run`."""

    runner: Any
    dataloader: Any
    by_epoch: bool
    _iter: int
    _epoch: int
    started = False
    """Whether this process has loaded anything."""
    before: Sequence[Any] = ()
    """The batches of the previous step."""

    @property
    def batches(self) -> Batches:
        found = self.dataloader.batch_sampler
        assert isinstance(found, Batches)
        return found

    @property
    def plan(self) -> Plan:
        return self.batches.sampler.plan

    @property
    def position(self) -> int:
        """The number of samples of the current epoch that all ranks together have seen."""
        if self.plan.endless:
            return self._iter * self.plan.batch % self.plan.samples
        return self._iter % self.plan.iterations * self.plan.batch

    def loaded(self, stop: int) -> Iterator[list[Any]]:
        """This rank's batches from the current iteration up to `stop`: for each iteration, one per round."""
        self.batches.first, self.batches.stop = self._iter, stop
        if self._iter >= stop:
            return
        iterator = self.runner.kept.hand_out(self.dataloader, first=not self.started)
        self.started = True
        resumed, self.runner.resumed = self.runner.resumed, None  # frees what it holds
        if resumed and self.runner.session.ranks > 2:
            rounds = self.drawn(iterator)
            if self._iter >= max(w._accumulative_counts for w in state.wrappers(self.runner.optim_wrapper)):
                before = values.copied(self.runner.kept.state(large=True))
                trained = [one for _, one in self.runner.kept.parameters()]
                settle_buckets(self.runner.model, trained, rounds[0])
                self.runner.kept.restore(before)
            yield rounds
        for _ in range(self._iter, stop):
            yield self.drawn(iterator)

    def drawn(self, iterator: Iterator[Any]) -> list[Any]:
        def draw() -> list[Any]:
            return [next(iterator) for _ in range(self.batches.sampler.rounds)]

        # Without workers, transforms change their attributes in this process.
        return draw() if self.dataloader.num_workers else self.runner.kept.dataset.without_trace(draw)

    def step(self, index: int, rounds: list[Any]) -> None:
        """One iteration, in which the ranks agree whether to save or leave after it."""
        runner, survival = self.runner, self.runner.survival
        survival.step_begins()
        weights = self.batches.weights(self._iter)
        self.seed_hooks(self._iter)
        runner.call_hook("before_train_iter", batch_idx=index, data_batch=rounds[0])
        try:
            outputs = [self.round(number, batch, weights[number]) for number, batch in enumerate(rounds)]
        except (RuntimeError, IndexError, ValueError) as error:
            # A GPU may report a bad label only in the next step.
            if found := data.blame(runner, [*rounds, *self.before]):
                raise found from error
            raise
        self.before = rounds
        runner.call_hook(
            "after_train_iter",
            batch_idx=index,
            data_batch=rounds[0],
            outputs=outputs[0] if len(outputs) == 1 else averaged(outputs, weights),
        )
        self._iter += 1
        survival.step_ends()

    def seed_hooks(self, *place: int) -> None:
        """Makes random numbers in hooks depend only on the place in the training: a resumed run has not drawn
        the earlier ones."""
        seed_everything(mix(self.plan.seed, HOOKS, self.batches.sampler.rank, *place))

    def round(self, number: int, batch: Any, weight: float) -> Any:
        """Forward and backward pass of one slot; the last round of an iteration updates the weights."""
        runner, sampler = self.runner, self.batches.sampler
        slot = number * sampler.ranks + sampler.rank
        seed_everything(mix(self.plan.seed, STEP, self._iter, slot))
        if weight == 1.0:
            return runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        with weighted(runner.optim_wrapper, weight):
            return runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)

    def prepare_rounds(self) -> None:
        """Several rounds per iteration: gradients are accumulated over that many more train steps."""
        rounds, optimizer = self.batches.sampler.rounds, self.runner.optim_wrapper
        for wrapper in state.wrappers(optimizer) if rounds > 1 else []:
            wrapper._accumulative_counts *= rounds
            wrapper._inner_count *= rounds
        if rounds > 1:  # with several optimizers, mmengine does not know how often each is used
            optimizer.initialize_count_status(
                self.runner.model, self._iter * rounds, self._max_iters * rounds
            )

    def validation_due(self, done: int, last: int) -> bool:
        """Whether a validation follows after `done` of `last` epochs or iterations."""
        if self.runner.val_loop is None or done < self.val_begin:
            return False
        return done % self.val_interval == 0 or done == last

    _max_iters: int
    val_begin: int
    val_interval: int


def settle_buckets(model: Any, parameters: list[Any], batch: Any) -> None:
    """Brings a fresh DistributedDataParallel into its state after the first step, without other effects.

    In that step, it rearranges the gradients in its buckets. With three or more ranks, the order of summation
    depends on a gradient's position: without this, the first step after a resume would differ in the last
    bits.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    # A copy, because the preprocessor pads annotations in place.
    model.train_step(copy.deepcopy(batch), optim_wrapper=BackwardOnly())
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


class BackwardOnly:
    """Stands for an optimizer wrapper, or several, but updates nothing, whatever a user's `train_step` calls
    on it or its optimizer."""

    param_groups = ()

    def optim_context(self, model: Any) -> Any:  # noqa: ARG002
        return contextlib.nullcontext()

    def update_params(self, loss: Any, *_: Any, **__: Any) -> None:
        loss.backward()

    backward = update_params

    def scale_loss(self, loss: Any) -> Any:
        return loss

    @property
    def optimizer(self) -> BackwardOnly:
        return self

    def __getitem__(self, _: str) -> BackwardOnly:
        return self

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class weighted:
    """Context in which losses are multiplied by `weight`, for a slot with fewer samples than the others."""

    def __init__(self, optim_wrapper: Any, weight: float) -> None:
        self.wrappers, self.weight = state.wrappers(optim_wrapper), weight

    def __enter__(self) -> None:
        for wrapper in self.wrappers:
            scale = wrapper.scale_loss
            wrapper.scale_loss = lambda loss, scale=scale: scale(loss) * self.weight

    def __exit__(self, *_: object) -> None:
        for wrapper in self.wrappers:
            del wrapper.scale_loss


def averaged(outputs: list[dict[str, Any]], weights: list[float]) -> dict[str, Any]:
    """The weighted mean of the rounds' log values."""
    total = sum(weights)
    return {
        key: sum(output[key] * weight for output, weight in zip(outputs, weights, strict=True)) / total
        for key in outputs[0]
    }


@LOOPS.register_module()
class ExactEpochLoop(Exact, EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop; resumes exactly at any step."""

    by_epoch = True

    def run(self) -> Any:
        runner = self.runner
        runner.call_hook("before_train")
        self.prepare_rounds()
        if runner.survival.begin():
            runner.survival.validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            due = self.validation_due(self._epoch, self._max_epochs)
            runner.survival.epoch_ended(validation_due=due)
            if due:
                runner.survival.validate()
        runner.survival.end()
        runner.call_hook("after_train")
        return runner.model

    def run_epoch(self) -> None:
        runner = self.runner
        self.seed_hooks(self._epoch, 0)
        runner.call_hook("before_train_epoch")
        runner.model.train()
        if self.position and not self.started and runner.resumed:
            runner.kept.restore_modes(runner.resumed["kept"])
        stop = (self._epoch + 1) * self.plan.iterations
        for rounds in self.loaded(stop):
            self.step(self._iter % self.plan.iterations, rounds)
            if self._iter < stop:
                runner.survival.between_steps()
        runner.call_hook("after_train_epoch")
        runner.kept.workers_end(self.dataloader)
        self._epoch += 1


@LOOPS.register_module()
class ExactIterLoop(Exact, IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop; resumes exactly at any step, without replaying batches."""

    by_epoch = False

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        # Not IterBasedTrainLoop's, which starts the workers at once, before the position is known.
        BaseLoop.__init__(self, runner, dataloader)
        self._max_iters = int(max_iters)
        self._max_epochs = 1
        self._epoch = 0
        self._iter = 0
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, "metainfo", None)
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(
            val_interval, dynamic_intervals
        )

    def run(self) -> Any:
        runner = self.runner
        runner.call_hook("before_train")
        self.prepare_rounds()
        if runner.survival.begin():
            runner.survival.validate()
        self.seed_hooks(0, 0)
        runner.call_hook("before_train_epoch")
        iterator = self.loaded(self._max_iters)
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.step(self._iter, next(iterator))
            self._decide_current_val_interval()
            due = self.validation_due(self._iter, self._max_iters)
            runner.survival.between_steps(validation_due=due)
            if due:
                runner.survival.validate()
        runner.call_hook("after_train_epoch")
        runner.survival.end()
        runner.call_hook("after_train")
        return runner.model
