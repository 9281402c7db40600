"""A short run of benchmarks/chaos.py: faults of several kinds over one training, by a seeded plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import chaos
from tests.support.slurm import Slurm

QUICK = (
    "preempted with grace",
    "a rank crashes",
    "a supervisor is killed",
    "killed during a save",
    "the newest checkpoint is damaged",
)


@pytest.fixture
def grace(cluster: Slurm) -> Iterator[None]:
    """Chaos changes the grace time of a partition that other tests use, too."""
    yield
    cluster.run("scontrol", "update", "PartitionName=low", f"GraceTime={cluster.cluster.options.grace}")


@pytest.mark.usefixtures("grace")
def test_many_faults_over_one_training(cluster: Slurm, tmp_path: Path, voc_small: Path) -> None:
    faults = chaos.plan(seed=2, faults=len(QUICK), kinds=QUICK)
    scene, alone = chaos.play(cluster, tmp_path / "runs", voc_small, faults, seed=2)
    assert scene.starts() > len(faults)
    assert chaos.problems(scene, alone) == []
