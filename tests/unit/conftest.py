"""Fixtures of the unit tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from tests.unit import fake_slurm
from tests.unit.fake_slurm import Site


@pytest.fixture(scope="session")
def path_without_slurm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fake_slurm.path_without_slurm(os.environ["PATH"], tmp_path_factory.mktemp("path"))


@pytest.fixture(autouse=True)
def without_slurm(path_without_slurm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit test sees a Slurm that happens to be installed, or a job that it happens to run in: those would
    pass on such a machine only."""
    monkeypatch.setenv("PATH", path_without_slurm)
    for name in list(os.environ):
        if name.startswith(fake_slurm.VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def site(tmp_path: Path, voc_small: Path) -> Site:
    return Site(tmp_path, voc_small)


def pytest_collection_finish() -> None:
    """What was imported stays; mmengine has the collector look at all of it for each dataset."""
    gc.collect()
    gc.freeze()
