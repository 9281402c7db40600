"""What a Slurm cluster reports: configuration, partitions, nodes, accounting. Changes nothing."""

from __future__ import annotations

import re
import shutil
import time
from datetime import datetime
from typing import Literal

import msgspec

from jobs.slurm import commands
from jobs.slurm import login as slurm
from launch.submit import machine

Style = Literal["gpus-per-node", "gres", "none"]
PATIENCE = 20.0


class Partition(msgspec.Struct, kw_only=True):
    name: str
    default: bool = False
    up: bool = True
    preempt_mode: str = ""
    grace: int = 0
    """GraceTime: seconds between the signal and the kill at a preemption."""
    max_time: int | None = None
    """Seconds; None: no limit."""
    default_time: int | None = None
    tier: int = 0
    nodes: int = 0
    cpus: int = 0
    """CPUs of its smallest node."""
    memory: int = 0
    """MB of its smallest node."""
    gpus: int = 0
    """GPUs per node, on nodes that have any; 0 if none has."""
    gpu_types: list[str] = []
    preemptible: bool = False
    """Whether a running job may be preempted there."""
    start: float | None = None
    """Slurm's estimate of the seconds until a small job would start, with a GPU if there are any."""
    refused: str = ""
    """Why Slurm would not take such a job of ours there."""


class Facts(msgspec.Struct, kw_only=True):
    version: str = ""
    config: dict[str, str] = {}
    partitions: list[Partition] = []
    accounting: bool = False
    accounting_error: str = ""
    accounts: list[str] = []
    """Accounts that the user may charge, the default first."""
    qos_preempt: list[str] = []
    """QOS that may preempt others."""
    problems: list[str] = []

    @property
    def user_signal(self) -> bool:
        """Whether a preempted job also gets its --signal (the key was renamed in Slurm 23.02)."""
        old, new = self.config.get("SlurmctldParameters", ""), self.config.get("PreemptParameters", "")
        return "preempt_send_user_signal" in old or "send_user_signal" in new

    @property
    def preempts(self) -> bool:
        return self.config.get("PreemptType", "") not in ("", "(null)", "preempt/none")

    def number(self, key: str, default: int) -> int:
        """The leading number of a setting such as `30 sec`."""
        found = re.match(r"\d+", self.config.get(key, ""))
        return int(found[0]) if found else default

    def partition(self, name: str) -> Partition | None:
        return next((one for one in self.partitions if one.name == name), None)


def gather(charge: dict[str, str]) -> Facts:
    """Asks scontrol, sinfo, sacct, sacctmgr and `sbatch --test-only`, which submits nothing.

    `charge`: sbatch options (account, qos) for the latter.

    Raises SlurmError if the controller does not answer at all.
    """
    facts = Facts()
    facts.config = parse_config(slurm.call("scontrol", "show", "config", patience=PATIENCE))
    facts.version = facts.config.get("SLURM_VERSION", "")
    facts.partitions = parse_partitions(
        slurm.call("scontrol", "--oneliner", "show", "partition", patience=PATIENCE)
    )
    nodes = slurm.call("sinfo", "--noheader", "--Node", "--format=%R|%N|%c|%m|%G|%T", patience=PATIENCE)
    add_nodes(facts.partitions, nodes)
    _mark_preemptible(facts)
    _ask_accounting(facts)
    for one in facts.partitions:
        if one.up:
            _test_start(facts, one, charge)
    return facts


def gres_style(facts: Facts) -> Style:
    """How GPUs are requested: --gpus-per-node needs select/cons_tres, older plugins take --gres."""
    if not any(one.gpus for one in facts.partitions):
        return "none"
    return "gpus-per-node" if "cons_tres" in facts.config.get("SelectType", "") else "gres"


def one_gpu(facts: Facts, where: Partition) -> dict[str, str]:
    """The sbatch option that requests one GPU per node there; {} where there are none."""
    style = gres_style(facts) if where.gpus else "none"
    return {"none": {}, "gres": {"gres": "gpu:1"}, "gpus-per-node": {"gpus-per-node": "1"}}[style]


def parse_config(text: str) -> dict[str, str]:
    """Parses `scontrol show config`: key -> value."""
    return {
        key.strip(): value.strip()
        for key, equals, value in (line.partition("=") for line in text.splitlines())
        if equals
    }


