"""`python -m jobs.infer`: any image in, masks and overlays of its size out; a bad one is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.run import events
from jobs.run.directory import Run


def infer(run: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    checkpoint = str(run.path / "weights.pth")
    return subprocess.run(
        [sys.executable, "-m", "jobs.infer", str(run.path), "--checkpoint", checkpoint, *arguments],
        cwd=run.code,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_files_folders_and_globs_of_every_kind(random_run: Run, tmp_path: Path) -> None:
    inputs, out = tmp_path / "in put", tmp_path / "out"
    (inputs / "a").mkdir(parents=True)
    (inputs / "b").mkdir()
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(colours).save(inputs / "a" / "same.png")
    Image.fromarray(colours[:31, :47]).save(inputs / "b" / "same.jpg")
    Image.fromarray(colours[..., 0]).save(inputs / "b" / "grey.png")
    Image.fromarray(np.dstack([colours, colours[..., :1]])).save(inputs / "b" / "alpha.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) << 8).save(inputs / "deep.png")
    rotated = Image.fromarray(colours)
    exif = rotated.getexif()
    exif[0x0112] = 6  # the camera lay on its side
    rotated.save(inputs / "turned.jpg", exif=exif)
    (inputs / "broken.jpg").write_bytes(b"<html>not found</html>")

    def failures() -> list[dict[str, Any]]:
        found = [event for event in events.read(random_run.events) if event["event"] == "failed"]
        return [event for event in found if event["stage"] == "infer"]

    before = len(failures())  # other tests share the run
    done = infer(
        random_run,
        *("--out", str(out), "--"),
        *(str(inputs / "a"), str(inputs / "b" / "*.jpg"), str(inputs / "b" / "grey.png")),
        *(str(inputs / "b" / "alpha.png"), str(inputs / "*.png"), str(inputs / "turned.jpg")),
        str(inputs / "broken.jpg"),
    )
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "broken.jpg cannot be read as an image" in error
    (failed,) = failures()[before:]
    assert failed["exit_code"] == 2
    assert failed["reason"] == error.removeprefix("error: ")
    assert "Traceback" not in done.stderr

    sizes = {"a/same": (70, 50), "b/same": (47, 31), "b/grey": (70, 50), "b/alpha": (70, 50)}
    sizes |= {"deep": (70, 50), "turned": (50, 70)}
    for name, size in sizes.items():
        mask = Image.open(out / f"{name}.png")
        assert mask.mode == "P"
        assert mask.size == size
        assert np.asarray(mask).max() < 21
        assert Image.open(out / f"{name}_overlay.jpg").size == size
    assert len(list(out.rglob("[!.]*.*"))) == 2 * len(sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "/nowhere/*.jpg"), "no images at /nowhere/*.jpg"),
        (("--checkpoint", "none.pth", "--", __file__), "there is no checkpoint none.pth"),
        (("--checkpoint", "best", "--", __file__), "has no checkpoint yet"),
    ],
)
def test_a_mistake_is_one_line(random_run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = infer(random_run, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_it_and_the_same_command_goes_on(random_run: Run, tmp_path: Path) -> None:
    """Not every further image is segmented for nothing, and blamed."""
    disk, inputs = tmp_path / "disk", tmp_path / "in"
    disk.mkdir()
    inputs.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(inputs / f"{number}.png")
    # Two files of one page for each image: the second's mask has no room.
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        full = infer(random_run, "--out", str(disk / "out"), "--", str(inputs))
        assert full.returncode == 2, full.stderr
        (error,) = [line for line in full.stderr.splitlines() if line.startswith("error:")]
        assert error.startswith(
            f"error: no space left at {disk}/out/1.png (bytes, inodes or quota): make room"
        )
        assert "1 images segmented: " in full.stdout
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        done = infer(random_run, "--out", str(disk / "out"), "--", str(inputs))
        assert done.returncode == 0, done.stderr
        assert "5 of 5 images segmented (1 of them before): " in done.stdout
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


PLACES = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID")


def test_ranks_share_the_images_and_the_first_says_how_it_went(random_run: Run, tmp_path: Path) -> None:
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (31, 47, 3)).astype(np.uint8)
    for number in range(7):
        Image.fromarray(np.roll(colours, number, axis=1)).save(inputs / f"{number}.png")
    (inputs / "broken.jpg").write_bytes(b"<html>not found</html>")
    checkpoint = str(random_run.path / "weights.pth")
    random_run.events.touch()
    before = len(events.read(random_run.events))

    def ranks(*more: str) -> list[tuple[int, str, str]]:
        command = [sys.executable, "-m", "jobs.infer", str(random_run.path), "--checkpoint", checkpoint]
        place = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": f"7-{len(more)}"}
        started = [
            subprocess.Popen(
                [*command, "--out", str(out), *more, "--", str(inputs)],
                cwd=random_run.code, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | place | dict.fromkeys(PLACES, str(rank)),
            )
            for rank in range(2)
        ]  # fmt: skip
        said = [process.communicate(timeout=120) for process in started]
        return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]

    # The first of two jobs has the images 0, 2, 4, 6 of eight, each of its ranks two of them.
    first, second = ranks("--part", "1/2")
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "4 of 4 images segmented: " in first[1]
    assert sorted(path.name for path in out.glob("*.png")) == ["0.png", "2.png", "4.png", "6.png"]
    first, second = ranks()
    assert (first[0], second[0]) == (2, 0), (first, second)
    assert "7 of 8 images segmented (4 of them before)" in first[1]
    assert "broken.jpg cannot be read as an image" in first[2]
    assert "images segmented" not in second[1]
    assert len(list(out.glob("*.png"))) == 7
    told = [event["event"] for event in events.read(random_run.events)[before:]]
    assert told == ["finished", "failed"]
