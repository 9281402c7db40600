"""Folders for results: nothing of the user's is overwritten in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run import output
from jobs.run.errors import UserError


def test_a_folder_is_taken_if_it_is_new_or_empty_and_again_once_it_is_ours(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        output.claim(tmp_path / name, "--out")
        (tmp_path / name / "result.png").touch()
        output.claim(tmp_path / name, "--out")


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"a photo")
    (tmp_path / "file").touch()
    for name in ("mine", "file"):
        with pytest.raises(UserError, match=r"--out .* name a folder that is new or empty"):
            output.claim(tmp_path / name, "--out")
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
