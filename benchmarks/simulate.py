"""What interruptions cost from 1 to 4,096 nodes: a seeded simulation, with costs that were measured.

Interruptions: node failures at the published rates (arXiv 2410.21680: 6.50 per 1,000 node-days on RSC-1, 2.34
on RSC-2), unannounced; and waves of preemptions, announced with a grace time in which the training saves. A
wave takes a share of the cluster's nodes, so it hits a job the more surely the more nodes that has, and then
several times in a row, each time soon after the job has come back.

The simulation checks itself, and ends with 1 where it is off: against the closed formula of
launch/observe/efficiency.py; the interval that it finds best against Young/Daly's; and the ETTR that a real
run observed (--trace; without it the run that benchmarks/ettr.py has left), gone through with the costs that
were measured on that run and interrupted when that run was.

examples:
  python benchmarks/simulate.py
  python benchmarks/simulate.py --costs first --preempt-hours 6       with the costs of the run `first`
  python benchmarks/simulate.py --trace first --json                  against what the run went through
"""

import argparse
import itertools
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import repository

import msgspec

from benchmarks import harness
from benchmarks.harness import RESULTS, record
from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.run.past import History
from launch.observe import efficiency, history
from launch.submit import runs

ROOT: Path = repository.ROOT

RATES = {"RSC-1": 6.50, "RSC-2": 2.34}
"""Failures per 1,000 node-days."""
NODES = (1, 4, 16, 64, 256, 1024, 4096)
DAY = 86400.0
TRACE = RESULTS / "ettr_run"
"""What benchmarks/ettr.py leaves of the run that it interrupted: the events."""
TOLERANCE = {"formula": 0.01, "optimum": 0.002, "trace": 0.03}
"""By how much an ETTR may be off."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All spans in seconds."""

    save: float
    """What a save holds the training up for."""
    written: float
    """From the snapshot until it is on disk; only then does it count."""
    leave: float
    """To save and leave when told to."""
    restart: float
    """From the start of a job to its first step."""
    queue: float
    """Mean time in the queue after an interruption."""
    failures: float
    """Mean time between node failures of the whole job."""
    waves: float
    """Mean time between waves of preemptions that hit the job; inf: none."""
    grace: float
    """Seconds of warning before a preemption's kill."""
    hits: float = 1.0
    """Mean number of preemptions in a wave."""
    gap: float = 600.0
    """Mean time from a start in a wave to the wave's next preemption."""
    by_epoch: bool = False
    """Saves come at multiples of the interval of all work, not of a start's."""


class Interruption(msgspec.Struct, frozen=True):
    """The end of an incarnation."""

    life: float
    """Seconds since it began."""
    announced: bool
    """With time enough to save and leave."""
    queue: float
    """Seconds until the next begins."""


class Outcome(msgspec.Struct, kw_only=True):
    wall: float = 0.0
    productive: float = 0.0
    lost: float = 0.0
    interruptions: int = 0

    @property
    def ettr(self) -> float:
        return self.productive / self.wall if self.wall else 0.0


def by_chance(world: World, seed: int) -> Iterator[Interruption]:
    """What the world does to a job, for ever."""
    dice = random.Random(seed)
    left = 0
    """Preemptions that the present wave still has in store."""
    while True:
        failure = dice.expovariate(1 / world.failures)
        preemption = math.inf
        if left or world.waves < math.inf:
            preemption = dice.expovariate(1 / (world.gap if left else world.waves))
        preempted = preemption < failure
        if preempted:
            left = left - 1 if left else geometric(world.hits, dice) - 1
        queue = dice.expovariate(1 / world.queue) if world.queue else 0.0
        yield Interruption(min(failure, preemption), preempted and world.grace >= world.leave, queue)


def geometric(mean: float, dice: random.Random) -> int:
    """1, 2, … with this mean."""
    return 1 if mean <= 1 else 1 + int(math.log(1 - dice.random()) / math.log(1 - 1 / mean))


def simulate(
    world: World, work: float, interval: float, interruptions: Iterable[Interruption], enough: float = 1e9
) -> Outcome:
    """Goes through one run that needs `work` productive seconds and saves every `interval` of them; after the
    last of `interruptions` it is left alone.

    Ends early, with what was reached by then, after `enough` seconds: some worlds let no run through.
    """
    done = Outcome()
    saved = 0.0
    left_alone = itertools.repeat(Interruption(math.inf, False, 0.0))
    for one in itertools.chain(interruptions, left_alone):
        reached, durable, spent = _live(world, saved, work, interval, one.life)
        if reached >= work and spent <= one.life:
            done.wall += spent
            saved = work
            break
        done.interruptions += 1
        done.wall += one.life + one.queue
        if one.announced:
            # It goes on until it is told, then saves within the grace time.
            done.wall += world.leave
            saved = reached
        else:
            done.lost += reached - durable
            saved = durable
        if done.wall >= enough:
            break
    done.productive = saved
    return done


