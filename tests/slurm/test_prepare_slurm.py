"""The preparation as a job of Slurm's: preempted, told of its time limit, and waited for by a training."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

from launcher import Launcher, of_run

from tests.support.slurm import Slurm, wait_event, wait_for

ROOT = Path(__file__).parents[2]

# Every interpreter of the job reads this first. Where it is to write the fourth mask it stands still, as long
# as a file is there; a signal gets through.
HOLD = """
import os, sys, time

seen = 0

def hold(event, arguments):
    global seen
    if event != "open" or "SegmentationClassAug" not in str(arguments[0]):
        return
    seen += 1
    if seen == 4 and os.path.exists(FOLDER + "/hold"):
        open(FOLDER + "/held-" + os.environ.get("SLURM_RESTART_COUNT", "0"), "w").close()
        while os.path.exists(FOLDER + "/hold"):
            time.sleep(0.05)

sys.addaudithook(hold)
"""


def test_interrupted_while_converting_it_goes_on_and_the_training_behind_it_starts(
    cluster: Slurm, tmp_path: Path, voc_archives: Path
) -> None:
    launch = Launcher(cluster, tmp_path, tmp_path / "data")
    hold = tmp_path / "hold"
    hold.touch()
    (tmp_path / "sitecustomize.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{HOLD}")
    profile = tmp_path / "site.yaml"
    profile.write_text(f"prepare: {{env: {{PYTHONPATH: {json.dumps(str(tmp_path))}}}}}\n")
    arguments = ["--data-root", launch.data, "--archives", voc_archives, "--no-weights", "--json"]
    out, _ = launch("prepare", *arguments, "--cluster", profile)
    told = json.loads(out)
    job, run = told["jobs"]["prepare"], Path(told["path"])
    training = launch.train("--run", "behind", "--no-evaluation")["train"]
    assert cluster.job(training)["Dependency"].startswith(f"afterok:{job}")

    wait_for((tmp_path / "held-0").exists, "it converts")
    # What Slurm sends ahead of the time limit.
    cluster.run("scancel", "--signal=USR2", job)
    wait_for((tmp_path / "held-1").exists, "its second start converts")
    assert cluster.job(job)["Restarts"] == "1"
    cluster.preempt(job)
    wait_for((tmp_path / "held-2").exists, "its third start converts")
    assert cluster.state(training) == "PENDING"
    hold.unlink()

    wait_event(run, "prepared")
    assert cluster.wait_ended(job) == "COMPLETED"
    assert [event.get("restart") for event in of_run(run, "started")] == [None, 1, 2]
    first, second = (event["signal"] for event in of_run(run, "signal"))
    assert first == "SIGUSR2"
    assert second in ("SIGUSR2", "SIGTERM")  # a preemption sends both at once
    assert not of_run(run, "failed")
    wait_event(launch.runs / "behind", "first_step")
    cluster.run("scancel", training)
    assert [path.name for path in launch.data.iterdir()] == ["VOCdevkit"]


def test_a_job_knows_when_its_time_limit_ends_it(cluster: Slurm) -> None:
    """With a Slurm that does not put it into the environment, too."""
    program = (
        "import os; from jobs.slurm import calls as slurm; print(*slurm.span(), os.environ['SLURM_JOB_ID'])"
    )
    answer = cluster.run("srun", "--time=7", sys.executable, "-c", program, cwd=ROOT)
    begin, end, job = answer.split()
    assert float(end) - float(begin) == 7 * 60
    assert datetime.fromisoformat(cluster.job(job)["StartTime"]).timestamp() == float(begin)
