"""Networks that are hard to resume: whose backbone and head have an optimizer each, in what mmengine calls an
OptimWrapperDict; that remembers its losses."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class OneEach:
    """Builds a wrapper for each part of the model that the config names."""

    def __init__(self, optim_wrapper_cfg: Any, paramwise_cfg: Any = None) -> None:  # noqa: ARG002
        self.parts = optim_wrapper_cfg

    def __call__(self, model: Any) -> OptimWrapperDict:
        model = getattr(model, "module", model)
        return OptimWrapperDict(
            **{name: build_optim_wrapper(getattr(model, name), part) for name, part in self.parts.items()}
        )


@MODELS.register_module(force=True)
class TwoOptimizers(EncoderDecoder):
    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        data = self.data_preprocessor(data, True)
        losses, logged = self.parse_losses(self._run_forward(data, mode="loss"))
        last = len(optim_wrapper) - 1
        for number, wrapper in enumerate(optim_wrapper.values()):
            wrapper.backward(wrapper.scale_loss(losses), retain_graph=number < last)
        for wrapper in optim_wrapper.values():
            if wrapper.should_update():
                wrapper.step()
                wrapper.zero_grad()
        return logged


@MODELS.register_module(force=True)
class Remembering(EncoderDecoder):
    """Its loss depends on the losses before, which each rank keeps of its own; on a prototype of each class
    that it has seen; on a teacher that is to be no part of the model, and rests from the first step; on a
    critic whose gradients it accumulates by hand; and on chance, by a generator of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.past: list[float] = []
        self.mean: torch.Tensor | None = None
        self.prototypes: dict[int, torch.Tensor] = {}
        self.teacher = [copy.deepcopy(self.backbone)]
        self.critic = [torch.nn.Linear(1, 1)]
        self.of_critic = torch.optim.SGD(self.critic[0].parameters(), lr=0.1)
        self.chance = random.Random(0)

    def loss(self, inputs: Any, data_samples: Any) -> Any:
        found = super().loss(inputs, data_samples)
        if not self.past:
            self.teacher[0].eval()
        with torch.no_grad():
            pairs = zip(self.teacher[0].parameters(), self.backbone.parameters(), strict=True)
            for of_teacher, of_student in pairs:
                of_teacher.data.lerp_(of_student, 0.1)
            features = self.teacher[0](inputs)[-1].mean((0, 2, 3))
        self.mean = features if self.mean is None else self.mean.lerp(features, 0.1)
        for label in torch.cat([one.gt_sem_seg.data.unique() for one in data_samples]).tolist():
            self.prototypes[label] = self.prototypes.get(label, self.mean).lerp(features, 0.1)
        drawn = torch.stack([self.mean, *self.prototypes.values()]).mean().item() * self.chance.random()
        judged = self.critic[0](self.mean.mean().float().view(1, 1)).sum()
        judged.backward()
        if len(self.past) % 2:
            self.of_critic.step()
            self.of_critic.zero_grad()
        drawn += judged.item() / 10
        found["decode.loss_ce"] = found["decode.loss_ce"] * (1 + sum(self.past) / 100 + drawn)
        self.past.append(found["decode.loss_ce"].item())
        return found
