"""What interruptions cost on a real Slurm: Baton, the guide's way and a submitit script through one trace.

A seed makes the trace: how each interruption comes (a preemption with grace time, one without, a requeue, a
node's loss) and how long the incarnation before it has run by then. All arms live through the same one, on
nodes of their own, with the same config and data, and a step padded to what a GPU's takes
(benchmarks/on_slurm/step_log.py). They begin one after the other, so that their starts do not compete for
this machine's cores; and they save as the recipe does, every 10 epochs, which is 48 s here, six times what a
start takes (in the recipe it is more like fifty times):

  baton      launch/train.py
  guide      sbatch --requeue of a script that runs mmengine's Runner with resume=True
  submitit   a submitit job whose checkpoint() submits it again, running the same
  floor      a job that does nothing but import the libraries, and goes whenever it is told to

The peers get jobs/mmseg/compat.py, without which they could not read their own checkpoints with torch ≥ 2.6.
Where a peer's job is not requeued, which Slurm does not do after some endings, it is submitted again at once.

Lost time is the jobs' time minus the productive: different steps times the median step, by the step log.
ETTR is the productive time over the time from submission to end. Attainable is the ETTR of a training that
costs nothing but the floor's waits, from each interruption until the libraries are there again.

examples:
  python benchmarks/ettr.py
  python benchmarks/ettr.py --interruptions 3 --life 20 --epochs 20 --keep /tmp/ettr     a quick look
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import repository

import msgspec

from benchmarks import harness
from benchmarks.harness import record
from benchmarks.on_slurm import cluster, data
from jobs.mmseg import compat
from jobs.run.errors import run_command
from tests.support.cluster.config import Options
from tests.support.slurm import Slurm, wait_for

ROOT: Path = repository.ROOT

CONFIG = "tests/support/configs/tiny_trace.py"
PICTURES = 96
"""24 steps an epoch."""
STAGGER = 15.0
"""Seconds from one arm's beginning to the next one's: longer than a start takes."""
ARMS = ("baton", "guide", "submitit", "floor")
PARTITIONS = {"preempted with grace": "low", "preempted without grace": "gpu"}
KINDS = (
    *("preempted with grace",) * 3,
    *("preempted without grace",) * 3,
    *("requeued",) * 2,
    *("a node dies",) * 2,
)
WAYS = {"guide": "sbatch --requeue", "submitit": "submitit"}
SHORTEST, LONGEST = 15.0, 180.0
PATIENCE = 300.0

GUIDE = """#!/bin/bash
#SBATCH --requeue --open-mode=append --nodes=1 --ntasks=1 --cpus-per-task=1 --gpus-per-node=1 --time=60
#SBATCH --exclusive --output={folder}/slurm-%j.out
srun {python} {benchmark} --peer {folder}
"""

SUBMITIT = """
import sys
import submitit
from benchmarks import ettr

class Training:
    def __call__(self, folder):
        ettr.peer(folder)

    def checkpoint(self, folder):
        return submitit.helpers.DelayedSubmission(Training(), folder)

executor = submitit.AutoExecutor({folder!r} + "/submitit", slurm_max_num_timeout=100)
executor.update_parameters(
    timeout_min=60, nodes=1, tasks_per_node=1, cpus_per_task=1, gpus_per_node=1,
    slurm_partition=sys.argv[1], slurm_additional_parameters={{"exclusive": True, "requeue": True}},
)
print(executor.submit(Training(), {folder!r}).job_id)
"""

FLOOR = """#!/bin/bash
#SBATCH --requeue --open-mode=append --nodes=1 --ntasks=1 --cpus-per-task=1 --gpus-per-node=1 --time=60
#SBATCH --exclusive --output={folder}/slurm-%j.out
trap : USR2 TERM
srun sh -c 'trap "" USR2 TERM; exec "$@"' floor {python} {benchmark} --floor {folder}
scontrol requeue $SLURM_JOB_ID
"""


class Interruption(msgspec.Struct, frozen=True):
    kind: str
    life: float
    """Seconds that the incarnation has run when it comes."""


class Arm(msgspec.Struct, kw_only=True):
    """One of ARMS on its way through the trace."""

    name: str
    folder: Path
    jobs: list[str] = []
    """Its job's id; more than one where it had to be submitted again by hand."""
    struck: list[dict[str, Any]] = []

    @property
    def steps(self) -> Path:
        return self.folder / "steps.jsonl"


