"""The report: what it holds, and that a real browser shows it without asking anybody for anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs.run_directory import Run
from launch import report_charts, report_data, report_page
from launch.history import read
from tests.unit.made_runs import interrupted_run, write

ROOT = Path(__file__).resolve().parents[2]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def with_everything(path: Path) -> Run:
    """An interrupted, evaluated run with curves, a confusion matrix, a picture and a hostile name."""
    run = interrupted_run(path)
    with run.metrics.open("a") as file:
        for start, begin, end in ((1, 1, 150), (2, 151, 250), (3, 201, 400)):
            for step in range(begin, end + 1, 2):
                row = {"step": step, "epoch": step // 100, "start": start, "kind": "train"}
                file.write(json.dumps(row | {"loss": 3.0 / step**0.5, "lr": 0.01 * (1 - step / 500)}) + "\n")
            row = {"step": end, "epoch": end // 100, "start": start, "kind": "val", "mIoU": end / 7}
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 40')
    where = run.eval / "epoch_4-abcdef12"
    (where / "pictures").mkdir(parents=True)
    names = ["background", "<b>cat</b>", "dog"]
    classes = [{"name": name, "IoU": 50.0 + i, "Acc": 60.0, "pixels": 100} for i, name in enumerate(names)]
    metrics = {"mIoU": 51.0, "mAcc": 60.0, "aAcc": 70.0, "checkpoint": "epoch_4.pth", "images": 8}
    (where / "confusion.csv").write_text(
        "truth," + ",".join(names) + "\n" + "\n".join(f"{name},80,15,5" for name in names) + "\n"
    )
    from PIL import Image

    Image.new("RGB", (120, 40), (200, 30, 30)).save(where / "pictures" / "2007_000033.jpg")
    (where / "metrics.json").write_text(json.dumps(metrics | {"classes": classes}))
    write(
        run, 700, "evaluated", stage="evaluate", job="14", checkpoint="epoch_4.pth", metrics=metrics, path="x"
    )
    return run


def test_rows_that_a_later_start_did_again_count_once(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    data = report_data.gather(run)
    steps = [row["step"] for row in data.train]
    assert steps == sorted(set(steps))
    assert {row["start"] for row in data.train if row["step"] > 200} == {3}
    assert [row["step"] for row in data.val] == [150, 400]  # step 250's belongs to work that was lost


def test_the_page_holds_what_it_should(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    page = report_page.page(report_data.gather(run))
    for part in (
        "Loss",
        "Learning rate",
        "mIoU",
        "Starts",
        "Where the time went",
        "ETTR",
        "would have been best",
    ):
        assert part in page
    for part in (
        "Confusion matrix",
        "2007_000033",
        "data:image/jpeg;base64,",
        "Environment",
        "saved at step 150",
    ):
        assert part in page
    assert "<b>cat" not in page
    assert "&lt;b&gt;cat" in page
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"base64,[^\"]+", "", page))


def test_nothing_in_the_page_points_elsewhere(tmp_path: Path) -> None:
    page = report_page.page(report_data.gather(with_everything(tmp_path / "run")))

    class Links(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [
                value or "" for name, value in attrs if name in ("src", "href", "action", "xlink:href")
            ]
            assert tag not in ("script", "iframe", "object", "embed")

    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("data:") for link in links.found)
    assert "url(" not in page
    assert "@import" not in page


def test_a_run_of_which_there_is_next_to_nothing(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    run.events.unlink()
    (run.path / "progress.json").unlink()
    run.request_file.write_text("{")
    page = report_page.page(report_data.gather(run))
    assert "run.yaml is damaged" in page


def test_comparison(tmp_path: Path) -> None:
    first, second = with_everything(tmp_path / "one"), with_everything(tmp_path / "two")
    second.write_request(_changed(second))
    page = report_page.comparison([report_data.gather(first), report_data.gather(second)])
    assert "IoU by class" in page
    assert re.search(r"<td>seed</td><td>0</td><td>7</td>", page)


def _changed(run: Run):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(run.request(), seed=7)


def test_ticks_enclose_and_are_round() -> None:
    assert report_charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert report_charts.ticks(37.2, 61.9)[0] <= 37.2
    assert report_charts.ticks(5, 5)[-1] > 5
    many = [(float(x), float(x % 97)) for x in range(100_000)]
    few = report_charts.thinned(many)
    assert len(few) <= 2 * report_charts.MOST_POINTS
    assert max(y for _, y in few) == 96


def test_the_command(tmp_path: Path) -> None:
    with_everything(tmp_path / "one")
    environment = {"PATH": "/nonexistent", "BATON_RUNS": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, str(ROOT / "launch/report.py"), "one"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one/report.html").stat().st_size > 10_000
    assert read(Run(tmp_path / "one")).finished


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(tmp_path: Path, dark: bool) -> None:
    run = with_everything(tmp_path / "run")
    run.report.write_text(report_page.page(report_data.gather(run)))
    picture, log = tmp_path / "page.png", tmp_path / "net.json"
    done = subprocess.run(
        [
            BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
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
