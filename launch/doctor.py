"""Looks at this cluster and says what will and won't work there for a run, each with its mend.

Read-only, unless told --submit-probe (submits one small job, to try it on the nodes) or --write-profile NAME
(writes configs/clusters/NAME.yaml, for --cluster NAME).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import msgspec  # noqa: E402

from jobs.errors import UserError, run_command  # noqa: E402
from jobs.run_directory import write_atomically  # noqa: E402
from launch import cluster_facts, efficiency, findings, history, machine, probe_job, profiles, runs, slurm  # noqa: E402
from launch.cluster_facts import Facts, Partition  # noqa: E402
from launch.efficiency import Costs  # noqa: E402
from launch.findings import Finding  # noqa: E402

EXAMPLES = """examples:
  python launch/doctor.py
  python launch/doctor.py --submit-probe --partition gpu
  python launch/doctor.py --write-profile mine && python launch/train.py --cluster mine --dry-run
"""
RUNS_LOOKED_AT = 30


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--partition", metavar="NAME", help="for probe and profile (default: the best there is)"
    )
    parser.add_argument("--submit-probe", action="store_true", help="try it on the nodes, with one small job")
    parser.add_argument(
        "--probe-minutes", type=float, default=10, metavar="N", help="wait so long (default 10)"
    )
    parser.add_argument("--write-profile", metavar="NAME", help="write configs/clusters/NAME.yaml")
    parser.add_argument("--force", action="store_true", help="overwrite a profile of that name")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    if not machine.has_slurm():
        if arguments.submit_probe or arguments.write_profile:
            raise UserError("there is no Slurm here: neither a probe nor a profile can be made")
        return show(local_findings(), arguments.json)
    try:
        facts = cluster_facts.gather()
    except slurm.SlurmError as error:
        away = Finding(
            "Slurm", "bad", f"its controller does not answer: {error}", "nothing can be submitted now",
            "try again later; submitted jobs go on meanwhile",
        )  # fmt: skip
        return show([away], arguments.json)
    measured = measured_costs()
    found = findings.all_findings(facts, measured)
    found += [Finding("Slurm", "note", problem, "that is unknown") for problem in facts.problems]
    where = choose(facts, arguments.partition)
    if arguments.submit_probe:
        try:
            found += probe_job.run(facts, where, arguments.probe_minutes)
        except slurm.SlurmError as error:
            found.append(Finding("probe", "bad", f"Slurm refuses it: {error}", "a run would be refused, too"))
    written = ""
    if arguments.write_profile:
        written = str(write_profile(arguments.write_profile, facts, where, measured, arguments.force))
    return show(found, arguments.json, written, arguments.write_profile or "")


def show(found: list[Finding], as_json: bool, written: str = "", name: str = "") -> int:
    if as_json:
        print(json.dumps({"findings": msgspec.to_builtins(found), "profile": written or None}))
        return 0
    colours = {"good": "green", "note": "cyan", "warning": "yellow", "bad": "bold red"}
    terminal = sys.stdout.isatty()
    if terminal:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
    for one in found:
        head = f"{one.level:8} {one.topic}: {one.found}"
        if terminal:
            console.print(Text(head, style=colours[one.level]))
        else:
            print(head)
        print(f"         {one.means}")
        if one.mend:
            print(f"         mend: {one.mend}")
    worst = sum(1 for one in found if one.level == "bad")
    print()
    if written:
        print(f"wrote {written}; next: python launch/train.py --cluster {name} --dry-run")
    elif worst:
        print(f"{worst} of {len(found)} findings stand in the way of a run; their mends are above")
    else:
        print("nothing stands in the way; next: python launch/doctor.py --submit-probe --write-profile mine")
    return 0


def local_findings() -> list[Finding]:
    gpus = machine.local_gpus()
    return [
        Finding("Slurm", "note", "none can be reached from here",
                "runs go to the local executor: prepare, train, evaluate, one after the other",
                "to use a cluster, type this on its login node"),
        Finding("GPUs", "good" if gpus else "note", f"{gpus} on this machine",
                "one rank each" if gpus else "ranks are CPU processes: enough for the demo"),
    ]  # fmt: skip


def measured_costs() -> Costs | None:
    """The largest costs that the newest runs measured; None if none has saved yet."""
    newest = sorted(runs.all_runs(), key=lambda run: run.path.stat().st_mtime, reverse=True)[:RUNS_LOOKED_AT]
    found = [efficiency.costs(history.read(run), time.time()) for run in newest]
    saved = [one for one in found if one.save_seconds is not None]
    if not saved:
        return None
    return max(saved, key=lambda one: one.save_seconds or 0.0)


def choose(facts: Facts, asked: str | None) -> Partition:
    """The partition for probe and profile: the one asked for, or one with GPUs, the default first."""
    if asked:
        if found := facts.partition(asked):
            return found
        raise UserError(
            f"there is no partition {asked!r}; there are {', '.join(p.name for p in facts.partitions)}"
        )
    usable = [one for one in facts.partitions if one.up and not one.refused]
    if not usable:
        why = "; ".join(f"{one.name}: {one.refused or 'down'}" for one in facts.partitions)
        raise UserError(f"no partition takes a job of yours ({why}): ask for access, or try again later")
    return min(usable, key=lambda one: (one.gpus == 0, not one.default, one.start or 0.0))


def write_profile(name: str, facts: Facts, where: Partition, measured: Costs | None, force: bool) -> Path:
    """Writes a profile made of the facts. Raises UserError if there is one of that name, or a bad name."""
    runs.check_name(name)
    path = profiles.CLUSTERS / f"{name}.yaml"
    if name in ("local", "slurm"):
        raise UserError(f"--write-profile {name}: that name is built in; choose another")
    if path.exists() and not force:
        raise UserError(f"{path} is there already; --force overwrites it")
    text = profile_text(name, facts, where, measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    profiles.load(name)
    return path


def profile_text(name: str, facts: Facts, where: Partition, measured: Costs | None) -> str:
    """The YAML of a profile, each line with its reason."""
    style = findings.gres_style(facts) if where.gpus else "none"
    lines = [
        f"# Written by python launch/doctor.py --write-profile {name}, {time.strftime('%Y-%m-%d')},",
        f"# Slurm {facts.version}. docs/clusters.md explains every key; edit it freely.",
        "executor: slurm",
        f"partition: {where.name}",
    ]
    if len(facts.accounts) > 1:
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
    idle = [one for one in facts.partitions if one.up and not one.refused and not one.gpus]
    if style != "none" and idle:
        lines += ["prepare:", f"  partition: {idle[0].name}  # it needs no GPU"]
    return "\n".join(lines) + "\n"


def _time(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


if __name__ == "__main__":
    run_command(main)