def _live(
    world: World, begin: float, work: float, interval: float, life: float
) -> tuple[float, float, float]:
    """(work reached, work on disk, time spent) of one start that lasts `life` seconds, or to the end."""
    if life <= world.restart:
        return begin, begin, life
    # Whole rounds of `interval` work and one save; then what is left of the life.
    round_time = interval + world.save
    time_left = life - world.restart
    # How much of the first round's work was done before.
    ahead = begin % interval if world.by_epoch else 0.0
    rounds = int(min((time_left + ahead) / round_time, (work - begin + ahead) / interval))
    time_left -= rounds * round_time - (ahead if rounds else 0.0)
    done = rounds * interval - ahead if rounds else 0.0
    rest = min(time_left, interval if rounds else interval - ahead, work - begin - done)
    reached = begin + done + rest
    # The last save may still be on its way to the disk.
    on_disk = rounds
    if rounds and world.written > world.save and time_left < world.written - world.save:
        on_disk -= 1
    durable = begin + (on_disk * interval - ahead if on_disk else 0.0)
    return reached, durable, world.restart + done + rounds * world.save + rest


def best_interval(world: World) -> float:
    """The best interval for unannounced interruptions; those that are announced lose nothing."""
    rate = 1 / world.failures
    if world.grace < world.leave:
        rate += world.hits / world.waves
    return efficiency.best_interval(max(world.save, 1e-3), 1 / rate, world.restart, world.queue)


def mean_ettr(world: World, work: float, interval: float, seeds: int) -> float:
    outcomes = [
        simulate(world, work, interval, by_chance(world, seed), enough=50 * work) for seed in range(seeds)
    ]
    return sum(one.productive for one in outcomes) / sum(one.wall for one in outcomes)


# ------------------------------------------------------------------------------------------------- the table


def table(arguments: argparse.Namespace) -> list[dict[str, float | str | int]]:
    rows: list[dict[str, float | str | int]] = []
    waves = arguments.preempt_hours * 3600 or math.inf
    for name, rate in RATES.items():
        for nodes in NODES:
            hit = 1 - (1 - arguments.wave_share) ** nodes
            world = World(
                save=arguments.stall, written=arguments.save, leave=arguments.save + arguments.step,
                restart=arguments.restart, queue=arguments.queue, failures=1000 * DAY / (rate * nodes),
                waves=waves / hit, grace=arguments.grace, hits=arguments.wave_hits,
                gap=arguments.wave_minutes * 60,
            )  # fmt: skip
            best = best_interval(world)
            row: dict[str, float | str | int] = {
                "rates": name,
                "nodes": nodes,
                "mtbf_hours": world.failures / 3600,
                "wave_hours": world.waves / 3600,
            }
            row["best_interval_s"] = best
            for label, interval in (("ettr_best", best), ("ettr_10_min", 600.0), ("ettr_1_h", 3600.0)):
                row[label] = mean_ettr(world, arguments.days * DAY, interval, arguments.seeds)
            rows.append(row)
    return rows


def take_costs(arguments: argparse.Namespace, name: str) -> None:
    """Puts the costs that were measured on a run in the place of the defaults."""
    past = read(name)
    measured = efficiency.costs(past, past.last)
    for key, value in (
        ("stall", measured.save_stall),
        ("save", measured.save_seconds),
        ("restart", measured.startup),
        ("queue", measured.queue),
        ("step", measured.step),
    ):
        if value is not None:
            setattr(arguments, key, value)


def read(name: str) -> History:
    """A run's history, by its name or its directory. Raises UserError if it was never started."""
    past = history.read(Run(Path(name)) if (Path(name) / "events.jsonl").exists() else runs.find(name))
    if not past.incarnations:
        raise UserError(f"{name} was never started: there is nothing to measure")
    return past


# ------------------------------------------------------------------------------------------------ the checks


