"""On which device these tests run, and the table at their end.

Without a GPU they skip; with BATON_GPU_ON=cpu they run on the CPU, small (docs/gpu-options.md).
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before torch looks: no GPU for those that are to run on the CPU, and for all that they start.
if os.environ.get("BATON_GPU_ON") == "cpu":
    for _name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        os.environ[_name] = ""

# Tests' ranks are forked from a process that has imported all (tests/support/tiny.py). mmengine's import asks
# whether CUDA is available; this has torch answer without calling CUDA, which no fork could use from then on.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from jobs.engine import devices
from jobs.run.directory import write_atomically
from tests.gpu import table, work
from tests.support import tiny

if work.GPUS == 1:
    # Two ranks then share it. Before the server starts that ranks are forked from: they have its environment.
    os.environ.setdefault(devices.SHARED, "1")

OUTCOMES: dict[str, str] = {}
ROWS: list[tuple[str, str]] = []
PASSED: Counter[str] = Counter()
FIGURE = "figure"
PART = os.environ.get("BATON_GPU_PART")
AFTER = os.environ.pop("BATON_GPU_AFTER", None)
"""A descriptor that ends when this process's tests may begin."""
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
HERE = Path(__file__).parent


LONG = (
    "compiled_for_the_measurement",
    "how_far_apart_without_deterministic_kernels[UPerNet",
    "hang",
    "how_far_apart_without_deterministic_kernels[transformer",
    "[compile]",
    "UPerNet",
    "dead_rank",
    "transformer",
    "requeue",
    "compiles",
    "bfloat16",
)
"""Parts of the names of tests that take long, the longest first, which begin first: several run at once."""


def place(item: pytest.Item) -> int:
    at_once = HERE in item.path.parents and item.path.name != "test_speed.py"
    long = enumerate(LONG if at_once else ())
    return next((number for number, part in long if part in item.name), len(LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)
    at_once = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if 1 < at_once <= len(items) // 2:
        # Each process is given two tests to begin with: a long one, and one that may wait for it.
        first, others, short = items[:at_once], items[at_once:-at_once], items[-at_once:]
        items[:] = [*(item for pair in zip(first, short, strict=True) for item in pair), *others]
    if work.GPUS or work.ON_CPU:
        return
    skip = pytest.mark.skip(reason="no GPU that torch can use here (BATON_GPU_ON=cpu runs them on the CPU)")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


def pytest_sessionstart(session: pytest.Session) -> None:
    """While the tests are collected, their server imports. (xdist's first process has none.)"""
    if PART and session.config.getoption("dist", "no") == "no":
        tiny.import_ahead()


def pytest_collection_finish() -> None:
    """What is measured waits for the other tests to end, and for imports, which would disturb it."""
    if AFTER is not None:
        tiny.wait_for_imports()
        os.read(int(AFTER), 1)


@pytest.fixture(autouse=True)
def in_time() -> None:
    spent = time.time() - work.BEGAN
    if spent > work.SECONDS:
        pytest.skip(f"not begun: {spent:.0f} s are over (BATON_GPU_SECONDS={work.SECONDS:.0f})")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Puts a line into the table: what, and its figure. From whichever process the test runs in; at once if
    that is this one, for a test that is ended has no more to say."""

    def line(what: str, figure: str) -> None:
        if IN_WORKER:
            record_property(FIGURE, [what, figure])
        else:
            ROWS.append((what, figure))
            keep()

    return line


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not report.nodeid.startswith(("tests/gpu/", "tests/unit/test_pure_ops.py")):
        return
    name = report.nodeid.partition("::")[2]
    if report.failed:
        OUTCOMES[name] = "FAILED"
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        OUTCOMES[name] = f"skipped: {reason.removeprefix('Skipped: ')}"
    elif report.when == "call" and report.nodeid.startswith("tests/gpu/"):
        OUTCOMES[name] = f"passed ({report.duration:.0f} s)"
    elif report.when == "call":
        # Of an operation's many sizes and devices, a line together.
        operation = name.partition("[")[0]
        PASSED[operation] += 1
        OUTCOMES[operation] = f"passed ({PASSED[operation]} of this kind)"
    if report.when == "call":
        properties: list[tuple[str, Any]] = report.user_properties
        ROWS.extend((what, figure) for kind, (what, figure) in properties if kind == FIGURE)
    keep()


def keep() -> None:
    """After each test: __main__ may end this process before the last."""
    if PART and not IN_WORKER:
        write_atomically(Path(PART), json.dumps([OUTCOMES, ROWS]).encode())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if OUTCOMES and (work.GPUS or work.ON_CPU) and not PART:
        terminalreporter.write_line(f"\n{table.render(OUTCOMES, ROWS)}")
