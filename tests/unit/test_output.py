"""Folders for results: nothing of the user's is overwritten in them. Standard output takes any character."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.catalog import own_images, prepare_options
from jobs.run import output
from jobs.run.errors import UserError
from launch.observe.doctor import profile
from launch.submit import profiles

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_is_taken_if_it_is_new_or_empty_and_again_once_it_is_ours(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        output.claim(tmp_path / name)
        (tmp_path / name / "result.png").touch()
        output.claim(tmp_path / name)


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"a photo")
    (tmp_path / "file").touch()
    for name in ("mine", "file"):
        with pytest.raises(UserError, match=r"--out .* name a folder that is new or empty"):
            output.claim(tmp_path / name)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photo.png"]


@pytest.mark.parametrize("how", ["itself", "symlink", "hard link"])
def test_no_result_goes_over_what_is_read(how: str, tmp_path: Path) -> None:
    photo, target = tmp_path / "photo.png", tmp_path / "target.png"
    photo.write_bytes(b"a photo")
    if how == "symlink":
        target.symlink_to(photo)
    elif how == "hard link":
        target.hardlink_to(photo)
    with pytest.raises(UserError, match="would be overwritten"):
        output.check_apart([photo], [photo if how == "itself" else target])
    output.check_apart([photo], [tmp_path / "elsewhere.png"])


@pytest.mark.parametrize("what", ["pipe", "folder", "link to a pipe"])
def test_a_file_is_not_written_in_place_of_a_pipe_a_device_or_a_folder(what: str, tmp_path: Path) -> None:
    place = tmp_path / "config.py"
    if what == "folder":
        place.mkdir()
    else:
        os.mkfifo(place if what == "pipe" else tmp_path / "f")
    if what == "link to a pipe":
        place.symlink_to(tmp_path / "f")
    with pytest.raises(UserError, match=r"--out .*config\.py is a (folder|device or a pipe), not a file"):
        output.check_file(place, "--out")
    with pytest.raises(UserError, match="--write-config"):
        own_images.check(own_arguments(tmp_path, "--write-config", str(place)))


def test_a_file_that_is_there_or_not_is_written_at_the_end_of_its_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    assert output.check_file(tmp_path / "link", "--out") == tmp_path / "new"
    (tmp_path / "new").touch()
    assert output.check_file(tmp_path / "link", "--out") == tmp_path / "new"


@pytest.mark.parametrize("option", ["--classes", "--masks"])
def test_what_is_read_is_not_waited_for_in_a_pipe(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=f"{option} .*pipe"):
        own_images.check(own_arguments(tmp_path, option, str(tmp_path / "pipe")))


def test_a_profile_is_not_waited_for_in_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "site.yaml")
    with pytest.raises(UserError, match=r"site\.yaml cannot be read: it is a device or a pipe"):
        profiles.load(str(tmp_path / "site.yaml"))


def test_a_profile_is_not_written_in_place_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "CLUSTERS", tmp_path)
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(UserError, match=r"--write-profile .*mine\.yaml is a folder"):
        profile.check_name("mine", force=True)


def own_arguments(folder: Path, *more: str) -> argparse.Namespace:
    """Those of prepare.py for a dataset of one's own that has no fault but `more`."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("a\nb\n")
    parser = argparse.ArgumentParser()
    prepare_options.add(parser)
    given = ["--dataset", "mine", "--images", f"{folder}/images", "--masks", f"{folder}/images"]
    return parser.parse_args([*given, "--classes", f"{folder}/classes.txt", *more])


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_character_that_the_locale_lacks_ends_no_command(encoding: str) -> None:
    text = "from jobs.run.errors import run_command; run_command(lambda: print('a \\u2026 \\udcff'))"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a \\u2026 \\udcff\n", b"")
