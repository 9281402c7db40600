"""What who watches sees of long work: a bar on a terminal, a line now and then in a log, `--wait`'s line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jobs.prepare import progress
from tests.support import terminal
from tests.unit.made_runs import made_run, write

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}


def test_in_a_log_it_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with progress.task("reading", 100) as advance:
        for _ in range(100):  # one a second
            clock += 1.0
            advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["reading: 3% (1/s)", "reading: 18% (1/s)"]
    assert len(lines) == 1 + (100 - 3) // 15
    with progress.task("reading", 100) as advance:
        advance(100)
    assert capsys.readouterr().out == "", "what is done at once needs no line"


def test_on_a_terminal_it_is_a_bar() -> None:
    code = (
        "from jobs.prepare import progress\n"
        "with progress.task('evaluating x.pth', 4) as advance:\n"
        "    advance(3)\n"
        "    input()\n"  # until the test has seen it
    )
    with terminal.Terminal([sys.executable, "-c", code], ENVIRONMENT, columns=100) as shown:
        shown.until("evaluating x.pth .*3/4")
        os.write(shown.master, b"\n")
        assert shown.code() == 0


def test_wait_shows_how_far_the_job_is_on_a_terminal(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write(run, 0, "submitted", stage="prepare", job="local-1", executor="local")
    write(run, 1, "started", stage="prepare", job="local-1", hosts=["n1"], world_size=1)
    log = run.job / "local-1-prepare_0_log.out"
    log.write_text("reading the archives: 40% (120.0 MB/s)\n")
    code = (
        "import sys\nfrom jobs.run.directory import Run\nfrom launch.observe import waiting\n"
        "sys.exit(waiting.wait(Run(sys.argv[1]), {'prepare': 'local-1'}))"
    )
    with terminal.Terminal([sys.executable, "-c", code, str(run.path)], ENVIRONMENT, columns=100) as shown:
        shown.until("40%")
        with log.open("a") as file:
            file.write("reading the archives: 80% (120.0 MB/s)\n")
        shown.until("80%")
        write(run, 9, "prepared", stage="prepare", job="local-1", data_root="/data")
        assert shown.code() == 0
    assert "\r\033[K" in shown.text, "the line is rewritten in its place"