def trace(seed: int, interruptions: int, life: float) -> list[Interruption]:
    """`interruptions` after lives of `life` seconds on average, exponentially distributed within bounds."""
    dice = random.Random(seed)
    kinds = list(itertools.islice(itertools.cycle(KINDS), interruptions))
    dice.shuffle(kinds)
    lives = [min(LONGEST, max(SHORTEST, dice.expovariate(1 / life))) for _ in kinds]
    return [Interruption(kind, round(seconds, 1)) for kind, seconds in zip(kinds, lives, strict=True)]


# -------------------------------------------------------------------------- in the jobs of peers and floor


def peer(folder: str) -> None:
    """mmengine's runner as mmsegmentation's tools/train.py --resume uses it."""
    compat.prepare()
    # mmengine looks at its version, and dies of one that does not fit torch; without any it goes on.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from mmengine.config import Config
    from mmengine.runner import Runner

    cfg = Config.fromfile(str(ROOT / CONFIG))
    cfg.merge_from_dict(json.loads((Path(folder) / "settings.json").read_text()))
    cfg.work_dir = f"{folder}/work"
    cfg.resume = True
    Runner.from_cfg(cfg).train()


def empty(folder: str) -> None:
    """What any training does first; then nothing, until told to go."""
    import signal

    compat.prepare()
    import mmengine.runner  # noqa: F401
    import mmseg.models  # noqa: F401

    told: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda *_: told.append(1))
    with (Path(folder) / "up.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "started": STARTED}) + "\n")
    while not told:
        time.sleep(0.05)


STARTED = time.time()


# ------------------------------------------------------------------------------------------- the arms


def submit(slurm: Slurm, arm: Arm, partition: str, root: Path, settings: dict[str, Any]) -> None:
    """Submits the arm's job, for the first time or, where Slurm has let it go, once more."""
    folder, python = str(arm.folder), sys.executable
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STEP_LOG": str(arm.steps)}
    if arm.name == "baton":
        if arm.jobs:
            command = [python, "launch/train.py", "--resume", "run", "--json", "--no-evaluation"]
        else:
            command = [
                *(python, "launch/train.py", "--config", CONFIG, "--run", "run", "--json"),
                *("--no-evaluation", "--cluster", "slurm", "--data-root", str(root), "--time", "60"),
                *("--gpus", "1", "--cpus-per-gpu", "1", "--sbatch", "exclusive=true"),
                *("--partition", partition, "--set", *(f"{k}={v!r}" for k, v in settings.items())),
            ]
        environment["BATON_RUNS"] = folder
        answer = slurm.run(*command, env=environment, cwd=ROOT)
        arm.jobs.append(json.loads(answer.splitlines()[0])["jobs"]["train"])
        return
    names = {"folder": folder, "python": python, "benchmark": Path(__file__).resolve(), "root": str(ROOT)}
    paths = {"train_dataloader.dataset.data_root": f"{root}/VOCdevkit/VOC2012"}
    (arm.folder / "settings.json").write_text(json.dumps(settings | paths))
    if arm.name == "submitit":
        script = arm.folder / "submit.py"
        script.write_text(SUBMITIT.format(**names))
        arm.jobs.append(slurm.run(python, str(script), partition, env=environment, cwd=ROOT).strip())
        return
    text = (GUIDE if arm.name == "guide" else FLOOR).format(**names)
    options = ["--parsable", "--partition", partition]
    arm.jobs.append(slurm.run("sbatch", *options, input=text, env=environment, cwd=folder).strip())


def play(
    slurm: Slurm, arm: Arm, interruptions: list[Interruption], root: Path, settings: dict[str, Any]
) -> None:
    """Takes one arm through all interruptions and lets it finish."""
    time.sleep(ARMS.index(arm.name) * STAGGER)
    submit(slurm, arm, PARTITIONS.get(interruptions[0].kind, "gpu"), root, settings)
    before = ""
    for number, interruption in enumerate(interruptions):
        begin = running(slurm, arm, before)
        before = begin
        left = seconds_of(begin) + interruption.life - time.time()
        time.sleep(max(0.0, left))  # the trace is in seconds: there is no condition to wait for
        if slurm.state(arm.jobs[-1]) == "COMPLETED":
            break
        strike(slurm, arm, interruption)
        following = [one.kind for one in interruptions[number + 1 :]]
        partition = PARTITIONS.get(following[0] if following else "", "gpu")
        state = settled(slurm, arm, begin)
        if state == "PENDING":
            slurm.run("scontrol", "update", f"JobId={arm.jobs[-1]}", f"Partition={partition}")
        elif state not in ("RUNNING", "COMPLETED"):
            arm.struck[-1]["not requeued"] = state
            submit(slurm, arm, partition, root, settings)
            before = ""
        print(json.dumps({"arm": arm.name, **arm.struck[-1]}), flush=True)
    if arm.name == "floor":
        running(slurm, arm, before)
        wait_for(lambda: len(lines(arm.folder / "up.jsonl")) > len(arm.struck), "the floor is up", PATIENCE)
        slurm.run("scontrol", "update", f"JobId={arm.jobs[-1]}", "Requeue=0")  # else its script has it back
        slurm.run("scancel", arm.jobs[-1])
    slurm.wait_ended(arm.jobs[-1], 1800)


def running(slurm: Slurm, arm: Arm, before: str) -> str:
    """Waits until an incarnation other than the one that began at `before` runs. Returns when it began."""

    def runs() -> str | None:
        job = slurm.job(arm.jobs[-1])
        began = job["JobState"] in ("RUNNING", "COMPLETED") and job["StartTime"] != before
        return job["StartTime"] if began else None

    return wait_for(runs, f"{arm.name} runs", PATIENCE)


def settled(slurm: Slurm, arm: Arm, begin: str) -> str:
    """Waits until the incarnation that began at `begin` is gone; what has become of its job: PENDING, RUNNING
    again, or how it ended for good."""

    ended: list[float] = []

    def state() -> str | None:
        job = slurm.job(arm.jobs[-1])
        if job["JobState"] in ("RUNNING", "COMPLETING"):
            running_again = job["JobState"] == "RUNNING" and job["StartTime"] != begin
            return "RUNNING" if running_again else None
        if job["JobState"] == "PENDING":
            return "PENDING"
        # A job that is to be requeued may seem to have ended for a moment.
        ended.append(time.monotonic())
        return job["JobState"] if ended[-1] - ended[0] > 3.0 else None

    return wait_for(state, f"{arm.name} is interrupted", PATIENCE)


def strike(slurm: Slurm, arm: Arm, interruption: Interruption) -> None:
    job = arm.jobs[-1]
    arm.struck.append({"kind": interruption.kind, "time": time.time(), "life": interruption.life})
    if interruption.kind in PARTITIONS:
        slurm.preempt(job)
    elif interruption.kind == "requeued":
        slurm.run("scontrol", "requeue", job)
    else:
        (node,) = slurm.nodes_of(job)
        begin = slurm.job(job)["StartTime"]
        slurm.kill_node(node)
        settled(slurm, arm, begin)
        slurm.revive_node(node)


# ------------------------------------------------------------------------------------------- the figures


def figures(slurm: Slurm, arm: Arm) -> dict[str, Any]:
    """An arm's productive, lost and waiting seconds, from its step log and Slurm's accounting."""
    rows = wait_for(lambda: accounted(slurm, arm), f"accounting knows all of {arm.name}", PATIENCE)
    spans = [(seconds_of(start), seconds_of(end)) for _, _, start, end, _ in rows if "T" in start]
    told = lines(arm.steps)
    steps = {line["step"] for line in told}
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(told) if a["pid"] == b["pid"]]
    productive = len(steps) * statistics.median(gaps)
    in_jobs = sum(end - start for start, end in spans)
    wall = max(end for _, end in spans) - min(seconds_of(row[1]) for row in rows)
    return {
        "productive": productive, "lost": in_jobs - productive, "in_jobs": in_jobs, "wall": wall,
        "ettr": productive / wall, "steps": len(steps), "steps_done_again": len(told) - len(steps),
        "step": statistics.median(gaps), "starts": len(spans), "jobs": len(arm.jobs),
        "rows": rows, "struck": arm.struck, "starting": starting(told, spans),
    }  # fmt: skip


