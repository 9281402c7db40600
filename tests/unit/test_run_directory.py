"""run.yaml comes back as it was written; a damaged one is named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.run.directory import Request, Run, newest_start, write_atomically
from jobs.run.errors import UserError
from jobs.run.settings import Settings


def request(**fields: Any) -> Request:
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
        (
            "name: n\nconfig: c\ndata_root: d\ncreated: t\nnods: 2\n",
            "field 'nods' that this version does not know: it was written by a newer version",
        ),
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


def test_the_settings_of_another_version(tmp_path: Path) -> None:
    """What it had more is passed over, what it lacked has its default; and it can read what is written."""
    run = Run(tmp_path)
    old = {"profile": "mine", "gpus": 4, "gone": 1, "sources": {"gpus": "mine.yaml"}, "evaluate": {"gpus": 2}}
    content = {
        "name": "a",
        "config": "c",
        "data_root": "/d",
        "created": "2026-01-01T00:00:00Z",
        "cluster": old,
    }
    run.request_file.write_text(yaml.safe_dump(content))
    found = run.request()
    assert (found.cluster.gpus, found.cluster.signal_delay) == (4, Settings().signal_delay)
    assert found.cluster.evaluate is not None
    assert found.cluster.evaluate.gpus == 2
    run.write_request(found)
    assert run.request().cluster == found.cluster
    written = yaml.safe_load(run.request_file.read_text())["cluster"]
    assert "infer" not in written  # an older launcher asks for {} where there is nothing
    assert written["sources"] == {"gpus": "mine.yaml"}


def test_starts_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path) -> None:
    """glob does, in Python 3.13 whatever the error: a start that is over would write beside the newest."""
    assert newest_start(tmp_path / "none") == 0
    (tmp_path / "job").touch()
    with pytest.raises(NotADirectoryError):
        newest_start(tmp_path / "job")
