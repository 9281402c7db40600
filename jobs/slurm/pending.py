"""Why Slurm keeps a job pending, in words, and which jobs it will never start as they are.

The reasons are those of Slurm 20.11 to 25.11 (src/common/job_state_reason.c, before 24.05 job_reason_str in
src/common/slurm_protocol_defs.c; https://slurm.schedmd.com/job_reason_codes.html).
"""

from __future__ import annotations

import re

IN_LINE = ("", "None", "Priority", "Resources", "BeginTime", "Dependency", "Prolog", "Cleaning", "SchedDefer")
"""Reasons of a job that only waits for its turn, or that is described better elsewhere."""

# The job requests more than a limit allows, or what does not exist: (reason, what is wrong).
NEVER = (
    (r"PartitionTimeLimit", "its time limit is longer than the partition allows; a shorter --time, or another"
     " partition"),
    (r"PartitionNodeLimit", "it asks for more, or fewer, nodes than the partition allows"),
    (r"PartitionConfig", "it asks for what the partition does not give"),
    (r"BadConstraints", "no node has what it asks for (--constraint, GPUs, memory)"),
    (r"InvalidAccount|AccountNotAllowed", "its account may not be charged there; another --account"),
    (r"InvalidQOS|QOSNotAllowed", "its QOS is not allowed there; another --qos"),
    (r"ReservationDeleted", "its reservation is gone; another --reservation, or none"),
    (r"(QOS|Assoc)MaxWallDurationPerJobLimit|(Association|QOS)TimeLimit",
     "its time limit is longer than the account or the QOS allows; a shorter --time"),
    (r"(QOS|Assoc)Max\w*Per(Job|Node)(Limit)?", "it asks for more than the account or the QOS allows a job"),
    (r"QOSMin\w*", "it asks for less than its QOS wants at least"),
    (r"DependencyNeverSatisfied", "the job that it waits for did not succeed"),
    (r"DeadLine", "it cannot end before its deadline"),
    (r"JobLaunchFailure|SystemFailure|BurstBufferOperation", "Slurm could not launch it"),
)  # fmt: skip
# It will start once something other than the jobs before it has changed.
WAITS = (
    (r"PartitionDown|PartitionInactive", "its partition is closed for now"),
    (r"ReqNodeNotAvail.*|NodeDown|FrontEndDown|Nodes required for job .*",
     "nodes that it needs are down, or reserved"),
    (r"Reservation\w*", "its reservation has not begun, or is full"),
    (r"Licenses", "licenses that it needs are in use"),
    (r"JobArrayTaskLimit", "as many elements of its sweep run as may at a time"),
    (r"(QOS|Assoc)Grp\w*Minutes\w*|QOSUsageThreshold", "its account or QOS has used up its share of time"),
    (r"(QOS|Assoc)Grp\w*", "the jobs of its account or QOS use all that they may together"),
    (r"(QOS|Assoc)Max\w*|Max\w*PerAccount|(Association|QOS)(Job|Resource)Limit|AccountingPolicy",
     "your other jobs use all that you may at a time"),
    (r"BurstBuffer\w*", "its burst buffer is being filled"),
)  # fmt: skip


def never(reason: str) -> str:
    """Why a job with this reason will not start unless it or the cluster is changed; "" if it may."""
    return _said(NEVER, reason)


def waits(reason: str) -> str:
    """What a job with this reason waits for; "" if for the jobs before it, or if it will never start."""
    if reason in IN_LINE or never(reason):
        return ""
    return _said(WAITS, reason) or "Slurm lets it wait"


def is_held(reason: str) -> bool:
    """Whether the job has to be released: held by its user, an administrator, or after too many requeues."""
    return "held" in reason.lower() or reason.startswith("JobHold")


def _said(table: tuple[tuple[str, str], ...], reason: str) -> str:
    return next((words for pattern, words in table if re.fullmatch(pattern, reason)), "")
