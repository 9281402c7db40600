"""Fixtures of the preparation's tests: those of the unit tests."""

from __future__ import annotations

from tests.unit.conftest import path_without_slurm, pytest_collection_finish, without_slurm

__all__ = ["path_without_slurm", "pytest_collection_finish", "without_slurm"]
