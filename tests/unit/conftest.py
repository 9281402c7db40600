"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.fake_slurm import Site


@pytest.fixture
def site(tmp_path: Path, voc_small: Path) -> Site:
    return Site(tmp_path, voc_small)
