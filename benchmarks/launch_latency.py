"""How long until a training is in the queue: launch/train.py, a minimal submitit script, and raw sbatch.

All three submit the same resources to a real Slurm (a test cluster started here), held, so that nothing runs
beside the measurement. launch/train.py does more: it checks config and dataset, snapshots the code, makes
the run directory and submits the evaluation too; its figure is for all of that. Whole processes are timed.
Needs Slurm's packages (`make slurm`).

examples:
  python benchmarks/launch_latency.py
  python benchmarks/launch_latency.py --rounds 1     a quick look
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import repository

from benchmarks import harness
from benchmarks.harness import compare, timed
from jobs.run.errors import UserError, run_command

ROOT: Path = repository.ROOT

SUBMITIT = """
import sys, submitit
executor = submitit.AutoExecutor(folder=sys.argv[1])
executor.update_parameters(
    timeout_min=60, nodes=1, tasks_per_node=2, gpus_per_node=2, cpus_per_task=4,
    slurm_additional_parameters={"hold": True},
)
print(executor.submit(print, "training").job_id)
"""

SBATCH = """#!/bin/bash
#SBATCH --hold --time=60 --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=4
#SBATCH --output=/dev/null
srun true
"""


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="baton-latency-") as folder:
        measure(Path(folder), rounds)
    return 0


def measure(folder: Path, rounds: int) -> None:
    python, cluster = sys.executable, folder / "slurm"
    module = [python, "-m", "jobs.prepare"]
    quiet = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL}
    generate = ["-m", "jobs.prepare.synthetic", str(folder / "archives"), "--train", "8", "--val", "4"]
    subprocess.run([python, *generate, "--size", "64"], **quiet)  # type: ignore[call-overload]
    data = ["--data-root", str(folder / "data")]
    subprocess.run([*module, *data, "--archives", str(folder / "archives")], **quiet)  # type: ignore[call-overload]
    subprocess.run([python, "-m", "tests.support.cluster.up", str(cluster)], **quiet)  # type: ignore[call-overload]
    try:
        # With byte code cached, as Python does it for a user (and pip has done it for submitit).
        dropped = ("SLURM", "PYTHONDONTWRITEBYTECODE")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        environment |= {"SLURM_CONF": slurm_conf(cluster), "BATON_RUNS": str(folder / "runs")}
        script = folder / "minimal.py"
        script.write_text(SUBMITIT)
        batch = folder / "raw.sbatch"
        batch.write_text(SBATCH)

        def run(*command: str) -> float:
            """Seconds of one whole process; what it has submitted is taken out of the queue afterwards."""

            def submit() -> None:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise UserError(f"{command[:2]} failed: {done.stderr.strip()}")

            seconds = timed(submit)
            subprocess.run(["scancel", "--me"], env=environment, check=True)
            return seconds

        launcher = [python, "launch/train.py", "--cluster", "slurm", "--config", "configs/demo.py", *data]
        launcher += ["--gpus", "2", "--time", "60", "--sbatch", "hold=true"]
        minimal = [python, str(script), str(folder / "submitit")]
        run(*launcher)
        run(*minimal)  # once, so that no file is read from disk for the first time
        raw: list[float] = []

        def peer() -> float:
            raw.append(run("sbatch", str(batch)))
            return run(*minimal)

        compare(
            "launch_latency",
            "`launch/train.py` to job in queue (training and evaluation)",
            lambda: run(*launcher),
            peer,
            against="minimal submitit script, one job",
            goal=1.5,
            unit="s",
            better="lower",
            rounds=rounds,
            details={"sbatch": raw},
        )
        print(f"raw sbatch: {statistics.median(raw):.3f} s (median of {len(raw)}, in turn with the others)")
    finally:
        subprocess.run([python, "-m", "tests.support.cluster.down", str(cluster)], **quiet)  # type: ignore[call-overload]
        shutil.rmtree(cluster, ignore_errors=True)


def slurm_conf(cluster: Path) -> str:
    """SLURM_CONF as the cluster's own env.sh sets it."""
    command = ["bash", "-c", '. "$1" && printf %s "$SLURM_CONF"', "bash", str(cluster / "env.sh")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    run_command(main)
