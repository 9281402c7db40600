"""The README and docs: every link and every file they name exists, every command they show is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run.stages import LEAVING

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data/README.md",
    ROOT / "logs/README.md",
]
COMMANDS = sorted(
    path.name for path in (ROOT / "launch").glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


def anchors(page: Path) -> set[str]:
    """The anchors of a Markdown page's headings, made as the usual forges make them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    for script in re.findall(r"python ((?:launch|jobs|env|benchmarks)/[\w/]+\.py)", page.read_text()):
        assert (ROOT / script).exists(), f"{page.name} shows {script}, which does not exist"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", page.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} shows make {target}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_and_is_in_the_readme(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, ROOT / "launch" / command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert f"python launch/{command}" in shown.lower().partition("examples:")[2]
    assert f"launch/{command}" in (ROOT / "README.md").read_text()
    assert ("--signal-delay" in shown) == (command.removesuffix(".py") in LEAVING), "where it does something"


def test_launchers_import_no_training_library() -> None:
    script = (
        "import sys, runpy, importlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"for name in {[command[:-3] for command in COMMANDS]!r}:\n"
        "    importlib.import_module('launch.' + name)\n"
        "print(sorted({'torch', 'mmengine', 'mmseg', 'mmcv', 'numpy'} & set(sys.modules)))\n"
    )
    # `python launch/x.py` puts the checkout into sys.path[0], which `-c` has as ''.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
