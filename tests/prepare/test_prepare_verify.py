"""Verification of a dataset that is there: it says which file is wrong."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.prepare import __main__ as command
from jobs.prepare import verify
from jobs.prepare.synthetic import make_lists
from jobs.prepare.voc.pipeline import present
from jobs.run.errors import UserError

LISTS = make_lists(24, 8)
AUG = f"VOC2012/SegmentationClassAug/{LISTS.trainaug[-1]}.png"
IMAGE = f"VOC2012/JPEGImages/{LISTS.trainaug[0]}.jpg"
LIST = "VOC2012/ImageSets/Segmentation/trainaug.txt"


@pytest.fixture
def root(voc_small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(voc_small / "VOCdevkit", tmp_path / "VOCdevkit"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap_lines(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines[::-1]))


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty])
@pytest.mark.parametrize("name", [AUG, IMAGE, LIST])
def test_quick_names_missing_and_short_files(root: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(root / name)
    assert any(str(root / name) in problem for problem in verify.quick(root))
    deep = verify.deep(root)
    assert len([problem for problem in deep if str(root / name) in problem]) >= 1


def test_quick_finds_a_changed_list_of_the_same_size(root: Path) -> None:
    swap_lines(root / LIST)
    assert verify.quick(root) == [f"{root / LIST} was altered"]


def test_deep_finds_one_changed_byte_of_any_file(root: Path) -> None:
    for name in (AUG, IMAGE):
        path = root / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert verify.quick(root) == []
    problems = verify.deep(root)
    assert {problem.split(" ")[0] for problem in problems} == {str(root / AUG), str(root / IMAGE)}


def test_every_finding_is_told_once_also_below_a_path_with_a_space(voc_small: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(voc_small / "VOCdevkit", tmp_path / "my data/VOCdevkit"))
    empty(root / IMAGE)  # quick sees it, and deep too
    content = bytearray((root / AUG).read_bytes())
    content[-20] ^= 1  # only deep sees it
    (root / AUG).write_bytes(content)
    problems = verify.deep(root)
    assert len(problems) == 2
    assert problems[0].startswith(f"{root / IMAGE} ")
    assert problems[1].startswith(f"{root / AUG} ")


@pytest.mark.parametrize("gone", ["manifest.json", "files.tsv", "VOC2012/JPEGImages"])
def test_missing_parts_are_named(root: Path, gone: str) -> None:
    shutil.rmtree(root / gone) if (root / gone).is_dir() else (root / gone).unlink()
    assert Path(gone).name in verify.quick(root)[0]
    assert Path(gone).name in verify.deep(root)[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}'])
def test_damaged_manifest_is_a_finding_not_a_crash(root: Path, content: str) -> None:
    (root / "manifest.json").write_text(content)
    assert "manifest.json" in verify.quick(root)[0]
    assert "manifest.json" in verify.deep(root)[0]


def test_damaged_file_table_is_found(root: Path) -> None:
    table = root / "files.tsv"
    table.write_text(table.read_text().replace(".png", ".gif", 1))
    assert "files.tsv" in verify.quick(root)[0]


def test_every_pixel_counts_even_if_the_table_agrees(root: Path) -> None:
    """A mask with a label that cannot be, and one of another size than its image, entered in the table."""
    from jobs.catalog import manifest
    from jobs.run.deflate import content_digest

    found = manifest.read(root)
    assert found
    entries = {entry.path: entry for entry in manifest.read_files(root, found)}
    other = f"VOC2012/SegmentationClassAug/{LISTS.trainaug[-2]}.png"
    for name, mask in ((AUG, np.full((5, 5), 77, np.uint8)), (other, np.zeros((5, 7), np.uint8))):
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        (root / name).write_bytes(buffer.getvalue())
        entries[name] = manifest.Entry(name, buffer.tell(), content_digest(buffer.getvalue()))
    table = manifest.files_text(entries.values())
    (root / "files.tsv").write_bytes(table)
    values = json.loads((root / "manifest.json").read_text())
    values["files_digest"] = manifest.table_digest(table)
    (root / "manifest.json").write_text(json.dumps(values))
    problems = verify.deep(root)
    assert len(problems) == 2
    assert any("label 77" in problem for problem in problems)
    assert any("7×5" in problem for problem in problems)


def test_command_says_what_is_wrong_and_ends_with_2(root: Path) -> None:
    empty(root / AUG)
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", "--data-root", str(root.parent), "--verify"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert str(root / AUG) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("lost", "fix"), [(0, "; move it away, and prepare it again"), (1, "; prepare it again")]
)
def test_what_is_advised_makes_it_sound(root: Path, lost: int, fix: str) -> None:
    """A preparation finds one ready whose files have their sizes, and makes one anew that lacks a byte."""
    file = root / AUG
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[: len(content) - lost])
    with pytest.raises(UserError) as refused:
        command.look(command.parser().parse_args(["--verify", "deep", "--processes", "1"]), root, 0)
    assert str(refused.value).endswith(fix)
    assert (present(root.parent, root.name) is None) == bool(lost)
