"""Looks at this cluster and says what will and won't work there for a run, and what to do about it.

Read-only, except for --submit-probe (submits one small job, to try it on the nodes) and --write-profile NAME
(writes configs/clusters/NAME.yaml, for --cluster NAME). Similar partitions are shown together.
"""

import argparse

import checkout

from jobs.run.errors import UserError
from jobs.slurm import login as slurm
from launch.observe.doctor import facts as cluster_facts
from launch.observe.doctor import findings, local, probe, profile
from launch.observe.doctor.facts import Facts
from launch.observe.doctor.findings import Finding, Measured
from launch.observe.doctor.shown import show
from launch.submit import machine, profiles, ranges

EXAMPLES = """\
  python launch/doctor.py
  python launch/doctor.py --verbose                         each partition on its own
  python launch/doctor.py --submit-probe --partition gpu
  python launch/doctor.py --write-profile mine && python launch/train.py --cluster mine --dry-run
  python launch/doctor.py --cluster mine --submit-probe     with its interpreter, set-up lines and account
"""


def main() -> int:
    arguments = read_arguments()
    if not machine.has_slurm():
        if arguments.submit_probe or arguments.write_profile:
            raise UserError("there is no Slurm here, so neither a probe nor a profile can be made")
        check_local(arguments)
        return show(local.look(), arguments.json, following="python launch/demo.py")
    if arguments.write_profile:
        profile.check_name(arguments.write_profile, arguments.force)
    chosen = profiles.load(arguments.cluster, "slurm")
    if chosen.executor != "slurm":
        raise UserError(f"--cluster {arguments.cluster} is not a profile for Slurm")
    asked = {key: getattr(arguments, key) for key in ("account", "qos") if getattr(arguments, key)}
    wanted = profiles.resolve(chosen, "train", asked).settings
    charge = {"account": wanted.account, "qos": wanted.qos}
    try:
        facts = cluster_facts.gather(charge)
    except slurm.SlurmError as error:
        away = Finding(
            "Slurm", "bad", f"its controller does not answer: {error}", "nothing can be submitted now",
            "try again later; submitted jobs go on meanwhile",
        )  # fmt: skip
        return show([away], arguments.json)
    measured = profile.measured_save()
    found = findings_of(facts, measured, arguments)
    if not (arguments.submit_probe or arguments.write_profile):
        return show(found, arguments.json)
    try:
        where = profile.choose(facts, arguments.partition or wanted.partition.partition(",")[0])
    except UserError:
        show(found, arguments.json)  # which say why
        raise
    if arguments.submit_probe:
        minutes = 10 if arguments.probe_minutes is None else arguments.probe_minutes
        found += probe.tried(facts, where, chosen, asked, minutes)
    written, name = "", arguments.write_profile or ""
    if name:
        written = str(profile.write(name, profile.text(name, facts, where, measured, charge)))
    return show(found, arguments.json, written, name)


def check_local(arguments: argparse.Namespace) -> None:
    """Raises UserError for options about Slurm where there is none."""
    if profiles.load(arguments.cluster).executor == "slurm":
        raise UserError(f"--cluster {arguments.cluster} is a profile for Slurm, and there is no Slurm here")
    for name in ("partition", "account", "qos"):
        if getattr(arguments, name):
            raise UserError(f"--{name} {getattr(arguments, name)}: there is no Slurm here")


def read_arguments() -> argparse.Namespace:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--partition", metavar="NAME", help="show this one alone; also for probe and profile (default: best)"
    )
    parser.add_argument("--verbose", action="store_true", help="show each partition on its own")
    parser.add_argument("--account", default="", metavar="NAME", help="charge it for test start and probe")
    parser.add_argument("--qos", default="", metavar="NAME", help="quality of service for both")
    parser.add_argument(
        "--cluster", default="", metavar="NAME",
        help="a profile: its partition, account and QOS for both, "
        "and its interpreter, set-up lines, environment and container for the probe",
    )  # fmt: skip
    parser.add_argument("--submit-probe", action="store_true", help="try it on the nodes, with one small job")
    wait = ranges.number("--probe-minutes", 0, 10080)
    parser.add_argument("--probe-minutes", type=wait, metavar="N", help="wait at most N minutes (default 10)")
    parser.add_argument("--write-profile", metavar="NAME", help="write configs/clusters/NAME.yaml")
    parser.add_argument("--force", action="store_true", help="overwrite a profile of that name")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    for given, of in (("force", "write_profile"), ("probe_minutes", "submit_probe")):
        if getattr(arguments, given) is not parser.get_default(given) and not getattr(arguments, of):
            raise UserError(f"--{given} is for --{of}".replace("_", "-"))
    return arguments


def findings_of(facts: Facts, measured: Measured | None, arguments: argparse.Namespace) -> list[Finding]:
    """All findings for the partitions to be shown. Raises UserError for an unknown partition."""
    if arguments.partition:
        profile.choose(facts, arguments.partition)
    shown = [arguments.partition] if arguments.partition else None
    found = findings.all_findings(facts, measured, shown)
    if not (arguments.json or arguments.verbose or arguments.partition):
        found = findings.grouped(found)
    return found + [
        Finding("Slurm", "note", problem, "that is unknown", "nothing to do, if the rest is good")
        for problem in facts.problems
    ]


if __name__ == "__main__":
    checkout.run(main)
