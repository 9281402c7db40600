"""What interruptions cost from 1 to 4,096 nodes: a seeded simulation, with the costs that were measured.

Interruptions: node failures at the published rates (arXiv 2410.21680: 6.50 per 1,000 node-days on RSC-1, 2.34
on RSC-2), unannounced; and preemption waves, announced with a grace time in which the training saves. The
simulation checks itself: without preemptions it must agree with the closed formula of launch/efficiency.py;
with --trace RUN it replays a real run's interruptions and compares the ETTR with the one that was observed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import msgspec  # noqa: E402

from jobs.errors import UserError, run_command  # noqa: E402
from launch import efficiency, history, runs  # noqa: E402

RATES = {"RSC-1": 6.50, "RSC-2": 2.34}
"""Failures per 1,000 node-days."""
NODES = (1, 4, 16, 64, 256, 1024, 4096)
DAY = 86400.0

EXAMPLES = """examples:
  python benchmarks/simulate.py
  python benchmarks/simulate.py --save 2 --stall 0.3 --restart 60 --preempt-hours 6
  python benchmarks/simulate.py --trace first --json       against what a real run went through
"""


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
    preemptions: float
    """Mean time between preemptions; inf: none."""
    grace: float
    """Seconds of warning before a preemption's kill."""


class Outcome(msgspec.Struct, kw_only=True):
    wall: float = 0.0
    productive: float = 0.0
    lost: float = 0.0
    interruptions: int = 0

    @property
    def ettr(self) -> float:
        return self.productive / self.wall if self.wall else 0.0


def simulate(world: World, work: float, interval: float, seed: int, enough: float = 1e9) -> Outcome:
    """Goes through one run that needs `work` productive seconds and saves every `interval` of them.

    Ends early, with what was reached by then, after `enough` seconds: some worlds let no run through.
    """
    dice = random.Random(seed)
    done = Outcome()
    saved = 0.0
    at_work = False
    while saved < work and done.wall < enough:
        if at_work:
            done.wall += dice.expovariate(1 / world.queue) if world.queue else 0.0
        at_work = True
        failure = dice.expovariate(1 / world.failures)
        preemption = (
            dice.expovariate(1 / world.preemptions) if world.preemptions < float("inf") else float("inf")
        )
        life = min(failure, preemption)
        announced = preemption < failure and world.grace >= world.leave
        reached, durable, spent = _live(world, saved, work, interval, life)
        if reached >= work and spent <= life:
            done.wall += spent
            saved = work
            break
        done.interruptions += 1
        done.wall += life
        if announced:
            # It goes on until it is told, then saves within the grace time.
            done.wall += world.leave
            saved = reached
        else:
            done.lost += reached - durable
            saved = durable
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
    rounds = min(int(time_left / round_time), int((work - begin) / interval))
    time_left -= rounds * round_time
    rest = min(time_left, interval, work - begin - rounds * interval)
    reached = begin + rounds * interval + rest
    # The last save may still be on its way to the disk.
    on_disk = rounds
    if rounds and world.written > world.save and time_left < world.written - world.save:
        on_disk -= 1
    spent = world.restart + rounds * round_time + rest
    return reached, begin + on_disk * interval, spent


def best_interval(world: World) -> float:
    """The best interval for unannounced interruptions; those that are announced lose nothing."""
    between = world.failures
    if world.grace < world.leave:
        between = 1 / (1 / world.failures + 1 / world.preemptions)
    return efficiency.best_interval(max(world.save, 1e-3), between, world.restart, world.queue)


def table(arguments: argparse.Namespace) -> list[dict[str, float | str | int]]:
    rows: list[dict[str, float | str | int]] = []
    for name, rate in RATES.items():
        for nodes in NODES:
            world = World(
                save=arguments.stall, written=arguments.save, leave=arguments.save + arguments.step,
                restart=arguments.restart, queue=arguments.queue, failures=1000 * DAY / (rate * nodes),
                preemptions=arguments.preempt_hours * 3600 or float("inf"), grace=arguments.grace,
            )  # fmt: skip
            best = best_interval(world)
            row: dict[str, float | str | int] = {
                "rates": name,
                "nodes": nodes,
                "mtbf_hours": world.failures / 3600,
            }
            row["best_interval_s"] = best
            for label, interval in (("ettr_best", best), ("ettr_10_min", 600.0), ("ettr_1_h", 3600.0)):
                row[label] = mean_ettr(world, arguments.days * DAY, interval, arguments.seeds)
            rows.append(row)
    return rows


