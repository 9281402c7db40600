"""The report in a real browser: it renders, in light and dark, without an error and without a request."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.observe.report import data as report_data
from launch.observe.report import page as report_page
from tests.unit.made_runs import with_everything

NAMES = ("chromium", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), "")
# As root on Debian `make local` installs it, so that there its absence is a failure.
MUST = os.geteuid() == 0 and shutil.which("apt-get") is not None


@pytest.mark.skipif(not BROWSER and not MUST, reason="no browser here; as root: sh env/test-tools.sh")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(tmp_path: Path, dark: bool) -> None:
    assert BROWSER, "no browser: sh env/test-tools.sh installs it"
    run = with_everything(tmp_path / "run")
    run.report.write_text(report_page.page(report_data.gather([run])[0]))
    picture, log = tmp_path / "page.png", tmp_path / "net.json"
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--window-size=1000,3400",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--screenshot={picture}", run.report.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert picture.exists(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr
    asked = set(re.findall(r'"url":"(https?:[^"]+)"', log.read_text())) if log.exists() else set()
    ours = {url for url in asked if "google" not in url and "gvt1" not in url}
    assert not ours, ours
    from PIL import Image

    shown = Image.open(picture).convert("RGB")
    background = shown.getpixel((5, 5))
    assert background == ((13, 17, 23) if dark else (255, 255, 255))
    colours = {colour for _, colour in shown.getcolors(1 << 24) or []}
    line = (88, 166, 255) if dark else (31, 111, 235)
    assert line in colours, "the loss curve is not drawn"
