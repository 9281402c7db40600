"""One module names the files of a run directory, and nobody else spells them."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.run import files

ROOT = Path(__file__).resolve().parents[2]


def test_a_name_is_its_pattern_filled_in() -> None:
    assert files.STACKS(START=3, RANK=0) == "stacks-3-0.txt"
    assert files.REQUEST() == "run.yaml"


@functools.cache
def spelled() -> list[tuple[Path, int, str]]:
    """(file, line, text) of each string that is joined to a path, or that a folder is searched for."""
    return list(_spelled())


def _spelled() -> Iterator[tuple[Path, int, str]]:
    for top in ("jobs", "launch"):
        for path in (ROOT / top).rglob("*.py"):
            # What a probe and a conversion write lies in folders of their own.
            if path != ROOT / "jobs/run/files.py" and not {"doctor", "prepare"} & set(path.parts):
                for node in ast.walk(ast.parse(path.read_text())):
                    for part in parts(node):
                        yield path.relative_to(ROOT), part.lineno, text(part)


def parts(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [node.right]
    named = ("glob", "rglob", "with_name")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in named:
        return node.args[:1]
    return []


def text(node: ast.expr) -> str:
    """A string, with X for what is filled in; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "X" for one in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ""


def pattern(file: files.File) -> str:
    name = re.escape(re.sub(r"\{\w+\}", "\0", file.pattern)).replace(re.escape("\0"), "[X*0-9a-z-]+")
    return f"(.*/)?{name}"


# Patterns that say nothing by themselves: any file of JSON, say.
PLAIN = {files.OTHER_CHAIN, files.CONFIG}
NAMES = [file for file in [*files.of("run"), *files.of("job")] if file not in PLAIN]


@pytest.mark.parametrize("file", NAMES, ids=lambda file: file.pattern)
def test_nobody_else_spells_a_name(file: files.File) -> None:
    found = [(str(path), line) for path, line, name in spelled() if re.fullmatch(pattern(file), name)]
    assert found == []


def test_a_spelled_name_would_be_seen() -> None:
    """Else the test above could not fail."""
    joined = ast.parse('run.job / f"start-{number}"', mode="eval").body
    (part,) = parts(joined)
    assert re.fullmatch(pattern(files.START), text(part))
