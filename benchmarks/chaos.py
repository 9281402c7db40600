"""Many random faults of all kinds over one training on a real Slurm: two nodes with two ranks each.

A seed makes the plan: which fault, before which step (or in the first validation or save after it), on which
rank. At the end the run must hold the weights, optimizer state and metrics of a run left alone, bit for bit;
every start must have gone on from the newest checkpoint that was whole; the evaluation ran once; no process
is left on any node. What differs is counted, and the count must be 0.

examples:
  python benchmarks/chaos.py
  python benchmarks/chaos.py --faults 10 --seed 3 --keep /tmp/chaos
  python benchmarks/chaos.py --faults 15 --by-iteration
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import repository

import msgspec

from benchmarks import harness
from benchmarks.harness import record
from benchmarks.on_slurm import cluster, data
from jobs.engine import checkpoints
from jobs.run import events
from jobs.run.directory import Run, newest_start, write_atomically
from jobs.run.errors import run_command
from tests.support import tiny
from tests.support.cluster import processes
from tests.support.cluster.config import Options
from tests.support.slurm import Slurm, wait_for

ROOT: Path = repository.ROOT

NODES, GPUS = 2, 2
RANKS = NODES * GPUS
PER_EPOCH = 6
"""Steps of an epoch: 24 pictures, 4 a step."""
VALIDATED = 2 * PER_EPOCH
"""Steps between validations."""
EPOCHS, ITERATIONS = "tests/support/configs/tiny.py", "tests/support/configs/tiny_iters.py"
PATIENCE = 600.0
"""Seconds until a fault that does not come about counts as a run that hangs."""
GRACE = 10


class Fault(msgspec.Struct, kw_only=True):
    """One fault of the plan."""

    number: int
    kind: str
    step: int
    """It comes before this step, or in the first validation or save after it."""
    place: str = "step"
    """step, validation, save, or start: as soon as the ranks have come up, before they can have a handler."""
    rank: int = 0
    slack: int = 0
    """Steps that the ranks may go on while it comes from outside."""
    detail: str = ""


class Scene(msgspec.Struct, kw_only=True):
    """The run that is being broken."""

    slurm: Slurm
    run: Run
    job: str
    dice: random.Random
    struck: list[dict[str, Any]] = []
    touched: list[str] = []
    """Names of files that the next start is to find damaged."""
    missed: list[str] = []
    """Faults that the run's end has forestalled."""

    def starts(self) -> int:
        return newest_start(self.run.job)


# ------------------------------------------------------------------------------------ what is done to the job


def preempt_with_grace(scene: Scene, fault: Fault) -> None:  # noqa: ARG001
    scene.slurm.run("scontrol", "update", "PartitionName=low", f"GraceTime={GRACE}")
    scene.slurm.preempt(scene.job)


def preempt_without_grace(scene: Scene, fault: Fault) -> None:  # noqa: ARG001
    scene.slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=0")
    scene.slurm.preempt(scene.job)


def requeue(scene: Scene, fault: Fault) -> None:  # noqa: ARG001
    scene.slurm.run("scontrol", "requeue", scene.job)


def user_signal(scene: Scene, fault: Fault) -> None:  # noqa: ARG001
    scene.slurm.run("scancel", "--signal=USR2", scene.job)


