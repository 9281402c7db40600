"""Mutations of every file that others can have written: no traceback, no hang, no file lost.

A few hundred each in `make test`, thousands by `make fuzz`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzzing import targets
from tests.mutations import attack

NAMES = list(targets(Path()))
PASSED_OVER = ("dataset manifest", "dataset table", "checkpoint manifest", "best checkpoint")
"""What is wrong with these is an answer, or is passed over; it is no error."""
MUTATIONS = int(os.environ.get("BATON_MUTATIONS", 200))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_no_mutation_is_more_than_one_line(name: str, tmp_path: Path) -> None:
    good, read, allowed, text, share = targets(tmp_path)[name]()
    refused = attack(good, read, allowed, round(MUTATIONS * share), text=text, seed=1)
    # Or the mutations would not reach what is read. A history passes over what it cannot read.
    assert refused > MUTATIONS * share / 40 or not allowed or name in PASSED_OVER