def check_formula(seeds: int) -> list[dict[str, float]]:
    """Simulated against expected ETTR where nothing is announced; the two differ only by chance."""
    rows = []
    for mtbi, save, restart, queue, interval in (
        (7200.0, 2.0, 60.0, 0.0, 170.0),
        (7200.0, 2.0, 60.0, 0.0, 3600.0),
        (3600.0, 30.0, 300.0, 600.0, 460.0),
        (600.0, 5.0, 30.0, 60.0, 77.0),
    ):
        world = unannounced(save, restart, queue, mtbi)
        simulated = mean_ettr(world, 400 * mtbi, interval, seeds)
        expected = efficiency.expected_ettr(interval, save, restart, mtbi, queue)
        rows.append({"mtbi": mtbi, "interval": interval, "simulated": simulated, "formula": expected})
    return rows


def check_optimum(seeds: int) -> list[dict[str, float]]:
    """The best of many intervals by simulation, against Young/Daly's: their places, and their ETTR."""
    rows = []
    for mtbi, save, restart, queue in (
        (7200.0, 2.0, 60.0, 0.0),
        (3600.0, 30.0, 300.0, 600.0),
        (600.0, 5.0, 30.0, 60.0),
    ):
        world = unannounced(save, restart, queue, mtbi)
        closed = efficiency.best_interval(save, mtbi, restart, queue)
        tried = [closed * 2.0 ** (power / 3) for power in range(-6, 7)]
        ettr = {interval: mean_ettr(world, 400 * mtbi, interval, seeds) for interval in tried}
        best = max(ettr, key=lambda interval: ettr[interval])
        rows.append(
            {
                "mtbi": mtbi,
                "closed": closed,
                "young": efficiency.young(save, mtbi),
                "simulated": best,
                "ettr_closed": ettr[closed],
                "ettr_simulated": ettr[best],
            }
        )
    return rows


def unannounced(save: float, restart: float, queue: float, mtbi: float) -> World:
    return World(
        save=save, written=save, leave=0.0, restart=restart, queue=queue, failures=mtbi, waves=math.inf,
        grace=0.0,
    )  # fmt: skip


def replay(name: str) -> dict[str, float]:
    """A real run's interruptions, gone through with the costs measured on it, against what it observed."""
    past = read(name)
    if not past.finished or not past.interruptions:
        raise UserError(f"--trace {name}: take a finished run that was interrupted")
    observed = efficiency.shares(past, past.last)
    costs = efficiency.costs(past, past.last)
    endings = list(itertools.pairwise(past.incarnations))
    interruptions = [
        Interruption(
            life=(one.ended or after.began) - one.began,
            announced=one.ending in ("preempted", "timeout"),
            queue=after.began - (one.ended or after.began),
        )
        for one, after in endings
    ]
    steps = max(one.step or 0 for one in past.incarnations)
    validating = sum(seconds for one in past.incarnations for _, seconds in one.validations)
    work = (costs.step or 0.0) * steps + validating
    stall, written = costs.save_stall or 0.0, costs.save_seconds or 0.0
    interval, by_epoch = saving(past)
    # The life of one that was told ends when it has left: leaving is in it.
    world = World(
        save=stall, written=written, leave=0.0, restart=costs.startup or 0.0, queue=costs.queue or 0.0,
        failures=math.inf, waves=math.inf, grace=0.0, by_epoch=by_epoch,
    )  # fmt: skip
    found = simulate(world, work, interval * (costs.step or 0.0) or work, interruptions)
    found.wall += past.incarnations[0].began - (past.submitted or past.incarnations[0].began)
    return {
        "observed": observed.ettr or 0.0,
        "simulated": found.ettr,
        "interruptions": len(interruptions),
        "observed_wall": observed.wall,
        "simulated_wall": found.wall,
    }


def saving(past: History) -> tuple[int, bool]:
    """(steps between periodic saves, whether they come at multiples of that); 0 where that cannot be told.

    It is the widest gap between two saves of one start: a save on leaving only makes gaps narrower.
    """
    gaps = [
        (after - before, after)
        for one in past.incarnations
        for (before, _, _), (after, _, _) in itertools.pairwise(one.saves)
    ]
    widest = max((gap for gap, _ in gaps), default=0)
    return widest, all(after % widest == 0 for gap, after in gaps if gap == widest and widest)


def verdicts(result: dict[str, Any]) -> dict[str, float]:
    """For each check the largest difference of an ETTR; see TOLERANCE."""
    found = {
        "formula": max(abs(row["simulated"] - row["formula"]) for row in result["formula"]),
        "optimum": max(row["ettr_simulated"] - row["ettr_closed"] for row in result["optimum"]),
    }
    if result["trace"]:
        found["trace"] = max(abs(row["observed"] - row["simulated"]) for row in result["trace"])
    return found


