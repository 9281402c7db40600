"""`python -m jobs.evaluate`: two processes give the figures of one, pictures of what is asked for, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.run import events
from jobs.run.directory import Run


def evaluate(run: Run, *arguments: str, processes: int = 1) -> list[subprocess.CompletedProcess[str]]:
    tasks = []
    for rank in range(processes):
        place = {"JOB_ID": str(os.getpid()), "NTASKS": str(processes), "GLOBALID": str(rank)}
        place |= {"LOCALID": str(rank), "NODEID": "0", "JOB_NUM_NODES": "1"}
        environment = os.environ | {f"SUBMITIT_LOCAL_{key}": value for key, value in place.items()}
        command = [sys.executable, "-m", "jobs.evaluate", str(run.path)]
        tasks.append(
            subprocess.Popen(
                [*command, "--checkpoint", "../weights.pth", *arguments],
                cwd=run.code,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    done = []
    for task in tasks:
        out, err = task.communicate(timeout=180)
        done.append(subprocess.CompletedProcess(task.args, task.returncode, out, err))
    return done


def test_two_processes_count_as_one(random_run: Run, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = evaluate(random_run, "--out", str(out), "--pictures", "all", processes=processes)
        assert [one.returncode for one in done] == [0] * processes, done[0].stderr
        assert "mIoU" in done[0].stdout
        found[processes] = json.loads((out / "metrics.json").read_text())
        assert len(list((out / "pictures").iterdir())) == 6
        width, height = Image.open(next((out / "pictures").iterdir())).size
        assert (width, height) == (3 * 80 + 2 * 4, 60)
    timings = {"processes", "seconds", "seconds_rank_0"}
    one, two = ({k: v for k, v in found[n].items() if k not in timings} for n in (1, 2))
    assert one == two
    assert sum(c["pixels"] for c in one["classes"]) == 6 * 60 * 80
    for table in ("confusion.csv", "per_class.csv"):
        assert (tmp_path / "1" / table).read_bytes() == (tmp_path / "2" / table).read_bytes()
    counts = [dict(np.load(tmp_path / str(n) / "per_image.npz", allow_pickle=False)) for n in (1, 2)]
    assert all((counts[0][key] == counts[1][key]).all() for key in ("names", "hits", "truth", "predicted"))
    assert len(set(counts[0]["names"])) == 6
    assert counts[0]["truth"].sum(0).tolist() == [c["pixels"] for c in one["classes"]]
    assert 100 * counts[0]["hits"].sum() / counts[0]["truth"].sum() == pytest.approx(one["aAcc"])
    assert [e["event"] for e in events.read(random_run.events)].count("evaluated") == 2


def test_a_result_that_is_there_is_not_made_again(random_run: Run) -> None:
    (first,) = evaluate(random_run, "--pictures", "2")
    (folder,) = random_run.eval.iterdir()
    assert first.returncode == 0, first.stderr
    written = (folder / "metrics.json").stat().st_mtime_ns
    assert len(list((folder / "pictures").iterdir())) == 2
    # Killed before it could say so.
    lines = random_run.events.read_bytes().splitlines(keepends=True)
    random_run.events.write_bytes(b"".join(lines[:-1]))
    (second,) = evaluate(random_run)
    assert second.returncode == 0
    assert "evaluated already" in second.stdout
    assert (folder / "metrics.json").stat().st_mtime_ns == written
    evaluate(random_run)
    told = [e for e in events.read(random_run.events) if e.get("path") == str(folder)]
    first_time = json.loads(lines[-1])
    assert [{**e, "time": ""} for e in told] == [{**first_time, "time": ""}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pictures", "2008_999999"), "no image 2008_999999"),
        (("--checkpoint", "gone.pth"), "there is no checkpoint gone.pth"),
    ],
)
def test_a_mistake_is_one_line(random_run: Run, arguments: tuple[str, ...], message: str) -> None:
    (done,) = evaluate(random_run, "--again", *arguments)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert message in error
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_model_is_refused(random_run: Run, tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": {"backbone.other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    (done,) = evaluate(random_run, "--checkpoint", str(tmp_path / "other.pth"))
    assert done.returncode == 2
    assert "does not fit the run's model" in done.stderr
    failed = events.read(random_run.events)[-1]
    assert (failed["event"], failed["stage"], failed["exit_code"]) == ("failed", "evaluate", 2)
    assert failed["reason"] in done.stderr
