"""Looks at this cluster and says what will and won't work there for a run, and what to do about it.

Read-only, except for --submit-probe (submits one small job, to try it on the nodes) and --write-profile NAME
(writes configs/clusters/NAME.yaml, for --cluster NAME). Partitions that are alike are shown together.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from jobs.run import environment

environment.enter()

import msgspec

from jobs.run import cuda, events
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError, run_command
from jobs.slurm import login as slurm
from launch.observe import efficiency, history, tables
from launch.observe import wording as words
from launch.observe.doctor import facts as cluster_facts
from launch.observe.doctor import findings
from launch.observe.doctor import probe as probe_job
from launch.observe.doctor.facts import Facts, Partition
from launch.observe.doctor.findings import Finding, Measured
from launch.submit import machine, profiles, runs

EXAMPLES = """examples:
  python launch/doctor.py
  python launch/doctor.py --verbose                         each partition on its own
  python launch/doctor.py --submit-probe --partition gpu
  python launch/doctor.py --write-profile mine && python launch/train.py --cluster mine --dry-run
  python launch/doctor.py --cluster mine --submit-probe     with its interpreter, set-up lines and account
"""
RUNS_LOOKED_AT = 30


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--partition",
        metavar="NAME",
        help="show this one alone; also for probe and profile (default: all, and the best there is)",
    )
    parser.add_argument("--verbose", action="store_true", help="show each partition on its own")
    parser.add_argument("--account", default="", metavar="NAME", help="charge it for test start and probe")
    parser.add_argument("--qos", default="", metavar="NAME", help="quality of service for both")
    parser.add_argument(
        "--cluster",
        default="",
        metavar="NAME",
        help="a profile: its partition, account and QOS for both, "
        "and its interpreter, set-up lines, environment and container for the probe",
    )
    parser.add_argument("--submit-probe", action="store_true", help="try it on the nodes, with one small job")
    parser.add_argument(
        "--probe-minutes", type=float, default=10, metavar="N", help="wait at most N minutes (default 10)"
    )
    parser.add_argument("--write-profile", metavar="NAME", help="write configs/clusters/NAME.yaml")
    parser.add_argument("--force", action="store_true", help="overwrite a profile of that name")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    if not machine.has_slurm():
        if arguments.submit_probe or arguments.write_profile:
            raise UserError("there is no Slurm here: neither a probe nor a profile can be made")
        return show(local_findings(), arguments.json)
    if arguments.write_profile:
        check_profile_name(arguments.write_profile, arguments.force)
    profile = profiles.load(arguments.cluster, "slurm")
    if profile.executor != "slurm":
        raise UserError(f"--cluster {arguments.cluster} is not a profile for Slurm")
    asked = {key: getattr(arguments, key) for key in ("account", "qos") if getattr(arguments, key)}
    wanted = profiles.resolve(profile, "train", asked).settings
    charge = {"account": wanted.account, "qos": wanted.qos}
    try:
        facts = cluster_facts.gather(charge)
    except slurm.SlurmError as error:
        away = Finding(
            "Slurm", "bad", f"its controller does not answer: {error}", "nothing can be submitted now",
            "try again later; submitted jobs go on meanwhile",
        )  # fmt: skip
        return show([away], arguments.json)
    measured = measured_save()
    if arguments.partition:
        choose(facts, arguments.partition)
    shown = [arguments.partition] if arguments.partition else None
    found = findings.all_findings(facts, measured, shown)
    if not (arguments.json or arguments.verbose or arguments.partition):
        found = findings.grouped(found)
    found += [
        Finding("Slurm", "note", problem, "that is unknown", "nothing to do, if the rest is good")
        for problem in facts.problems
    ]
    if not (arguments.submit_probe or arguments.write_profile):
        return show(found, arguments.json)
    try:
        where = choose(facts, arguments.partition or wanted.partition.partition(",")[0])
    except UserError:
        show(found, arguments.json)  # which say why
        raise
    if arguments.submit_probe:
        try:
            found += probe_job.run(facts, where, profile, asked, arguments.probe_minutes)
        except slurm.SlurmError as error:
            found.append(
                Finding("probe", "bad", f"Slurm refuses it: {error}", "a run would be refused, too",
                        "--account, --qos or --partition; `sbatch --test-only` shows whether Slurm takes it")
            )  # fmt: skip
    written = ""
    if arguments.write_profile:
        text = profile_text(arguments.write_profile, facts, where, measured, charge)
        written = str(write_profile(arguments.write_profile, text))
    return show(found, arguments.json, written, arguments.write_profile or "")


def show(found: list[Finding], as_json: bool, written: str = "", name: str = "") -> int:
    if as_json:
        print(json.dumps({"findings": msgspec.to_builtins(found), "profile": written or None}))
        return 0
    colours = {"good": tables.GREEN, "note": tables.CYAN, "warning": tables.YELLOW, "bad": tables.BOLD_RED}
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for one in found:
        head = words.safe(f"{one.level:8} {one.topic}: {one.found}")
        tables.control(f"{tables.paint(head, colours[one.level], coloured)}\n")
        print(f"         {one.means}")
        if one.mend:
            print(f"         fix: {one.mend}")
    worst = sum(1 for one in found if one.level == "bad")
    print()
    if written:
        print(f"wrote {written}; next: python launch/train.py --cluster {name} --dry-run")
    elif worst:
        print(f"{worst} of {len(found)} findings stand in the way of a run; each says how to fix it")
    else:
        print("nothing stands in the way; next: python launch/doctor.py --submit-probe --write-profile mine")
    return 0


def local_findings() -> list[Finding]:
    gpus = machine.local_gpus()
    built, taken = cuda.build(), cuda.driver()
    way = cuda.mend(built, taken)
    return [
        Finding("Slurm", "note", "none can be reached from here",
                "runs go to the local executor: prepare, train, evaluate, one after the other",
                "to use a cluster, type this on its login node"),
        Finding("GPUs", "bad", f"torch is built for CUDA {built}, and the driver takes {taken} at most",
                "a training would run on the CPU", way)
        if gpus and way else
        Finding("GPUs", "good", f"{gpus} on this machine", "one rank each")
        if gpus else
        Finding("GPUs", "note", "none on this machine", "ranks are CPU processes: enough for the demo",
                "a machine with a GPU, or a cluster, for the recipe"),
    ]  # fmt: skip


def measured_save() -> Measured | None:
    """The slowest save that the newest runs measured; None if none has saved yet."""
    newest = sorted(runs.all_runs(), key=lambda run: run.path.stat().st_mtime, reverse=True)[:RUNS_LOOKED_AT]
    pasts = [(run, history.attempt(run)) for run in newest]
    found = [
        (run, efficiency.costs(past, time.time())) for run, past in pasts if isinstance(past, history.History)
    ]
    saved = [(run, costs) for run, costs in found if costs.save_seconds is not None]
    if not saved:
        return None
    run, costs = max(saved, key=lambda pair: pair[1].save_seconds or 0.0)
    sizes = [event.get("bytes", 0) for event in events.iterate(run.events) if event["event"] == "checkpoint"]
    return Measured(costs=costs, run=run.name, bytes=sizes[-1])


def choose(facts: Facts, asked: str | None) -> Partition:
    """The partition for probe and profile: the one asked for, or one with GPUs, the default first."""
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
        raise UserError(f"no partition takes a job of yours ({why}): ask for access, or try again later")
    return min(usable, key=lambda one: (one.gpus == 0, not one.default, one.start or 0.0))


def check_profile_name(name: str, force: bool) -> None:
    """Raises UserError if a profile cannot get that name."""
    runs.check_name(name)
    path = profiles.CLUSTERS / f"{name}.yaml"
    if name in ("local", "slurm"):
        raise UserError(f"--write-profile {name}: that name is built in; choose another")
    if path.exists() and not force:
        raise UserError(f"{path} is there already; --force overwrites it")


def write_profile(name: str, text: str) -> Path:
    path = profiles.CLUSTERS / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    profiles.load(name)
    return path


def profile_text(
    name: str, facts: Facts, where: Partition, measured: Measured | None, charge: dict[str, str]
) -> str:
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


if __name__ == "__main__":
    tables.guard()
    run_command(main)
