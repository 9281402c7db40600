"""infer.py: what it hands to the job, and what it refuses before there is one."""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.run import windows
from tests.unit.fake_slurm import Site, one_line

NO_LIBRARY = bool(windows.lacking())
needs_none = pytest.mark.skipif(not NO_LIBRARY, reason="rasterio is installed here")


@pytest.fixture
def made(site: Site) -> Site:
    """A run `mine` with a checkpoint."""
    site.command("sbatch", "echo Submitted batch job 5")
    done = site.train("--cluster", "slurm", "--no-evaluation")
    assert done.returncode == 0, done.stderr
    checkpoints = site.runs / "mine" / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "epoch_1.pth").touch()
    (checkpoints / "epoch_1.pth.json").touch()
    return site


def header(path: Path, side: int) -> Path:
    """A PNG of which there is no more than the beginning."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT")
    coded = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(coded))
    return path


def test_what_the_job_gets(made: Site, tmp_path: Path) -> None:
    photos = tmp_path / "with spaces"
    photos.mkdir()
    for number in range(300):
        (photos / f"{number}.jpg").touch()
    out = tmp_path / "masks"
    done = made(
        "infer", "mine", str(photos / "*.jpg"), "--out", str(out), "--part", "2/3", "--gpus", "4", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --ntasks-per-node=4\n" in done.stdout
    assert "#SBATCH --signal=USR2@120\n" in done.stdout
    assert "--part=2/3 --" in done.stdout
    assert len(done.stdout) < 6000, "300 names do not belong into a script, for 100,000 would not go into one"


def test_a_dry_run_leaves_nothing(made: Site, tmp_path: Path) -> None:
    done = made("infer", "mine", str(header(tmp_path / "x.png", 5)), "--dry-run")
    assert (done.returncode, "--out" in done.stdout) == (0, True), done.stderr
    assert not (made.runs / "mine" / "infer").exists()
    (made.runs / "mine" / "infer").symlink_to(tmp_path / "purged")
    one_line(made("infer", "mine", str(tmp_path / "x.png"), "--dry-run"), "mine/infer is neither a folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile", "10"], "--tile must be a whole number from 64 to 8192"),
        (["--overlap", "10"], "--overlap is for --tile"),
        (
            ["--tile", "128", "--overlap", "100"],
            "--overlap must be from 0 to half a tile (64 pixels), not 100",
        ),
        (
            ["--part", "4/3", "--out", "masks"],
            "--part must be I/N, such as 1/4, with I from 1 to N, not '4/3'",
        ),
        (["--part", "1/3"], "--part needs --out"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, made: Site, tmp_path: Path) -> None:
    one_line(made("infer", "mine", str(header(tmp_path / "x.png", 5)), *arguments), message)
    assert len(made.calls("sbatch")) == 1


@needs_none
def test_without_the_library_nothing_large_is_submitted(made: Site, tmp_path: Path) -> None:
    wanted = "needs rasterio, not installed here: env/setup.sh --with geotiff installs it"
    small, big = header(tmp_path / "small.png", 500), header(tmp_path / "big.png", 30_000)
    one_line(made("infer", "mine", str(small), "--tile", "128"), wanted)
    one_line(made("infer", "mine", str(small), str(big)), "big.png has 900,000,000 pixels")
    assert len(made.calls("sbatch")) == 1
    assert made("infer", "mine", str(small)).returncode == 0


def test_a_run_whose_code_is_older_is_not_given_what_it_does_not_know(made: Site, tmp_path: Path) -> None:
    (made.runs / "mine" / "code" / "jobs" / "infer" / "large.py").unlink()
    photo = str(header(tmp_path / "x.png", 5))
    one_line(made("infer", "mine", photo, "--gpus", "2"), "continues with the code that it was made with")
    assert made("infer", "mine", photo).returncode == 0


def test_nothing_is_submitted_for_a_folder_without_images(made: Site, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "raw").mkdir(parents=True)
    (photos / "notes.txt").touch()
    one_line(made("infer", "mine", str(photos)), f"no images at {photos}: give files, folders")
    assert len(made.calls("sbatch")) == 1
    header(photos / "raw" / "X.PNG", 5)
    assert made("infer", "mine", str(photos)).returncode == 0


def test_an_image_is_not_waited_for_in_a_pipe(made: Site, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    one_line(made("infer", "mine", str(tmp_path / "x.png")), "x.png is a device or a pipe")


def test_a_run_that_is_another_users_or_kept_from_changes_is_told_in_time(
    made: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photo = made.runs / "mine", str(header(tmp_path / "x.png", 5))
    if os.geteuid() == 0:  # who may write everywhere otherwise
        plain = tmp_path / "python"
        plain.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-all {sys.executable} "$@"\n')
        plain.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(plain))
    out = str(tmp_path / "masks")
    (run / "job").chmod(0o500)
    for command in (["infer", "mine", photo, "--out", out], ["evaluate", "mine"], ["export", "mine"]):
        one_line(made(*command), "mine cannot be written to", f"use a copy, cp -r {run} {made.runs}/NAME")
    (run / "job").chmod(0o700)
    (run / "run.yaml").chmod(0)
    one_line(
        made("infer", "mine", photo), "it belongs to another user, who can share", "export.py mine --out DIR"
    )
    assert len(made.calls("sbatch")) == 1


def test_two_of_the_same_second_share_no_folder_and_no_script(made: Site, tmp_path: Path) -> None:
    """One mask was lost without a word. sbatch reads the script late, so that both would be submitted as the
    one that was written last."""
    (tmp_path / "patched").mkdir()
    stopped = "import time\ntime.strftime = lambda *_: '20260101-000000'\n"
    (tmp_path / "patched" / "sitecustomize.py").write_text(stopped)
    (tmp_path / "sent").mkdir()
    last = "for script; do :; done"
    made.command("sbatch", f'{last}; sleep 0.5; cp "$script" "{tmp_path}/sent/$$"; echo batch job $$')
    photos = [str(header(tmp_path / name, 5)) for name in ("a.png", "b.png")]
    with ThreadPoolExecutor() as both:
        patched = {"PYTHONPATH": str(tmp_path / "patched")}
        done = list(both.map(lambda photo: made("infer", "mine", photo, **patched), photos))
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    scripts = [file.read_text() for file in (tmp_path / "sent").iterdir()]
    for photo in photos:
        assert sum(photo in script for script in scripts) == 1
    folders = {found for script in scripts for found in re.findall(r"/infer/2026\S+", script)}
    assert len(folders) == 2


def test_a_refused_one_leaves_no_folder(made: Site, tmp_path: Path) -> None:
    made.command("sbatch", "echo no >&2; exit 1")
    one_line(made("infer", "mine", str(header(tmp_path / "x.png", 5))), "sbatch refused")
    assert not (made.runs / "mine" / "infer").exists()
