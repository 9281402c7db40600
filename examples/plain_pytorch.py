"""A training without MMSegmentation as a run of Baton: a loop of its own, DistributedDataParallel.

    python launch/train.py --worker examples/plain_pytorch.py --gpus 2 -- --steps 2000

Interrupted by whatever, it ends with the weights of an uninterrupted one, bit for bit. Two things make it so:
the calls to `worker`, which say what to save and when to leave; and that whatever a step draws by chance
depends on the seed and the step's number alone, so that a resume has nothing to replay.
docs/worker-protocol.md explains each.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jobs.worker import UserError, Worker

BATCH = 32
"""Samples of a step, over all ranks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--lr", type=float, default=0.05)
    # From here on a preemption is heard. What goes wrong inside ends all ranks and is what status shows.
    with Worker() as worker:
        train(worker, parser.parse_args())


def train(worker: Worker, options: argparse.Namespace) -> None:
    if BATCH % worker.ranks:
        raise UserError(f"a batch of {BATCH} cannot be divided among {worker.ranks} ranks")
    device = torch.device(worker.join())
    torch.manual_seed(worker.seed)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.1),
        nn.Conv2d(16, 2, 1),
    ).to(device)  # fmt: skip
    model = DistributedDataParallel(net) if worker.ranks > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}

    def state() -> dict[str, Any]:
        return {"step": step} | {name: part.state_dict() for name, part in parts.items()}

    step = 0
    if kept := worker.load():
        step = kept["step"]
        for name, part in parts.items():
            part.load_state_dict(kept[name])
    worker.steps = options.steps

    while step < options.steps:
        worker.begin_step()
        images, masks = batch(worker, step + 1)
        loss = F.cross_entropy(model(images.to(device)), masks.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        step += 1
        if step % 50 == 0:
            worker.log(step, loss=loss.item(), lr=schedule.get_last_lr()[0])
        if step % options.save_every == 0:
            worker.validated(step, accuracy=accuracy(net, worker, device))
        # The ranks leave here, together, if one of them was asked to.
        worker.end_step(step, state, save=step % options.save_every == 0)
    worker.finish(step, state)


def accuracy(net: nn.Module, worker: Worker, device: torch.device) -> float:
    """The share of pixels that are right, in percent, of images that no step has (steps begin with 1)."""
    images, masks = batch(worker, 0)
    net.eval()
    with torch.no_grad():
        right = net(images.to(device)).argmax(1) == masks.to(device)
    net.train()
    return 100 * right.float().mean().item()


def batch(worker: Worker, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of a step's batch: images in two halves, (N, 3, 32, 32), and which pixel lies in the
    brighter one, (N, 32, 32). Dropout draws from what the seed leaves, too."""
    torch.manual_seed(worker.seed + 1_000_003 * step + worker.rank)
    images = torch.rand(BATCH // worker.ranks, 3, 32, 32)
    masks = torch.zeros(len(images), 32, 32, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        edge = int(torch.randint(4, 28, ()))
        image[:, edge:] += 0.2
        mask[edge:] = 1
    return images, masks


if __name__ == "__main__":
    main()