def parse_partitions(text: str) -> list[Partition]:
    """Parses `scontrol --oneliner show partition`."""
    found = []
    for line in text.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" not in fields:
            continue
        found.append(
            Partition(
                name=fields["PartitionName"],
                default=fields.get("Default") == "YES",
                up=fields.get("State", "UP") == "UP",
                preempt_mode=fields.get("PreemptMode", ""),
                grace=int(fields.get("GraceTime", "0") or 0),
                max_time=seconds(fields.get("MaxTime", "")),
                default_time=seconds(fields.get("DefaultTime", "")),
                tier=int(fields.get("PriorityTier", "1") or 1),
                nodes=int(fields.get("TotalNodes", "0") or 0),
            )
        )
    return found


def seconds(text: str) -> int | None:
    """Seconds of a Slurm time [D-][HH:]MM:SS; None for anything else, such as UNLIMITED, NONE or ""."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest


def add_nodes(partitions: list[Partition], text: str) -> None:
    """Adds what `sinfo` reports for each partition's nodes: CPUs, memory, GPUs and their types."""
    by_name = {one.name: one for one in partitions}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < 6 or fields[0] not in by_name:
            continue
        one = by_name[fields[0]]
        cpus, memory = int(re.sub(r"\D.*", "", fields[2]) or 0), int(re.sub(r"\D.*", "", fields[3]) or 0)
        one.cpus = min(one.cpus or cpus, cpus)
        one.memory = min(one.memory or memory, memory)
        for kind, count in re.findall(r"gpu(?::([^:,(\s]+))?:(\d+)", fields[4]):
            one.gpus = max(one.gpus, int(count))
            if kind and kind not in one.gpu_types:
                one.gpu_types.append(kind)


def _mark_preemptible(facts: Facts) -> None:
    """By partition: if one of a higher tier can take its nodes. By QOS: jobs of any partition."""
    kind = facts.config.get("PreemptType", "")
    cluster_mode = facts.config.get("PreemptMode", "OFF")
    highest = max((one.tier for one in facts.partitions), default=0)
    for one in facts.partitions:
        one.preempt_mode = one.preempt_mode or cluster_mode
        if kind == "preempt/partition_prio":
            one.preemptible = one.preempt_mode != "OFF" and one.tier < highest
        elif kind == "preempt/qos":
            one.preemptible = one.preempt_mode != "OFF"


def _ask_accounting(facts: Facts) -> None:
    if shutil.which("sacct") is None:
        facts.accounting_error = "sacct is not on PATH"
        return
    try:
        slurm.call("sacct", "--noheader", "--parsable2", "--format=JobID", "--jobs=1", patience=PATIENCE)
        facts.accounting = True
    except slurm.SlurmError as error:
        facts.accounting_error = str(error)
        return
    try:
        user = f"user={machine.user()}"
        text = slurm.call(
            *("sacctmgr", "--noheader", "--parsable2", "show", "assoc", user, "format=Account"),
            patience=PATIENCE,
        )
        facts.accounts = list(dict.fromkeys(line for line in text.splitlines() if line))
        text = slurm.call(
            "sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,Preempt", patience=PATIENCE
        )
        facts.qos_preempt = [line.split("|")[0] for line in text.splitlines() if line.partition("|")[2]]
    except slurm.SlurmError as error:
        facts.problems.append(f"sacctmgr: {error}")


def _test_start(facts: Facts, one: Partition, charge: dict[str, str]) -> None:
    """Notes when a job of one small task would start. `--test-only` answers on standard error."""
    options = {"partition": one.name, "time": "10", "ntasks": "1", "output": "/dev/null"}
    options |= one_gpu(facts, one) | {key: value for key, value in charge.items() if value}
    command = ["sbatch", "--test-only", *(f"--{key}={value}" for key, value in options.items())]
    answer = commands.once([*command, "--wrap", "true"], slurm.clean_environment(), 30)
    said = " ".join(answer.errors.split()) if answer.ok else answer.text
    when = re.search(r"to start at (\S+)", said)
    if answer.ok and when:
        one.start = max(0.0, datetime.fromisoformat(when[1]).timestamp() - time.time())
    else:
        one.refused = said.replace("allocation failure: ", "").replace("sbatch: error: ", "") or "no answer"
