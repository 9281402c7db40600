"""A real Slurm for the tests: one cluster for most, and variants of it, started when first asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launcher import Launcher

from jobs.run.errors import UserError
from tests.support.cluster import config, packages
from tests.support.cluster.config import Layout
from tests.support.cluster.down import stop
from tests.support.slurm import Slurm

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


def up(state: Path, *options: str) -> Slurm:
    """Starts a cluster by the command that users give."""
    command = [sys.executable, "-m", "tests.support.cluster.up", str(state), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return Slurm(config.load(state))


@pytest.fixture(scope="session")
def installed() -> None:
    """What a cluster is made of; skips where it is not here."""
    try:
        packages.require()
    except UserError as error:
        # In CI a skipped test would look like a passed one.
        if os.environ.get("BATON_REQUIRE_SLURM") and os.getuid() == 0:
            pytest.fail(f"BATON_REQUIRE_SLURM is set, and there is no Slurm: {error}")
        pytest.skip(f"no Slurm: {error}")


@pytest.fixture(scope="session")
def guard(installed: None) -> Iterator[Callable[[Path], None]]:  # noqa: ARG001
    """Given a state directory, sees to it that its cluster is stopped when the tests end, even if killed."""
    command = [sys.executable, "-m", "tests.support.cluster.guard"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin

        def watch(state: Path) -> None:
            print(state, file=process.stdin, flush=True)

        yield watch
        process.stdin.close()
        assert process.wait(120) == 0


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory, guard: Callable[[Path], None]) -> Callable[..., Slurm]:
    """Gives the cluster with the options of up.py asked for: the same one for the same options."""
    clusters: dict[tuple[str, ...], Slurm] = {}

    def get(*options: str) -> Slurm:
        if options not in clusters:
            name = re.sub(r"\W+", "-", " ".join(options)) or "plain"
            state = tmp_path_factory.mktemp("slurm") / name.strip("-")[:20]
            guard(state)  # which stops it but wipes nothing: its logs may tell why a test failed
            clusters[options] = up(state, *options)
        return clusters[options]

    return get


@pytest.fixture(scope="session")
def cluster(variant: Callable[..., Slurm]) -> Slurm:
    """The cluster of most tests: a preempted job gets its own signal, and half a minute of grace."""
    return variant("--user-signal", "--grace", "30")


@pytest.fixture
def launch(cluster: Slurm, tmp_path: Path, voc_small: Path) -> Launcher:
    return Launcher(cluster, tmp_path, voc_small)


@pytest.fixture
def state(tmp_path: Path, guard: Callable[[Path], None]) -> Iterator[Path]:
    """A state directory for one test's own cluster, stopped whatever the test did."""
    path = tmp_path / "c"
    guard(path)
    yield path
    if Layout(path).lock.exists():
        stop(path, wipe=True)
