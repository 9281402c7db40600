"""docs/clusters.md names every key that a profile may have, and none that it may not."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.run.settings import Container, Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs/clusters.md").read_text()


def test_every_key_of_a_profile_is_explained() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    explained = {key for row in rows for key in re.findall(r"`(\w+)`", row[1])}
    assert explained == {"executor", *Settings.__struct_fields__}


def test_every_key_of_a_container_is_shown() -> None:
    section = PAGE.partition("## Containers")[2].partition("\n## ")[0]
    shown = set(re.findall(r"^      (\w+):", section, re.MULTILINE))
    assert shown == set(Container.__struct_fields__)
