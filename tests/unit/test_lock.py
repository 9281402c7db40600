"""The locks hold every package to its version and to the hashes of its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ENV = Path(__file__).resolve().parents[2] / "env"


@pytest.mark.parametrize("name", ["lock-a.txt", "lock-b.txt"])
def test_every_package_has_its_hashes(name: str) -> None:
    text = re.sub(r"(?m)^\s*#.*\n", "", (ENV / name).read_text())
    entries = [entry for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.+!]+ ", entry), entry
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", entry), entry
        assert not entry.startswith(("torch==", "torchvision=="))


def test_the_setup_insists_on_them_and_on_one_uv() -> None:
    text = (ENV / "setup.sh").read_text()
    assert text.count("--require-hashes") >= 2
    assert re.search(r"install -q uv==\d+\.\d+\.\d+", text)
