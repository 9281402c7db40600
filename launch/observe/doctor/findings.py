"""What a cluster's settings mean for a run, and what to do about each: pure functions of facts and costs."""

from __future__ import annotations

from typing import Literal

import msgspec

from jobs.run.settings import Settings
from launch.observe import wording
from launch.observe.doctor.facts import Facts, Partition, gres_style
from launch.observe.efficiency import Costs

Level = Literal["good", "note", "warning", "bad"]

PARTITION = "partition "
"""Prefix of the topic of a finding about a partition, before its name."""
DEFAULT_SAVE = 30.0
"""Seconds assumed for a save before a run has measured it: some GB to a shared file system."""


class Finding(msgspec.Struct, frozen=True):
    topic: str
    level: Level
    found: str
    means: str
    fix: str = ""


class Measured(msgspec.Struct, frozen=True):
    """The measured costs of a run that has saved."""

    costs: Costs
    run: str
    bytes: int = 0
    """Size of its newest checkpoint."""

    @property
    def words(self) -> str:
        size = f" of {wording.size(self.bytes)}" if self.bytes else ""
        return f"in run {self.run} a save{size} took {self.costs.save_seconds or 0.0:.1f} s"


MOST_NAMES = 6
"""The most partitions named in one finding."""
MOST_KINDS = 3
"""The most differing texts shown for findings that mean the same."""


def grouped(found: list[Finding]) -> list[Finding]:
    """The findings, with those about partitions that mean the same merged into the first of them."""
    alike: dict[tuple[str, ...], list[Finding]] = {}
    for one in found:
        alone = () if one.topic.startswith(PARTITION) else (one.topic, one.found)
        alike.setdefault((one.level, one.means, one.fix, *alone), []).append(one)
    return [_together(group) for group in alike.values()]


def _together(group: list[Finding]) -> Finding:
    if len(group) == 1:
        return group[0]
    by_text: dict[str, list[str]] = {}
    for one in group:
        by_text.setdefault(one.found, []).append(one.topic.removeprefix(PARTITION))
    topic = f"{len(group)} partitions"
    if len(by_text) == 1:
        return msgspec.structs.replace(group[0], topic=f"{topic} ({named(next(iter(by_text.values())))})")
    kinds = [f"{text} ({named(names)})" for text, names in list(by_text.items())[:MOST_KINDS]]
    more = [f"{len(by_text) - MOST_KINDS} more: --verbose"] if len(by_text) > MOST_KINDS else []
    return msgspec.structs.replace(group[0], topic=topic, found="; ".join([*kinds, *more]))


