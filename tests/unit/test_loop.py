"""What the loops do beside steps."""

from typing import Any

import torch
from torch import nn

from jobs.mmseg.loop import settle_buckets


class Own(nn.Module):
    """Trains by a step of its own: with two optimizers, and one that steps twice (SAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.losses: list[float] = []

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Any]:
        for name in ("generator", "discriminator"):
            wrapper = optim_wrapper[name]
            with wrapper.optim_context(self):
                loss = self.norm(self.layer(data)).square().sum()
            self.losses.append(float(loss))
            if name == "generator":
                wrapper.update_params(loss)
                continue
            wrapper.backward(wrapper.scale_loss(loss))
            for group in wrapper.optimizer.param_groups:
                group["lr"] = 1.0
            wrapper.optimizer.first_step(zero_grad=True)
            wrapper.step()
            wrapper.zero_grad()
        return {}


def test_the_first_step_of_ddp_is_tried_whatever_the_model_asks_of_its_optimizers() -> None:
    model = Own()
    gradient = model.layer.weight.grad = torch.ones(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settle_buckets(model, [*model.parameters()], torch.rand(4, 2))
    assert len(model.losses) == 2
    assert model.layer.weight.grad is gradient
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
