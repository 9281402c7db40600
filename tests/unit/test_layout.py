"""The layout's rules: which package may import from which, and what the login node must not load.

Read from the sources, imports inside functions too, so a rule cannot be got round by importing late.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS = (
    ("jobs.run",),
    ("jobs.slurm",),
    ("jobs.catalog",),
    ("jobs.supervise",),
    ("jobs.engine",),
    ("jobs.worker", "jobs.mmseg"),
    ("jobs.prepare",),
    ("jobs.evaluate", "jobs.infer", "jobs.export", "jobs.train", "jobs.probe"),
)
"""From the ground up: a package imports from its own floor's package and from those below it."""

HEAVY = {"torch", "torchvision", "mmengine", "mmseg", "mmcv"}
MAY_LOAD = {
    "jobs.engine": {"torch"},
    "jobs.mmseg": HEAVY,
    "jobs.prepare": HEAVY,
    "jobs.evaluate": HEAVY,
    "jobs.infer": HEAVY,
    "jobs.export": HEAVY,
    "jobs.probe": HEAVY,
}
"""Who may load a training library; nobody else."""


def modules() -> Iterator[tuple[str, Path]]:
    for top in ("jobs", "launch"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(name: str) -> str:
    return ".".join(name.split(".")[:2])


def floor(name: str) -> int | None:
    return next((number for number, packages in enumerate(FLOORS) if name in packages), None)


def broken() -> set[tuple[str, str]]:
    found = set()
    for name, path in modules():
        own = package(name)
        for target in {package(one) for one in imported(path) if one.startswith(("jobs.", "launch."))} - {
            own
        }:
            if name.startswith("launch."):
                wrong = target.startswith("jobs.") and target not in (
                    "jobs.run",
                    "jobs.slurm",
                    "jobs.catalog",
                )
            else:
                mine, other = floor(own), floor(target)
                wrong = target.startswith("launch.") or (
                    mine is not None and other is not None and other >= mine
                )
            if wrong:
                found.add((name, target))
    return found


def test_arrows_point_one_way() -> None:
    assert broken() == set()


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(value))
def test_training_libraries_are_loaded_where_training_is(name: str, path: Path) -> None:
    loaded = {one.partition(".")[0] for one in imported(path)} & HEAVY
    assert loaded <= MAY_LOAD.get(package(name), set())


PRODUCT = ("jobs", "launch", "env", "benchmarks", "examples")


KNOW_SEGMENTATION = {"jobs.mmseg", "jobs.evaluate"}
NAME_ITS_METRICS = {"jobs.run.metrics", "jobs.catalog.supported"}
"""The names that are known of any run, and what a config of mmseg may ask for."""


def test_a_metric_of_segmentation_is_named_where_it_is_computed() -> None:
    """Whoever shows a run takes the name from what the run wrote."""
    for name, path in modules():
        if package(name) not in KNOW_SEGMENTATION and name not in NAME_ITS_METRICS:
            assert "mIoU" not in path.read_text(), name


FINDS_THE_CHECKOUT = {
    *("launch/__init__.py", "launch/checkout.py", "env/__init__.py", "env/repository.py"),
    *("benchmarks/__init__.py", "benchmarks/repository.py"),
}


def test_commands_do_not_lie_below_launch() -> None:
    """launch/NAME.py are what users type, and all of them are commands."""
    for path in (ROOT / "launch").glob("*.py"):
        name = str(path.relative_to(ROOT))
        assert name in FINDS_THE_CHECKOUT or '__name__ == "__main__"' in path.read_text(), path


def changes_the_search_path(path: Path) -> bool:
    """Whether it assigns to sys.path or a part of it, or calls a method of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else []
        changed = [ast.unparse(target).partition("[")[0] for target in targets]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed.append(ast.unparse(node.func.value))
        if "sys.path" in changed:
            return True
    return False


def test_one_module_of_each_folder_finds_the_checkout() -> None:
    files = [path for top in PRODUCT for path in (ROOT / top).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if changes_the_search_path(path)}
    assert found == FINDS_THE_CHECKOUT
    assert not [path for path in files if "E402" in path.read_text()]


def test_benchmarks_and_tests_share_what_lies_in_support() -> None:
    for top in PRODUCT:
        for path in (ROOT / top).rglob("*.py"):
            shared = {package(one) for one in imported(path) if one.startswith("tests.")}
            assert shared <= ({"tests.support"} if top == "benchmarks" else set()), path


def test_one_module_runs_slurms_commands() -> None:
    for _, path in modules():
        text, name = path.read_text(), str(path.relative_to(ROOT))
        if name != "jobs/slurm/commands.py":
            of_slurm = r"subprocess\.\w+\(\s*\[\*?\(?\"(s(batch|queue|control|acct|info|cancel)|scontrol)\""
            assert not re.search(of_slurm, text), name
        assert "subprocess" not in text or not name.startswith("jobs/slurm/") or "commands" in name, name


REDUCER = "jobs/run/story.py"
SHOWS_EVENTS_AS_THEY_COME = {"launch/observe/waiting.py"}


def test_one_reducer_walks_through_a_runs_events() -> None:
    """What else wants to know something of a run asks the history that comes of it."""
    kinds, files = set(), set()
    for _, path in modules():
        text, name = path.read_text(), str(path.relative_to(ROOT))
        if re.search(r"isinstance\(\w+, \(?kinds\.", text) and name != "jobs/run/past.py":
            kinds.add(name)
        if re.search(r"\bevents\.(read|iterate)\(|\bread_events\(", text) and name != "jobs/run/records.py":
            files.add(name)
    assert kinds == {REDUCER}
    assert files == {REDUCER} | SHOWS_EVENTS_AS_THEY_COME


MOST_LINES = 400
MOST_LINES_OF_A_COMMAND = 120
MOST_LINES_OF_A_FUNCTION = 60


def too_long() -> Iterator[str]:
    for _, path in modules():
        text, name = path.read_text(), str(path.relative_to(ROOT))
        most = MOST_LINES_OF_A_COMMAND if path.parent == ROOT / "launch" else MOST_LINES
        if len(text.splitlines()) > most:
            yield name
        for node in ast.walk(ast.parse(text)):
            length = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
            if isinstance(node, ast.FunctionDef) and length > MOST_LINES_OF_A_FUNCTION:
                yield f"{name}:{node.name}"


def test_files_and_functions_can_be_read_at_a_sitting() -> None:
    assert list(too_long()) == []
