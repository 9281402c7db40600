"""A training without MMSegmentation, preempted on a real Slurm: it ends with the bits of one left alone."""

from __future__ import annotations

import json

import pytest
from launcher import Launcher, of_run

from tests import plain
from tests.support.slurm import wait_event


def submit(launch: Launcher, name: str, shape: tuple[int, int], *options: object) -> str:
    """Submits the example on that many nodes, with that many ranks on each; returns the job id."""
    size = ["--nodes", shape[0], "--gpus", shape[1], "--cpus-per-gpu", 1, "--data-root", launch.data]
    words = ["--worker", plain.EXAMPLE, "--run", name, *size, *options, "--json"]
    out, _ = launch("train", *words, "--", "--steps", 1000, "--save-every", 50)
    jobs = json.loads(out)["jobs"]
    assert jobs.keys() == {"train"}
    return str(jobs["train"])


@pytest.mark.parametrize("shape", [(1, 1), (2, 1)], ids=["1", "2"])
def test_preempted_it_ends_with_the_same_bits(launch: Launcher, shape: tuple[int, int]) -> None:
    ranks = shape[0] * shape[1]
    alone, often = f"alone-{ranks}", f"often-{ranks}"
    job = submit(launch, often, shape, "--partition", "low")
    wait_event(launch.runs / often, "checkpoint")
    launch.slurm.preempt(job)
    left = wait_event(launch.runs / often, "preempted")
    assert 50 <= left["step"] < 1000
    other = submit(launch, alone, shape)
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    assert launch.slurm.wait_ended(other) == "COMPLETED"
    run = launch.runs / often
    assert [one["step"] for one in of_run(run, "resumed")] == [left["step"]]
    assert [one["world_size"] for one in of_run(run, "started")] == [ranks, ranks]
    assert [one["step"] for one in of_run(run, "finished")] == [1000]
    plain.assert_same(plain.final_state(launch.runs / alone), plain.final_state(run))
    out, _ = launch("status", often, "--json")
    assert json.loads(out)["state"] == "finished"