WHAT = {
    "formula": "simulated ETTR: how far off the closed formula",
    "optimum": "simulated ETTR: what the best of 13 intervals has over Young/Daly's",
    "trace": "simulated ETTR: how far off the one observed on a real Slurm",
}


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--costs", metavar="RUN", help="take save, stall, restart, queue, step from this run")
    parser.add_argument("--save", type=float, default=4.0, help="seconds until a checkpoint is on disk")
    parser.add_argument("--stall", type=float, default=0.3, help="seconds a periodic save holds training up")
    parser.add_argument("--step", type=float, default=0.3, help="seconds a step")
    parser.add_argument("--restart", type=float, default=30.0, help="seconds from start to first step")
    parser.add_argument("--queue", type=float, default=120.0, help="mean seconds in the queue each time")
    parser.add_argument(
        "--preempt-hours", type=float, default=6.0, help="mean hours between waves of preemptions; 0: none"
    )
    parser.add_argument("--wave-share", type=float, default=0.1, help="share of the nodes that a wave takes")
    parser.add_argument("--wave-hits", type=float, default=3.0, help="mean preemptions of a job in a wave")
    parser.add_argument(
        "--wave-minutes", type=float, default=10.0, help="mean minutes from a start to the wave's next hit"
    )
    parser.add_argument("--grace", type=float, default=60.0, help="seconds of warning at a preemption")
    parser.add_argument("--days", type=float, default=7.0, help="productive days that a run needs")
    parser.add_argument("--seeds", type=int, default=20, help="runs simulated for each figure")
    parser.add_argument("--trace", metavar="RUN", help="simulate this run's interruptions and compare")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    if arguments.costs:
        take_costs(arguments, arguments.costs)
    trace = arguments.trace or (str(TRACE) if TRACE.exists() else None)
    result: dict[str, Any] = {
        "formula": check_formula(2 * arguments.seeds),
        "optimum": check_optimum(arguments.seeds),
        "trace": [replay(trace)] if trace else [],
        "table": table(arguments),
    }
    found = verdicts(result)
    off = {name: value for name, value in found.items() if value > TOLERANCE[name]}
    if arguments.json:
        print(json.dumps(result))
    else:
        tell(result)
        publish(result, found)
    for name, value in off.items():
        print(f"error: {WHAT[name]}: {value:.4f}, more than {TOLERANCE[name]}", file=sys.stderr)
    return 1 if off else 0


def publish(result: dict[str, Any], found: dict[str, float]) -> None:
    """The checks as results, each with what it looked at."""
    line: dict[str, Any] = {"against": "", "better": "lower", "unit": "ETTR"}
    raw = {"formula": result["formula"], "table": result["table"]}
    record(
        "simulate_formula", WHAT["formula"], found["formula"], goal=TOLERANCE["formula"], raw=raw, **line
    )  # fmt: skip
    raw = {"optimum": result["optimum"]}
    record(
        "simulate_optimum", WHAT["optimum"], found["optimum"], goal=TOLERANCE["optimum"], raw=raw, **line
    )  # fmt: skip
    if "trace" in found:
        raw = {"trace": result["trace"]}
        record("simulate_trace", WHAT["trace"], found["trace"], goal=TOLERANCE["trace"], raw=raw, **line)


def tell(result: dict[str, Any]) -> None:
    for row in result["formula"]:
        print(
            f"check: an interruption every {row['mtbi']:.0f} s, a save every {row['interval']:.0f} s: "
            f"simulated {row['simulated']:.4f}, formula {row['formula']:.4f}"
        )
    for row in result["optimum"]:
        print(
            f"check: an interruption every {row['mtbi']:.0f} s: best interval simulated "
            f"{row['simulated']:.0f} s, closed {row['closed']:.0f} s, Young {row['young']:.0f} s"
        )
    for row in result["trace"]:
        print(
            f"trace: {row['interruptions']} interruptions, observed ETTR {row['observed']:.4f}, "
            f"simulated {row['simulated']:.4f}"
        )
    heads = f"{'MTBF h':>10}{'wave h':>8}{'best s':>8}{'ETTR best':>11}{'10 min':>8}{'1 h':>8}"
    print(f"\n{'rates':7}{'nodes':>6}{heads}")
    for one in result["table"]:
        print(
            f"{one['rates']:7}{one['nodes']:>6}{one['mtbf_hours']:>10.1f}{one['wave_hours']:>8.1f}"
            f"{one['best_interval_s']:>8.0f}{one['ettr_best']:>11.4f}{one['ettr_10_min']:>8.4f}"
            f"{one['ettr_1_h']:>8.4f}"
        )


if __name__ == "__main__":
    run_command(main)