def lose_a_node(scene: Scene, fault: Fault) -> None:
    """Power off, and on again when Slurm has missed the node."""
    slurm, job = scene.slurm, scene.job
    before = slurm.job(job)["Restarts"]
    node = slurm.nodes_of(job)[fault.rank // GPUS]
    slurm.kill_node(node)
    wait_for(lambda: slurm.job(job)["Restarts"] != before, f"Slurm misses {node}", PATIENCE)
    slurm.revive_node(node)


def reach_the_time_limit(scene: Scene, fault: Fault) -> None:  # noqa: ARG001
    """The limit comes nearer than the time before it at which the job wants to be told (--signal)."""
    slurm, job = scene.slurm, scene.job
    hours, minutes, _ = slurm.job(job)["RunTime"].rsplit("-", 1)[-1].split(":")
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={int(hours) * 60 + int(minutes) + 2}")
    pending(scene)
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")


def kill_a_supervisor(scene: Scene, fault: Fault) -> None:
    found = supervisors(scene)
    processes.kill([found[fault.rank % len(found)]])


def begin_another(scene: Scene, fault: Fault) -> None:
    """The run's script is submitted once more while it runs: the later job goes on, the earlier gives way."""
    slurm, run, before = scene.slurm, scene.run, scene.starts()
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    earlier, script = scene.job, str(run.job / "train.sbatch")
    scene.job = slurm.run("sbatch", "--parsable", script, env=environment, cwd=run.path).strip()
    wait_for(lambda: scene.starts() > before, "the other job begins", PATIENCE)
    mark_struck(run, fault, before)  # the earlier, which has waited for this, goes on until it notices
    assert slurm.wait_ended(earlier, PATIENCE) == "FAILED"
    slurm.wait_no_processes(earlier)


def damage_the_newest(scene: Scene, fault: Fault) -> None:
    """Between two incarnations."""
    with_the_job_held(scene, lambda: damage(scene, fault.detail))


def delete_what_is_not_needed(scene: Scene, fault: Fault) -> None:  # noqa: ARG001
    """Between two incarnations: deletes all that a start can do without, and leaves things that look like
    checkpoints and are none."""

    def tidy_up() -> None:
        run = scene.run
        for path in [run.config, run.path / "progress.json", *run.job.glob("stacks-*")]:
            path.unlink(missing_ok=True)
        for path in [*run.checkpoints.glob(".*"), *run.checkpoints.glob("*.damaged")]:
            path.unlink()
        shutil.rmtree(run.path / "mmengine", ignore_errors=True)
        shutil.rmtree(run.path / "tensorboard", ignore_errors=True)
        (run.checkpoints / "last_checkpoint").write_text("/nowhere/epoch_1.pth")
        (run.checkpoints / "iter_999999.pth").write_bytes(b"no checkpoint")
        scene.touched.append("iter_999999.pth")
        (run.checkpoints / "epoch_999.pth.json").write_text('{"step": 9')

    with_the_job_held(scene, tidy_up)


OUTSIDE: dict[str, Callable[[Scene, Fault], None]] = {
    "preempted with grace": preempt_with_grace,
    "preempted without grace": preempt_without_grace,
    "scontrol requeue": requeue,
    "user signal": user_signal,
    "a node dies": lose_a_node,
    "time limit": reach_the_time_limit,
    "a supervisor is killed": kill_a_supervisor,
    "another job of the run begins": begin_another,
    "the newest checkpoint is damaged": damage_the_newest,
    "files are deleted and left": delete_what_is_not_needed,
}
INSIDE = {
    "a rank raises": "raise",
    "a rank exits": "exit",
    "a rank is killed": "kill",
    "a rank crashes": "segv",
    "killed during a save": "kill",
}
BETWEEN = ("the newest checkpoint is damaged", "files are deleted and left")
TOLD = ("preempted with grace", "scontrol requeue", "user signal", "time limit", *BETWEEN)
"""Those that give the ranks the time to save, if they are at a step."""
COUNTED = (*INSIDE, "a node dies", "a supervisor is killed")
"""Those that count as failures: three starts of them without a new checkpoint end a run."""
APART = (*BETWEEN, "another job of the run begins")
"""Those that come between two steps only."""
SLOW = ("a node dies", "time limit")
"""Slurm takes most of a minute to notice."""
PHASES = ("opened", "written", "synced", "renamed", "manifest", "verified")
DAMAGE = ("truncated", "a flipped byte", "empty", "without its manifest")


def supervisors(scene: Scene) -> list[processes.Process]:
    """The tasks of the training, one a rank; the workers are their children."""
    found = processes.jobs(scene.slurm.layout, job_id=scene.job)
    commands = {process: processes.command(process) for process in found}
    return [p for p, line in commands.items() if "-m jobs.train " in line and not line.startswith("srun")]


def pending(scene: Scene) -> None:
    wait_for(lambda: scene.slurm.state(scene.job) == "PENDING", "the job waits to start again", PATIENCE)


def with_the_job_held(scene: Scene, do: Callable[[], None]) -> None:
    """Requeues the job, and does something while none of it runs."""
    slurm, job, before = scene.slurm, scene.job, scene.starts()
    slurm.run("scontrol", "requeue", job)
    pending(scene)
    slurm.run("scontrol", "hold", job)
    slurm.wait_no_processes(job, PATIENCE)
    assert scene.starts() == before, "the next incarnation began before it could be held"
    do()
    slurm.run("scontrol", "release", job)


def damage(scene: Scene, how: str) -> None:
    newest = whole(scene.run)[-1]
    scene.touched.append(newest.path.name)
    if how == "truncated":
        os.truncate(newest.path, newest.path.stat().st_size * 2 // 3)
    elif how == "a flipped byte":
        with newest.path.open("r+b") as file:
            file.seek(scene.dice.randrange(newest.path.stat().st_size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1 << scene.dice.randrange(8)]))
    elif how == "empty":
        os.truncate(newest.path, 0)
    else:
        newest.path.with_name(f"{newest.path.name}.json").unlink()


def whole(run: Run) -> list[checkpoints.Checkpoint]:
    """The checkpoints whose content matches their digest, oldest first; changes nothing on disk."""
    found = []
    for checkpoint in checkpoints.listed(run.checkpoints):
        try:
            if checkpoints.digest(checkpoint.path) == checkpoint.manifest["digest"]:
                found.append(checkpoint)
        except FileNotFoundError:
            continue  # pruned meanwhile
    return found


# --------------------------------------------------------------------------------------------------- the plan


def plan(seed: int, faults: int, kinds: tuple[str, ...] = (*OUTSIDE, *INSIDE)) -> list[Fault]:
    """`faults` faults: each kind in turn, in random order, those that Slurm is slow to notice half as often.

    No more than two failures in a row come without a checkpoint between them, for three end a run.
    """
    dice = random.Random(seed)
    order: list[str] = []
    turn = 0
    while len(order) < faults:
        some = [kind for kind in kinds if kind not in SLOW or turn % 2 == 0]
        dice.shuffle(some)
        order += some
        turn += 1
    made: list[Fault] = []
    phases, damages = in_turn(PHASES, dice), in_turn(DAMAGE, dice)
    step, saved, barren = 1, 0, 0
    for number, kind in enumerate(order[:faults], 1):
        step += dice.choice((1, 1, 2, 3, 5, 8, 13))
        counted = kind in COUNTED
        fault = Fault(number=number, kind=kind, step=step)
        if kind == "killed during a save":
            fault.place, fault.detail = "save", next(phases)
        elif kind in INSIDE:
            fault.rank = dice.randrange(RANKS)
            fault.place = dice.choice(("step", "step", "validation"))
        else:
            fault.rank, fault.slack = dice.randrange(RANKS), dice.choice((0, 0, 1, 3))
            if kind not in SLOW and kind not in APART:
                fault.place = dice.choice(("step", "step", "step", "validation", "start"))
            if kind == "the newest checkpoint is damaged":
                fault.detail = next(damages)
        if counted and barren:
            fault.place = "step" if fault.place == "start" else fault.place
            step = max(step, (saved // VALIDATED + 1) * VALIDATED + 2)
        every = {"validation": VALIDATED, "save": PER_EPOCH}.get(fault.place, 1)
        fault.step = step = -(-step // every) * every
        made.append(fault)
        # On disk for certain: an epoch's end once its validation is over, and the step of who was told.
        certain = (step - 2) // VALIDATED * VALIDATED if fault.place != "start" else saved
        if kind in TOLD and fault.place == "step":
            certain = max(certain, step - 1)
        barren = barren + 1 if counted and certain <= saved else int(counted)
        saved = max(saved, certain)
    return made


def in_turn(things: tuple[str, ...], dice: random.Random) -> Iterator[str]:
    """Each once, in random order, and so on for ever."""
    while True:
        yield from dice.sample(things, len(things))


def epochs(faults: list[Fault]) -> int:
    """Epochs of a training in which every fault finds its place, and some to spare for those that wait for a
    validation or a save."""
    return latest(faults)[-1] // PER_EPOCH + 4


def latest(faults: list[Fault]) -> list[int]:
    """The step by which each fault has struck at the latest: one that waits for a validation or a save may
    find its own over, and the one after it then comes later, too."""
    found: list[int] = []
    at = 0
    for fault in faults:
        at = max(fault.step, at + 1)
        every = {"validation": VALIDATED, "save": PER_EPOCH}.get(fault.place, 1)
        # A save may be under way when it is asked for, and a start may resume after the validation.
        at = -(-at // every) * every + (every if every > 1 else fault.slack + 1)
        found.append(at)
    return found


# ------------------------------------------------------------------------------------------------ the running


def by_epoch(length: int) -> dict[str, Any]:
    """A save every epoch, a validation every second."""
    return {"train_cfg.max_epochs": length, "train_cfg.val_interval": 2, "param_scheduler.0.end": length}


def by_iteration(length: int) -> dict[str, Any]:
    """The same places, counted in iterations."""
    return {
        "train_cfg.max_iters": length * PER_EPOCH,
        "train_cfg.val_interval": VALIDATED,
        "param_scheduler.0.end": length * PER_EPOCH,
        "default_hooks.checkpoint.interval": PER_EPOCH,
    }


def submit(
    slurm: Slurm, place: Path, name: str, root: Path, length: int, faults: list[Fault], config: str
) -> tuple[Run, str]:
    """Submits a training of `length` epochs and its evaluation, with all faults in its way. Returns the run
    and the training's job id."""
    settings: dict[str, Any] = {
        "train_dataloader.batch_size": 4 // RANKS,
        "default_hooks.checkpoint.max_keep_ckpts": 4,
        **(by_iteration if config == ITERATIONS else by_epoch)(length),
        "custom_imports": {"imports": ["tests.support.slurm_faults"], "allow_failed_imports": False},
        "custom_hooks": [{"type": "Chaos"}] if faults else [],
    }
    command = [
        *(sys.executable, str(ROOT / "launch/train.py"), "--config", str(ROOT / config)),
        *("--run", name, "--data-root", str(root), "--cluster", "slurm", "--json", "--partition", "low"),
        *("--nodes", str(NODES), "--gpus", str(GPUS), "--cpus-per-gpu", "1"),
        *("--time", "60", "--signal-delay", "110", "--sbatch", "exclusive=true"),
        *("--set", *(f"{key}={value!r}" for key, value in settings.items())),
    ]
    environment = {"BATON_RUNS": str(place), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = json.loads(slurm.run(*command, env=environment, cwd=ROOT).splitlines()[0])
    run, job = Run(place / name), answer["jobs"]["train"]
    lay(run, faults)  # the hook waits for it
    return run, job


def strike(scene: Scene, fault: Fault) -> None:
    """Lets one fault happen, when the run is where it is to happen. It has been in place since before the run
    began (`lay`), so that no start gets past it."""
    run, began = scene.run, time.monotonic()
    inside = INSIDE.get(fault.kind)
    mark = struck(run, fault)
    if inside:
        reached(scene, mark.exists, fault)
        start = int(mark.read_text())
    else:
        if fault.place == "start":
            reached(scene, lambda: len(supervisors(scene)) == RANKS, fault)
        else:
            ranks = range(RANKS) if not fault.slack else (0,)
            files = [run.job / f"there-{fault.number}-{rank}" for rank in ranks]
            reached(scene, lambda: all(file.exists() for file in files), fault)
        start = scene.starts()
    known = [checkpoint.step for checkpoint in whole(run)]
    if not inside:
        OUTSIDE[fault.kind](scene, fault)
        mark_struck(run, fault, start)
    if fault.kind in BETWEEN:
        known = [checkpoint.step for checkpoint in whole(run)]
    newest = max(known, default=0)
    told = msgspec.to_builtins(fault) | {"start": start, "newest": newest, "touched": scene.touched}
    scene.touched = []
    scene.struck.append(told | {"seconds": round(time.monotonic() - began, 1)})
    reached(scene, lambda: scene.starts() > start, fault)


def lay(run: Run, faults: list[Fault]) -> None:
    """Puts all faults in place for the hook `Chaos` of every start."""
    wishes = [
        {
            "number": fault.number, "place": fault.place, "step": fault.step, "rank": fault.rank,
            "slack": fault.slack, "do": INSIDE.get(fault.kind, "wait"), "phase": fault.detail,
        }
        for fault in faults
    ]  # fmt: skip
    write_atomically(run.job / "faults.json", json.dumps(wishes).encode())


def struck(run: Run, fault: Fault) -> Path:
    """The file that says that a fault has come about, and in which start."""
    return run.job / f"struck-{fault.number}"


def mark_struck(run: Run, fault: Fault, start: int) -> None:
    """The fault after it is due from the next start on."""
    if not struck(run, fault).exists():
        write_atomically(struck(run, fault), str(start).encode())


class Ended(Exception):
    """The run has ended before a fault could strike."""


def reached(scene: Scene, condition: Callable[[], bool], fault: Fault) -> None:
    """Waits until the run is where a fault is to happen, or has begun again. Raises Ended if it ends."""

    def there() -> bool:
        last = (events.read(scene.run.events) or [{"event": ""}])[-1]
        if last["event"] in ("stopped", "finished"):
            raise Ended(f"{last['event']} {last.get('reason', '')}")
        return condition()

    wait_for(there, f"the run comes to {fault}, and goes on after it", PATIENCE)


def wait_finished(slurm: Slurm, run: Run, job: str) -> None:
    def finished() -> bool:
        last = events.read(run.events)[-1]
        assert last["event"] != "stopped", last["reason"]
        return slurm.state(job) == "COMPLETED"

    wait_for(finished, f"{run.path.name} finishes", PATIENCE)
    (after,) = {
        e["job"] for e in events.read(run.events) if e["event"] == "submitted" and e["stage"] == "evaluate"
    }
    assert slurm.wait_ended(after, PATIENCE) == "COMPLETED"
    for one in (job, after):
        slurm.wait_no_processes(one)


# ------------------------------------------------------------------------------------------ what must be true


def problems(scene: Scene, alone: Run) -> list[str]:
    """Everything that is not as it is after a training that nobody touched, in words."""
    run, found = scene.run, []
    found += [f"never struck: {one}" for one in scene.missed]
    found += [f"differs from a run left alone: {one}" for one in differences(run, alone)]
    story = events.read(run.events)
    evaluated = sum(event["event"] == "evaluated" for event in story)
    if evaluated != 1:
        found.append(f"evaluated {evaluated} times")
    found += lost(scene, story)
    for event in story:
        if event["event"] == "checkpoint_damaged" and not expected(scene, event, story):
            found.append(f"start {event['start']}: nobody touched {event['path']}: {event['reason']}")
    return found


def expected(scene: Scene, event: dict[str, Any], story: list[dict[str, Any]]) -> bool:
    """Whether a start found damaged what was damaged, or left without a manifest, before it: since a start
    last looked, for one that is told to leave at once looks at nothing."""
    looked = [one["start"] for one in story if one["event"] == "resumed" and one["start"] < event["start"]]
    first = min([event["start"] - 2, *looked[-1:]])
    before = [fault for fault in scene.struck if first <= fault["start"] < event["start"]]
    return any(event["path"] in fault["touched"] or fault["detail"] == "renamed" for fault in before)


def differences(run: Run, alone: Run) -> list[str]:
    return tiny.differences(tiny.final_state(run), tiny.final_state(alone))


def lost(scene: Scene, story: list[dict[str, Any]]) -> list[str]:
    """Starts that went on from less than was whole on disk when the one before ended."""
    found = []
    went_on = {event["start"]: 0 for event in story if event["event"] == "first_step"}
    went_on |= {event["start"]: event["step"] for event in story if event["event"] == "resumed"}
    damaged = [fault["start"] for fault in scene.struck if fault["kind"] == BETWEEN[0]]
    for fault in scene.struck:
        mine = [event for event in story if event.get("start") == fault["start"]]
        saved = [event["step"] for event in mine if event["event"] == "checkpoint"]
        if fault["kind"] in TOLD and fault["place"] == "step" and "preempted" not in names(mine):
            found.append(f"start {fault['start']} was told to leave, and did not: {fault}")
        later = min((start for start in went_on if start > fault["start"]), default=None)
        if later is None or any(fault["start"] < start < later for start in damaged):
            continue  # that damage says what was whole
        # Where another job began, the earlier may have saved until it noticed.
        counted = fault["kind"] not in (BETWEEN[0], APART[-1])
        newest = max([fault["newest"], *(saved if counted else [])])
        if went_on[later] < newest:
            found.append(f"start {later} went on from {went_on[later]}, not from {newest}: {fault}")
    return found


def names(story: list[dict[str, Any]]) -> set[str]:
    return {event["event"] for event in story}


def play(
    slurm: Slurm, place: Path, root: Path, faults: list[Fault], seed: int, config: str = EPOCHS
) -> tuple[Scene, Run]:
    """Trains a run through all `faults`, and one beside it that is left alone; both to their evaluation."""
    length = epochs(faults)
    run, job = submit(slurm, place, "chaos", root, length, faults, config)
    alone, other = submit(slurm, place, "alone", root, length, [], config)
    scene = Scene(slurm=slurm, run=run, job=job, dice=random.Random(seed))
    # Slurm forgets a job some minutes after its end, so the other is not asked about at the end.
    with ThreadPoolExecutor() as pool:
        left_alone = pool.submit(wait_finished, slurm, alone, other)
        for fault in faults:
            try:
                strike(scene, fault)
            except Ended as end:
                left = faults[fault.number - 1 :]
                if struck(run, fault).exists():  # it came about, and the run could end all the same
                    left = left[1:]
                scene.missed = [f"{one} ({end})" for one in left]
                break
            print(json.dumps(scene.struck[-1]), flush=True)
        wait_finished(slurm, run, scene.job)
        left_alone.result()
    return scene, alone


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--by-iteration",
        action="store_true",
        help="mixed precision, accumulation, EMA and persistent workers instead",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="where runs and cluster are kept (default: a new folder, deleted if all is well)",
    )
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"runs and cluster: {folder}", flush=True)
    prepared = data.prepared(folder)
    faults = plan(arguments.seed, arguments.faults)
    config = ITERATIONS if arguments.by_iteration else EPOCHS
    options = Options(nodes=6, user_signal=True, grace=GRACE, node_timeout=10)
    began = time.monotonic()
    with cluster.running(folder / "slurm", options) as slurm:
        scene, alone = play(slurm, folder / "runs", prepared, faults, arguments.seed, config)
        found = problems(scene, alone)
        left = [processes.command(p) for p in processes.jobs(slurm.layout)]
    found += [f"left on a node: {command}" for command in left]
    seconds, starts = round(time.monotonic() - began), scene.starts()
    if not found and not arguments.keep:
        shutil.rmtree(folder)
    print(*found, sep="\n")
    record(
        "chaos",
        f"{len(faults)} random faults over one training, 2×2 ranks: what differs from a run left alone",
        len(found),
        against="",
        goal=0,
        better="lower",
        unit="differences",
        raw={
            "seed": arguments.seed, "seconds": seconds, "starts": starts, "problems": found,
            "faults": scene.struck,
        },
        note=f"seed {arguments.seed}, {starts} starts",
    )  # fmt: skip
    return 1 if found else 0


if __name__ == "__main__":
    run_command(main)
