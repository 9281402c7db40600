"""Fixtures of the commands' tests: those of the unit tests, a stand-in Slurm with them."""

from __future__ import annotations

from tests.unit.conftest import path_without_slurm, site, without_slurm

__all__ = ["path_without_slurm", "site", "without_slurm"]
