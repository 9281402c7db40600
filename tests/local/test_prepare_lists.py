"""A prepared dataset trains by either style of lists: trainaug.txt, or train.txt and aug.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run import events
from tests.support import tiny


@pytest.mark.parametrize("config", ["tiny", "tiny_pair"])
def test_both_styles_of_lists_train_on_every_image(voc_small: Path, tmp_path: Path, config: str) -> None:
    run = tiny.make_run(
        tmp_path / "run", voc_small, f"tests/support/configs/{config}.py", train_cfg__max_epochs=1
    )
    assert tiny.start(run) == [0], tiny.log_of(run, 1)
    finished = [event for event in events.read(run.events) if event["event"] == "finished"]
    # 24 images in batches of 4.
    assert [(event["epoch"], event["step"]) for event in finished] == [(1, 6)]