def accounted(slurm: Slurm, arm: Arm) -> list[list[str]] | None:
    """Job, submission, start, end and state of every incarnation; None while the last has no end yet."""
    columns = "--format=JobID,Submit,Start,End,State"
    text = slurm.run("sacct", "-D", "-X", "-n", "-P", "-j", ",".join(arm.jobs), columns)
    rows = [line.split("|") for line in text.splitlines()]
    last = [row for row in rows if row[0] == arm.jobs[-1]]
    return rows if last and all(end != "Unknown" for _, _, _, end, _ in rows) else None


def starting(told: list[dict[str, Any]], spans: list[tuple[float, float]]) -> list[float]:
    """Seconds from each incarnation's start to the end of its first step, where it had one."""
    found = []
    for start, end in sorted(spans):
        inside = [line["time"] for line in told if start <= line["time"] <= end + 1]
        found += [round(min(inside) - start, 2)] if inside else []
    return found


def floor_seconds(slurm: Slurm, arm: Arm) -> dict[str, Any]:
    """What the floor waited: from its submission, and from each interruption, until it was up again."""
    text = slurm.run("sacct", "-D", "-X", "-n", "-P", "-j", arm.jobs[0], "--format=Submit")
    submitted = min(seconds_of(line) for line in text.splitlines())
    left = [submitted, *(one["time"] for one in arm.struck)]
    ups = lines(arm.folder / "up.jsonl")
    waits = []
    for since, until in itertools.pairwise([*left, float("inf")]):
        up = next(one["time"] for one in ups if since < one["time"] < until)
        waits.append(up - since)
    importing = [one["time"] - one["started"] for one in ups]
    return {"seconds": sum(waits), "waits": waits, "importing": importing, "struck": arm.struck}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def seconds_of(moment: str) -> float:
    """Seconds since the epoch of a local time as Slurm writes it."""
    return datetime.fromisoformat(moment).timestamp()


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--interruptions", type=int, default=10)
    parser.add_argument("--life", type=float, default=60.0, help="mean seconds before an interruption")
    parser.add_argument("--epochs", type=int, default=120, help="of 4.8 s each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep runs and cluster logs in DIR")
    parser.add_argument("--peer", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--floor", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.peer)
        return 0
    if arguments.floor:
        empty(arguments.floor)
        return 0
    with tempfile.TemporaryDirectory(prefix="ettr-") as temporary:
        return measure(arguments, arguments.keep or Path(temporary))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    root = data.prepared(folder, PICTURES, 4)
    interruptions = trace(arguments.seed, arguments.interruptions, arguments.life)
    settings = {"train_cfg.max_epochs": arguments.epochs, "param_scheduler.0.end": arguments.epochs}
    arms = [Arm(name=name, folder=folder / name) for name in ARMS]
    for arm in arms:
        arm.folder.mkdir()
    options = Options(nodes=6, user_signal=True, grace=10, node_timeout=10)
    with cluster.running(folder / "slurm", options) as slurm, ThreadPoolExecutor() as pool:
        list(pool.map(lambda arm: play(slurm, arm, interruptions, root, settings), arms))
        found = {arm.name: figures(slurm, arm) for arm in arms[:3]}
        if harness.published():
            kept = harness.RESULTS / "ettr_run"  # for benchmarks/simulate.py
            kept.mkdir(exist_ok=True)
            shutil.copy(folder / "baton/run/events.jsonl", kept)
        floor = floor_seconds(slurm, arms[3])
    return report(arguments, interruptions, found, floor)


def report(
    arguments: argparse.Namespace,
    interruptions: list[Interruption],
    found: dict[str, dict[str, Any]],
    floor: dict[str, Any],
) -> int:
    for name, one in found.items():
        print(
            f"{name:9} productive {one['productive']:6.1f} s, lost {one['lost']:6.1f} s of "
            f"{one['in_jobs']:.0f} in jobs, ETTR {one['ettr']:.3f}, {one['steps_done_again']} steps done "
            f"again, {one['jobs'] - 1} times submitted by hand"
        )
    ours = found["baton"]
    attainable = ours["productive"] / (ours["productive"] + floor["seconds"])
    print(f"floor     {floor['seconds']:.1f} s; attainable ETTR {attainable:.3f}")
    raw = {
        "seed": arguments.seed, "trace": msgspec.to_builtins(interruptions), "arms": found, "floor": floor,
        "attainable": attainable,
    }  # fmt: skip
    better = min(WAYS, key=lambda name: found[name]["lost"])
    many = f"{len(interruptions)} interruptions on a real Slurm"
    record(
        "ettr_lost",
        f"time lost in the jobs over {many}",
        ours["lost"] / found[better]["lost"],
        against=f"{WAYS[better]}, mmengine resume",
        goal=0.5,
        better="lower",
        raw=raw,
    )  # fmt: skip
    record(
        "ettr",
        f"ETTR over {many}",
        ours["ettr"] / attainable,
        against="attainable: queue, interpreter and imports only",
        goal=0.97,
        better="higher",
        raw={"ours": ours["ettr"], "attainable": attainable, "figures": "ettr_lost.json"},
    )
    return 0


if __name__ == "__main__":
    run_command(main)