def mean_ettr(world: World, work: float, interval: float, seeds: int) -> float:
    outcomes = [simulate(world, work, interval, seed, enough=50 * work) for seed in range(seeds)]
    return sum(one.productive for one in outcomes) / sum(one.wall for one in outcomes)


def check_formula(seeds: int = 40) -> list[dict[str, float]]:
    """Simulated against expected ETTR where nothing is announced; the two differ only by chance."""
    rows = []
    for mtbi, save, restart, queue, interval in (
        (7200.0, 2.0, 60.0, 0.0, 170.0),
        (7200.0, 2.0, 60.0, 0.0, 3600.0),
        (3600.0, 30.0, 300.0, 600.0, 460.0),
        (600.0, 5.0, 30.0, 60.0, 77.0),
    ):
        world = World(
            save=save, written=save, leave=0.0, restart=restart, queue=queue, failures=mtbi,
            preemptions=float("inf"), grace=0.0,
        )  # fmt: skip
        simulated = mean_ettr(world, 400 * mtbi, interval, seeds)
        expected = efficiency.expected_ettr(interval, save, restart, mtbi, queue)
        rows.append({"mtbi": mtbi, "interval": interval, "simulated": simulated, "formula": expected})
    return rows


def replay(name: str) -> dict[str, float]:
    """A real run's own interruptions, gone through with its measured costs, against what it observed."""
    past = history.read(runs.find(name))
    if not past.finished or not past.interruptions:
        raise UserError(f"--trace {name}: take a finished run that was interrupted")
    observed = efficiency.shares(past, past.last)
    costs = efficiency.costs(past, past.last)
    wall = observed.queue
    step = costs.step or 0.0
    for one in past.incarnations:
        wall += costs.startup or 0.0
        wall += step * ((one.step or 0) - (one.resumed_step or 0))
        wall += sum(stall for _, stall, _ in one.saves) + sum(seconds for _, seconds in one.validations)
    productive = step * (past.incarnations[-1].step or 0) + observed.validation
    return {
        "observed": observed.ettr or 0.0,
        "replayed": productive / wall,
        "interruptions": past.interruptions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", type=float, default=4.0, help="seconds until a checkpoint is on disk")
    parser.add_argument("--stall", type=float, default=0.3, help="seconds a periodic save holds training up")
    parser.add_argument("--step", type=float, default=0.3, help="seconds a step")
    parser.add_argument("--restart", type=float, default=30.0, help="seconds from start to first step")
    parser.add_argument("--queue", type=float, default=120.0, help="mean seconds in the queue each time")
    parser.add_argument(
        "--preempt-hours", type=float, default=6.0, help="mean hours between preemptions; 0: none"
    )
    parser.add_argument("--grace", type=float, default=60.0, help="seconds of warning at a preemption")
    parser.add_argument("--days", type=float, default=7.0, help="productive days that a run needs")
    parser.add_argument("--seeds", type=int, default=20, help="runs simulated for each figure")
    parser.add_argument("--trace", metavar="RUN", help="replay this run's interruptions and compare")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    checked = check_formula()
    result: dict[str, Any] = {"check": checked, "table": table(arguments)}
    if arguments.trace:
        result["trace"] = [replay(arguments.trace)]
    if arguments.json:
        print(json.dumps(result))
        return 0
    for row in checked:
        print(
            f"check: an interruption every {row['mtbi']:.0f} s, a save every {row['interval']:.0f} s: "
            f"simulated {row['simulated']:.4f}, formula {row['formula']:.4f}"
        )
    for row in result.get("trace", []):
        print(f"trace: observed ETTR {row['observed']:.4f}, replayed {row['replayed']:.4f}")
    print(f"\n{'rates':7}{'nodes':>6}{'MTBF h':>10}{'best s':>8}{'ETTR best':>11}{'10 min':>8}{'1 h':>8}")
    for one in result["table"]:
        print(
            f"{one['rates']:7}{one['nodes']:>6}{one['mtbf_hours']:>10.1f}{one['best_interval_s']:>8.0f}"
            f"{one['ettr_best']:>11.4f}{one['ettr_10_min']:>8.4f}{one['ettr_1_h']:>8.4f}"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
