"""The report: what it holds. tests/local/test_report_browser.py looks at it in a real browser."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from jobs.evaluate import per_image, results
from jobs.mmseg import figures
from jobs.run.directory import Run
from launch.observe.history import read
from launch.observe.report import charts as report_charts
from launch.observe.report import comparison
from launch.observe.report import data as report_data
from launch.observe.report import page as report_page
from tests.unit.fake_slurm import one_line
from tests.unit.made_runs import interrupted_run, made_run, with_everything

ROOT = Path(__file__).resolve().parents[2]


def test_rows_that_a_later_start_did_again_count_once(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    data = report_data.gather([run])[0]
    steps = [row["step"] for row in data.train]
    assert steps == sorted(set(steps))
    assert {row["start"] for row in data.train if row["step"] > 200} == {3}
    assert [row["step"] for row in data.val] == [150, 400]  # step 250's belongs to work that was lost


def test_the_page_holds_what_it_should(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    page = report_page.page(report_data.gather([run])[0])
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
    page = report_page.page(report_data.gather([with_everything(tmp_path / "run")])[0])

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
    page = report_page.page(report_data.gather([run])[0])
    assert "run.yaml is damaged" in page


def test_comparison(tmp_path: Path) -> None:
    first, second = with_everything(tmp_path / "one"), with_everything(tmp_path / "two")
    second.write_request(_changed(second))
    page = comparison.comparison(report_data.gather([first, second]))
    assert "IoU by class" in page
    assert re.search(r"<td[^>]*>seed</td><td[^>]*>0</td><td[^>]*>7</td>", page)
    assert "colour of its run" in page
    for index in (0, 1):  # two interruptions of each run on each of the three charts
        assert page.count(f'class="mark s{index}"') == 2 * 3


def _changed(run: Run):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(run.request(), seed=7)


def test_interruptions_are_marked_where_they_happened(tmp_path: Path) -> None:
    data = report_data.gather([with_everything(tmp_path / "run")])[0]
    assert [mark.x for mark in report_page.interruptions(data)] == [150, 250]
    page = report_page.page(data)
    assert page.count('class="mark"') == 2 * 3
    assert page.count("<title>start 1: preempted (USR2), saved at step 150</title>") == 3


def test_figures_that_are_none_break_nothing(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    with run.metrics.open("a") as file:
        file.write('\n{"step": 301, "epoch": 3, "start": 3, "kind": "train", "loss": NaN, "lr": null}\n')
    metrics = run.eval / "epoch_4-abcdef12" / "metrics.json"
    metrics.write_text(metrics.read_text().replace("51.0", "NaN", 1))
    page = report_page.page(report_data.gather([run])[0])
    assert not re.search(r"\b(nan|NaN|None)\b", re.sub(r"base64,[^\"]+", "", page))
    assert "Confusion matrix" in page


def test_names_of_hosts_keep_what_tells_them_apart() -> None:
    domain = "rack17.machines.example.org"
    assert report_charts.short_names([f"node{n}.{domain}" for n in (1, 2)]) == ["node1", "node2"]
    apart = [f"node1.{place}.a-cluster-of-some.example.org" for place in ("north", "south")]
    assert len(set(report_charts.short_names(apart))) == 1, "equal ends: the tooltip has the whole name"
    long = [f"machine-of-the-institute-in-hall-0{n}-blade-{n:04}" for n in (1, 2)]
    assert [name[-4:] for name in report_charts.short_names(long)] == ["0001", "0002"]
    bars = [report_charts.Bar(name, 0.0, 5.0, "training", "x") for name in long]
    chart = report_charts.timeline("t", bars, 0.0, 10.0, 1.0, "s")
    assert f"<title>{long[0]}</title>" in chart


def test_the_command_that_repeats_a_run_is_accepted_as_it_stands(tmp_path: Path) -> None:
    """Typed from the page while the run is there, whose name is taken."""
    command = [
        "launch/train.py",
        "--config",
        "configs/demo.py",
        "--run",
        "one",
        "--cluster",
        "local",
        "--wait",
    ]
    run = made_run(tmp_path / "one", command=[*command, "--set", "randomness.seed=1"])
    page = report_page.page(report_data.gather([run])[0])
    shown = re.findall(r"<pre>(.*)</pre>", page)
    assert len(shown) == 1
    typed = shlex.split(shown[0].replace("&#x27;", "'"))
    assert typed == [
        *("python", "launch/train.py", "--config", "configs/demo.py", "--cluster", "local"),
        *("--set", "randomness.seed=1"),
    ]
    environment = os.environ | {"BATON_RUNS": str(tmp_path)}
    for given, code in ((typed[1:], 0), (command, 2)):
        done = subprocess.run(
            [sys.executable, *given, "--dry-run"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr


def test_of_a_sweep_one_element_is_repeated(tmp_path: Path) -> None:
    command = ["launch/train.py", "--sweep=optim_wrapper.optimizer.lr=0.1,0.2", "--run=x", "--set", "a=1"]
    overrides = {"a": 1, "optim_wrapper.optimizer.lr": 0.2}
    run = made_run(tmp_path / "x-1", command=command, set=overrides)
    assert report_data.repeat_command(run.request()) == [
        *("python", "launch/train.py", "--set", "optim_wrapper.optimizer.lr=0.2", "--set", "a=1"),
    ]


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
    assert "next: python launch/report.py --compare one RUN" in done.stdout
    assert read(Run(tmp_path / "one")).finished

    with_everything(tmp_path / "two")
    compare = [*command[:2], "--compare", "one", "two"]
    done = subprocess.run(compare, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "comparison.html").read_text()
    assert page.count('class="mark s1"') == 6
    assert "<h1>one · two</h1>" in page
    wrong = subprocess.run(compare[:-1], capture_output=True, text=True, timeout=60, env=environment)
    assert wrong.returncode == 2
    assert "two runs or more" in wrong.stderr


def test_an_evaluation_is_told_with_its_intervals_and_the_worst_images_first(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    for old in run.eval.iterdir():
        shutil.rmtree(old)
    where, each = run.eval / "epoch_1-abc-tta", per_image.PerImage()
    total = np.zeros((2, 2), np.int64)
    for right in (9, 2, 6):
        matrix = np.array([[right, 10 - right], [0, 5]])
        each.add(len(each.rows), matrix, matrix)
        total += matrix
    counts = per_image.joined([each.tobytes()], 3, 2)
    order, scores = per_image.worst_first(counts)
    names = {1: "1_b", 2: "2_c"}  # of the best there is none
    for name in ("9_of an earlier evaluation", *names.values()):
        (where / "pictures").mkdir(parents=True, exist_ok=True)
        (where / "pictures" / f"{name}.jpg").write_bytes(name.encode())
    results.write_images(
        where, [(index, names.get(index, "")) for index in order], ["a.jpg", "b.jpg", "c.jpg"], scores
    )
    found = per_image.completed(
        figures.figures(total, ["x", "<y>"], boundary=counts[:, 3:].sum(0)), counts, 1.0
    )
    about = {"asked": ["mIoU", "own/kind"], "own/kind": "<odd>", "augmented": "the config's"}
    results.write(where, found | about | {"not_computed": ["Mine: <no>"]}, total)
    page = report_page.page(report_data.gather([run])[0])
    low, high = found["intervals"]["mIoU"]
    assert f"mIoU {found['mIoU']:.2f} [{low:.2f}, {high:.2f}] · own/kind &lt;odd&gt;" in page
    assert "augmented (the config&#x27;s)" in page
    assert "Not computed: Mine: &lt;no&gt;" in page
    for head in ("Acc", "Dice", "Fscore", "Precision", "Recall", "Boundary IoU"):
        assert f'<th class="n">{head}</th>' in page
    shown = re.findall(r"<figcaption>([^<]+)</figcaption>", page)
    assert shown == [f"b · mIoU {scores[1][0]:.2f}", f"c · mIoU {scores[2][0]:.2f}"]


@pytest.mark.parametrize("asked", [["one"], ["--compare", "one", "two", "--table", "csv"]])
def test_out_is_no_device_no_pipe_and_no_folder(asked: list[str], tmp_path: Path) -> None:
    """As root, `--out /dev/null` put a page in place of the device; out of a pipe it read for ever."""
    for name in ("one", "two"):
        with_everything(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is, in a folder of ours
    environment = {"PATH": "/nonexistent", "BATON_RUNS": str(tmp_path), "HOME": str(tmp_path)}
    for name, said in (
        ("pipe", "a device or a pipe"),
        ("stdout", "a device or a pipe"),
        ("folder", "a folder"),
    ):
        command = [sys.executable, str(ROOT / "launch/report.py"), *asked, "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        one_line(done, f"--out {tmp_path / name} is {said}, not a file")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["9" * 300, "a\0b", ".."])
def test_a_picture_that_no_file_can_be_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(b"x")
    (tmp_path / "per_image.csv").write_text(f"picture,mIoU\n{name},1\na.jpg,2\n")
    found, _ = report_data.read_pictures(tmp_path)
    assert len(found) == 1
