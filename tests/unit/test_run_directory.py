"""run.yaml comes back as it was written; a damaged one is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run.directory import Request, Run, write_atomically
from jobs.run.errors import UserError


def request(**fields: object) -> Request:
    return Request(
        name="n", config="configs/c.py", data_root="/d", created="2026-01-01T00:00:00.000Z", **fields
    )


def test_a_request_comes_back_as_written(tmp_path: Path) -> None:
    run = Run(tmp_path / "a run; with 'quotes'")
    run.path.mkdir()
    asked = request(set={"train_dataloader.batch_size": 2}, command=["launch/train.py", "--run", "ü 'x'\n"])
    run.write_request(asked)
    assert run.request() == asked
    assert run.name == "a run; with 'quotes'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: n\n", "damaged"),
        ("name: [", "damaged"),
        ("name: n\nconfig: c\ndata_root: d\ncreated: t\nnods: 2\n", "unknown field `nods`"),
    ],
)
def test_a_damaged_request_is_the_users_to_mend(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        Run(tmp_path).request()
    assert "\n" not in str(caught.value)


def test_a_folder_without_request_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Run(tmp_path).request()


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"name: caf\xe9\n",
        b"name: a\nconfig: b\ndata_root: c\ncreated: d\nset: {e: {null: 1}}\n",  # a key that is no text
    ],
)
def test_a_request_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.yaml is damaged") as error:
        Run(tmp_path).request()
    assert "\n" not in str(error.value)
