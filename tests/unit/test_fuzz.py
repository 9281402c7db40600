"""Some mutations of every file that others can have written; tests/local tries thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzzing import targets
from tests.mutations import attack

NAMES = list(targets(Path()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_no_mutation_is_more_than_one_line(name: str, tmp_path: Path) -> None:
    good, read, allowed, text, share = targets(tmp_path)[name]()
    attack(good, read, allowed, round(30 * share), text=text)