def named(names: list[str]) -> str:
    """The names in a list; only the first of many, with a count of the rest."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} more"


def all_findings(
    facts: Facts, measured: Measured | None, partitions: list[str] | None = None
) -> list[Finding]:
    """All findings that need no job. `measured`: the cost of saves, if a run has measured it; `partitions`:
    only these."""
    if partitions is not None:
        chosen = [one for one in facts.partitions if one.name in partitions]
        facts = msgspec.structs.replace(facts, partitions=chosen)
    found = [version(facts), preemption(facts), signal(facts), requeue(facts), kill_wait(facts)]
    found += [finding for one in facts.partitions for finding in partition(facts, one, measured)]
    found += [accounting(facts), accounts(facts), gpus(facts), *cpus(facts), memory(facts), job_age(facts)]
    return [one for one in found if one is not None]


def version(facts: Facts) -> Finding:
    number = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit())
    if number < (20, 11):
        return Finding(
            "Slurm", "warning", f"version {facts.version or 'unknown'}",
            "older than 20.11, the oldest version that Baton is written for",
            "submit with --submit-probe first; ask for an update",
        )  # fmt: skip
    return Finding("Slurm", "good", f"version {facts.version}", "everything used here is in it")


def preemption(facts: Facts) -> Finding:
    kind = facts.config.get("PreemptType", "")
    if not facts.preempts:
        return Finding("preemption", "good", "none", "running jobs are never taken off their nodes by others")
    taken = [one.name for one in facts.partitions if one.preemptible]
    what = f"by {kind.removeprefix('preempt/')}, mode {facts.config.get('PreemptMode', '')}"
    if kind == "preempt/qos" and facts.qos_preempt:
        what += f", by the QOS {', '.join(facts.qos_preempt)}"
    if not taken:
        return Finding("preemption", "good", what, "no partition is preemptible")
    return Finding(
        "preemption", "note", what, f"jobs in {named(taken)} may be interrupted",
        "nothing to do: a training saves, leaves and goes on by itself; what each partition gives is below",
    )  # fmt: skip


def signal(facts: Facts) -> Finding | None:
    if not facts.preempts:
        return None
    if facts.user_signal:
        return Finding(
            "signal at preemption", "good", "a preempted job gets its own signal (USR2)",
            "the training saves at the step boundary and leaves at once",
        )  # fmt: skip
    return Finding(
        "signal at preemption", "note", "a preempted job gets only TERM",
        "the training takes TERM for the same, saves and leaves; programs that only know USR2 would not",
        "nothing to do; the administrator may set PreemptParameters=send_user_signal "
        "(before 23.02: SlurmctldParameters=preempt_send_user_signal)",
    )  # fmt: skip


def requeue(facts: Facts) -> Finding:
    if facts.number("JobRequeue", 1):
        return Finding(
            "requeue", "good", "JobRequeue=1", "an interrupted job goes back into the queue under its id"
        )
    return Finding(
        "requeue", "warning", "JobRequeue=0",
        "jobs are not requeued unless they ask for it, which ours do; a site may refuse even that, and "
        "then a successor job is submitted, under a new id",
        "nothing to do; --submit-probe shows whether --requeue is honoured",
    )  # fmt: skip


def kill_wait(facts: Facts) -> Finding:
    wait = facts.number("KillWait", 30)
    if wait < 10:
        return Finding(
            "KillWait", "note", f"{wait} s from TERM to KILL",
            "without a grace time that is all the time a training has to save; the step in flight and what "
            "was not saved are done again",
            "use a partition with a GraceTime of a minute or more, where there is one",
        )  # fmt: skip
    return Finding(
        "KillWait", "good", f"{wait} s from TERM to KILL", "time to save even without a grace time"
    )


def partition(facts: Facts, one: Partition, measured: Measured | None) -> list[Finding]:
    topic = f"{PARTITION}{one.name}"
    found = []
    if not one.up:
        return [
            Finding(
                topic, "bad", "it is not up", "jobs stay in its queue", "choose another: --partition NAME"
            )
        ]
    if one.refused:
        found.append(
            Finding(
                topic,
                "bad",
                f"Slurm refuses a small job{_with_gpu(one)}: {one.refused}",
                "no run can be submitted there",
                "choose another; or --account NAME, --qos NAME, if the site wants them; or ask for access",
            )
        )
    elif one.start is not None:
        when = "at once" if one.start < 60 else f"in {wording.span(one.start)}"
        what = f"a small job{_with_gpu(one)} would start {when}"
        if one.start < 3600:
            found.append(Finding(topic, "good", what, "Slurm's own estimate, now"))
        else:
            found.append(
                Finding(topic, "note", what, "Slurm's own estimate, now: a run waits at least that long",
                        "another partition, a shorter --time, or fewer GPUs start earlier")
            )  # fmt: skip
    if one.preemptible:
        found.append(_taken(facts, one, measured, topic))
    if one.max_time is not None and one.max_time < 24 * 3600:
        found.append(
            Finding(
                topic,
                "note",
                f"time limit {wording.span(one.max_time)}",
                "a longer training saves before the limit and goes on in the next start; a limit costs no "
                "step, and counts as no failure",
                f"--signal-delay must leave time to save: at least {time_to_save(measured):.0f} s",
            )
        )
    if one.default_time is not None and one.default_time < 3600:
        found.append(
            Finding(
                topic,
                "note",
                f"without --time a job gets {wording.span(one.default_time)}",
                "the training would be restarted that often",
                "set `time` in the profile or give --time",
            )
        )
    return found


def _taken(facts: Facts, one: Partition, measured: Measured | None, topic: str) -> Finding:
    """What a preemption in this partition means: its mode, and whether its grace time suffices for a save."""
    if one.preempt_mode.startswith("SUSPEND") or "GANG" in one.preempt_mode:
        return Finding(
            topic, "warning", f"preempted jobs are suspended ({one.preempt_mode})",
            "they stand still with their GPUs' memory in use and go on later, which is no hang; connections "
            "between nodes may time out meanwhile, and the training is then started again",
            "nothing to do; a partition that requeues gives the nodes back instead",
        )  # fmt: skip
    if one.preempt_mode == "CANCEL":
        return Finding(
            topic, "warning", f"preempted jobs are cancelled, after {one.grace} s",
            "Slurm does not requeue them; the training submits a successor job while it still lives, and the "
            "evaluation follows it. Without the time for that the run stands still",
            f"a partition that requeues is better{'' if one.grace else '; here the grace time is 0'}; "
            "python launch/train.py --resume RUN goes on with a run that was left",
        )  # fmt: skip
    need = DEFAULT_SAVE
    if measured is not None:
        need = (measured.costs.save_seconds or 0.0) + (measured.costs.step or 0.0)
    have = one.grace + facts.number("KillWait", 30)
    how = measured.words if measured else f"no run has measured a save yet; taken for {DEFAULT_SAVE:.0f} s"
    if have < need:
        return Finding(
            topic, "bad" if measured is not None else "warning",
            f"{have} s from the warning to the kill (GraceTime {one.grace} + KillWait {have - one.grace})",
            f"{how}: too little, so what was done since the last periodic save is lost at each preemption",
            "save more often (the interval adapts by itself), use a smaller model or faster storage, or a "
            "partition with a longer GraceTime",
        )  # fmt: skip
    return Finding(
        topic, "good",
        f"preempted jobs are requeued, {have} s from the warning to the kill",
        f"{how}: enough, so no finished step is lost",
    )  # fmt: skip


def _with_gpu(one: Partition) -> str:
    return " with a GPU" if one.gpus else ""


def time_to_save(measured: Measured | None) -> float:
    return 60.0 + 2 * ((measured.costs.save_seconds if measured else None) or DEFAULT_SAVE)


def accounting(facts: Facts) -> Finding:
    if facts.accounting:
        return Finding(
            "accounting",
            "good",
            "sacct answers",
            "status says why a start ended, even if it was killed outright",
        )
    return Finding(
        "accounting", "note", f"sacct does not answer: {facts.accounting_error}",
        "everything works; of a job that was killed outright, status says unknown or failed, never success",
        "nothing to do; the administrator may set up slurmdbd",
    )  # fmt: skip


def accounts(facts: Facts) -> Finding | None:
    if len(facts.accounts) > 1:
        return Finding(
            "account", "note", f"you may charge {', '.join(facts.accounts)}",
            "Slurm takes the default one unless another is set", "set `account` in the profile",
        )  # fmt: skip
    return None


def gpus(facts: Facts) -> Finding:
    with_gpus = [one for one in facts.partitions if one.gpus]
    if not with_gpus:
        return Finding(
            "GPUs", "warning", "no node has GPUs that Slurm knows of",
            "a training runs on the CPU, or on GPUs that are not asked for",
            "gres: none in the profile (which --write-profile sets)",
        )  # fmt: skip
    style = gres_style(facts)
    alike: dict[str, list[str]] = {}
    for one in with_gpus:
        alike.setdefault(f"{one.gpus} a node {'/'.join(one.gpu_types)}".rstrip(), []).append(one.name)
    has = "; ".join(f"{named(names)}: {what}" for what, names in alike.items())
    return Finding("GPUs", "good", has, f"asked for by --{style}{'=gpu:N' if style == 'gres' else '=N'}")


def cpus(facts: Facts) -> list[Finding]:
    """Partitions whose nodes have fewer CPUs than ranks on all of their GPUs would request."""
    wanted = Settings().cpus_per_gpu
    alike: dict[tuple[str, int], list[str]] = {}
    for one in facts.partitions:
        share = one.cpus // max(1, one.gpus)
        if one.cpus and share < wanted:
            has = f"{one.cpus} CPUs a node" + (f" for {one.gpus} GPUs" if one.gpus else "")
            alike.setdefault((has, share), []).append(one.name)
    return [
        Finding("CPUs", "warning", f"{named(names)}: {has}",
                f"a rank asks for {wanted} by default: Slurm would refuse the job",
                f"cpus_per_gpu: {max(1, share)} in the profile (which --write-profile sets)")
        for (has, share), names in alike.items()
    ]  # fmt: skip


def memory(facts: Facts) -> Finding | None:
    """How much memory a job gets that does not request any."""
    given = facts.number("DefMemPerCPU", 0)
    if not given or given >= 4000:
        return None
    return Finding(
        "memory",
        "note",
        f"a job that asks for none gets {given} MB a CPU",
        "a rank of the recipe needs about 8 GB; where memory is enforced it would be killed",
        "set `memory` in the profile or give --memory 32G",
    )


def job_age(facts: Facts) -> Finding | None:
    age = facts.number("MinJobAge", 300)
    if age >= 60 or facts.accounting:
        return None
    return Finding(
        "MinJobAge", "note", f"ended jobs are forgotten after {age} s, and there is no accounting",
        "Slurm cannot tell how a job ended after that; the run's own events still do",
        "nothing to do; the administrator may set MinJobAge to 300",
    )  # fmt: skip
