"""A profile for the cluster as it was found, each line with its reason."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.run import output
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError
from jobs.run.past import History
from launch.observe import efficiency, history
from launch.observe.doctor import facts as cluster_facts
from launch.observe.doctor import findings
from launch.observe.doctor.facts import Facts, Partition
from launch.observe.doctor.findings import Measured
from launch.submit import profiles, runs

RUNS_LOOKED_AT = 30


def measured_save() -> Measured | None:
    """The slowest save measured by the newest runs; None if none has saved yet."""
    newest = sorted(runs.all_runs(), key=lambda run: run.path.stat().st_mtime, reverse=True)[:RUNS_LOOKED_AT]
    pasts = [(run, past) for run in newest if isinstance(past := history.attempt(run), History)]
    found = [(run, past, efficiency.costs(past, time.time())) for run, past in pasts]
    saved = [(run, past, costs) for run, past, costs in found if costs.save_seconds is not None]
    if not saved:
        return None
    run, past, costs = max(saved, key=lambda one: one[2].save_seconds or 0.0)
    sizes = [mark.bytes for one in past.incarnations for mark in one.marks if mark.event == "checkpoint"]
    return Measured(costs=costs, run=run.name, bytes=sizes[-1] or 0)


def choose(facts: Facts, asked: str | None) -> Partition:
    """The partition for probe and profile: the one asked for, or one with GPUs, preferably the default."""
    if asked:
        found = facts.partition(asked)
        if found:
            return found
        raise UserError(
            f"there is no partition {asked!r}; there are {', '.join(p.name for p in facts.partitions)}"
        )
    usable = [one for one in facts.partitions if one.up and not one.refused]
    if not usable:
        why = "; ".join(f"{one.name}: {one.refused or 'down'}" for one in facts.partitions)
        raise UserError(f"no partition accepts your jobs ({why}): ask for access, or try again later")
    return min(usable, key=lambda one: (one.gpus == 0, not one.default, one.start or 0.0))


def check_name(name: str, force: bool) -> None:
    """Raises UserError if a profile cannot have that name."""
    runs.check_name(name)
    path = profiles.CLUSTERS / f"{name}.yaml"
    output.check_file(path, "--write-profile")
    if name in ("local", "slurm"):
        raise UserError(f"--write-profile {name}: that is a built-in name; choose another")
    if path.exists() and not force:
        raise UserError(f"{path} already exists; --force overwrites it")


def write(name: str, text: str) -> Path:
    path = profiles.CLUSTERS / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    profiles.load(name)
    return path


def text(name: str, facts: Facts, where: Partition, measured: Measured | None, charge: dict[str, str]) -> str:
    """The YAML of a profile, each line with its reason."""
    style = cluster_facts.gres_style(facts) if where.gpus else "none"
    lines = [
        f"# Written by python launch/doctor.py --write-profile {name}, {time.strftime('%Y-%m-%d')},",
        f"# Slurm {facts.version}. docs/clusters.md explains every key; edit it freely.",
        "executor: slurm",
        f"partition: {where.name}",
    ]
    for key, value in charge.items():
        if value:
            lines.append(f"{key}: {value}")
    if len(facts.accounts) > 1 and not charge.get("account"):
        lines.append(f"account: {facts.accounts[0]}  # also: {', '.join(facts.accounts[1:])}")
    if style == "none":
        lines.append("gres: none  # Slurm knows of no GPU there")
    else:
        lines.append(f"gres: {style}  # {where.gpus} a node {'/'.join(where.gpu_types)}".rstrip())
    share = max(1, min(8, where.cpus // max(1, where.gpus))) if where.cpus else 4
    lines.append(f"cpus_per_gpu: {share}  # {where.cpus} CPUs a node")
    limit = min(where.max_time or 24 * 3600, 24 * 3600)
    why = (
        "the partition's limit"
        if where.max_time and where.max_time <= limit
        else "a day; it goes on after that"
    )
    lines.append(f'time: "{_time(limit)}"  # {why}')
    delay = int(max(120, findings.time_to_save(measured)))
    lines.append(f"signal_delay: {min(delay, max(30, limit // 3))}  # seconds to save in before the limit")
    given = facts.number("DefMemPerCPU", 0)
    if 0 < given < 4000:
        lines.append(f"# memory: 32G  # of each node; without it a job gets {given} MB a CPU")
    idle = [one for one in facts.partitions if one.up and not one.refused and not one.gpus]
    if style != "none" and idle:
        lines += ["prepare:", f"  partition: {idle[0].name}  # it needs no GPU"]
    return "\n".join(lines) + "\n"


def _time(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
