"""What a cluster's settings mean for a run, each with its mend: pure functions over facts and costs."""

from __future__ import annotations

from typing import Literal

import msgspec

from launch import words
from launch.cluster_facts import Facts, Partition
from launch.efficiency import Costs

Level = Literal["good", "note", "warning", "bad"]

DEFAULT_SAVE = 30.0
"""Seconds a save is taken to need before any run was measured: some GB to a shared file system."""


class Finding(msgspec.Struct, frozen=True):
    topic: str
    level: Level
    found: str
    means: str
    mend: str = ""


def all_findings(facts: Facts, costs: Costs | None) -> list[Finding]:
    """Everything that can be told without submitting anything. `costs`: as runs measured them, if any did."""
    found = [version(facts), preemption(facts), signal(facts), requeue(facts), kill_wait(facts)]
    found += [finding for one in facts.partitions for finding in partition(facts, one, costs)]
    found += [accounting(facts), accounts(facts), gpus(facts), memory(facts), job_age(facts)]
    return [one for one in found if one is not None]


def version(facts: Facts) -> Finding:
    number = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit())
    if number < (20, 11):
        return Finding(
            "Slurm", "warning", f"version {facts.version or 'unknown'}",
            "older than 20.11, with which nothing here was written",
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
    where = f"jobs in {', '.join(taken)} may be interrupted" if taken else "no partition is preemptible"
    return Finding("preemption", "note" if taken else "good", what, where)


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
        "nothing to do; --submit-probe tells whether --requeue is honoured",
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


def partition(facts: Facts, one: Partition, costs: Costs | None) -> list[Finding]:
    topic = f"partition {one.name}"
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
                f"Slurm refuses a small job: {one.refused}",
                "no run can be submitted there",
                "choose another, or ask for access (account, QOS)",
            )
        )
    elif one.start is not None:
        when = "at once" if one.start < 60 else f"in {words.span(one.start)}"
        level: Level = "good" if one.start < 3600 else "note"
        found.append(Finding(topic, level, f"a small job would start {when}", "Slurm's own estimate, now"))
    if one.preemptible:
        found.append(_taken(facts, one, costs, topic))
    if one.max_time is not None and one.max_time < 24 * 3600:
        found.append(
            Finding(
                topic,
                "note",
                f"time limit {words.span(one.max_time)}",
                "a longer training saves before the limit and goes on in the next start; a limit costs no "
                "step, and counts as no failure",
                f"--signal-delay must leave time to save: at least {time_to_save(costs):.0f} s",
            )
        )
    if one.default_time is not None and one.default_time < 3600:
        found.append(
            Finding(
                topic,
                "note",
                f"without --time a job gets {words.span(one.default_time)}",
                "the training would be restarted that often",
                "set `time` in the profile or give --time",
            )
        )
    return found


def _taken(facts: Facts, one: Partition, costs: Costs | None, topic: str) -> Finding:
    """What a preemption in this partition means: its mode, and whether the time suffices to save."""
    if one.preempt_mode.startswith("SUSPEND") or "GANG" in one.preempt_mode:
        return Finding(
            topic, "warning", f"preempted jobs are suspended ({one.preempt_mode})",
            "they stand still with their GPUs' memory in use and go on later; connections of several nodes "
            "may time out meanwhile, and the start is then taken for hanging",
            "a larger hang_minutes in the profile, or a partition that requeues",
        )  # fmt: skip
    if one.preempt_mode == "CANCEL":
        return Finding(
            topic, "warning", f"preempted jobs are cancelled, after {one.grace} s",
            "Slurm does not requeue them; the training submits a successor job while it still lives, and the "
            "evaluation follows it. Without the time for that the run stands still",
            f"a partition that requeues is better{'' if one.grace else '; here the grace time is 0'}; "
            "python launch/train.py --resume RUN goes on with a run that was left",
        )  # fmt: skip
    measured = costs.save_seconds if costs else None
    need = (measured if measured is not None else DEFAULT_SAVE) + (costs.step or 0.0 if costs else 0.0)
    have = one.grace + facts.number("KillWait", 30)
    how = (
        f"as measured, a save takes {measured:.1f} s"
        if measured is not None
        else "no run has measured a save yet"
    )
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


def time_to_save(costs: Costs | None) -> float:
    return 60.0 + 2 * ((costs.save_seconds if costs else None) or DEFAULT_SAVE)


def accounting(facts: Facts) -> Finding:
    if facts.accounting:
        return Finding(
            "accounting", "good", "sacct answers", "status says why a start ended, also without a word of it"
        )
    return Finding(
        "accounting", "note", f"sacct does not answer: {facts.accounting_error}",
        "everything works; of a job that has left the queue without a word, status says unknown or failed, "
        "never success",
    )  # fmt: skip


def accounts(facts: Facts) -> Finding | None:
    if len(facts.accounts) > 1:
        return Finding(
            "account", "note", f"you may charge {', '.join(facts.accounts)}",
            "Slurm takes the default one unless told otherwise", "set `account` in the profile",
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
    told = "; ".join(f"{one.name}: {one.gpus} a node {'/'.join(one.gpu_types)}".rstrip() for one in with_gpus)
    return Finding("GPUs", "good", told, f"asked for by --{style}{'=gpu:N' if style == 'gres' else '=N'}")


def memory(facts: Facts) -> Finding | None:
    """What a job gets that does not say how much memory it needs."""
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


def gres_style(facts: Facts) -> Literal["gpus-per-node", "gres", "none"]:
    """How GPUs are asked for: --gpus-per-node needs select/cons_tres, anything older takes --gres."""
    if not any(one.gpus for one in facts.partitions):
        return "none"
    return "gpus-per-node" if "cons_tres" in facts.config.get("SelectType", "") else "gres"


def job_age(facts: Facts) -> Finding | None:
    age = facts.number("MinJobAge", 300)
    if age >= 60 or facts.accounting:
        return None
    return Finding(
        "MinJobAge", "note", f"ended jobs are forgotten after {age} s, and there is no accounting",
        "Slurm cannot tell how a job ended after that; the run's own events still do",
    )  # fmt: skip
