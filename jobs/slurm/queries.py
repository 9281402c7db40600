"""What Slurm says about our jobs: one `squeue`, and one `sacct` for those that have left the queue.

That is all that is called, for any number of runs. Both commands may be missing: a job that Slurm says
nothing about is UNKNOWN, which never counts as success.
"""

from __future__ import annotations

import re
import shutil
from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime

import msgspec

from jobs.slurm import commands, pending
from jobs.slurm import login as slurm

UNKNOWN = "UNKNOWN"

# Free text (the name, the script's path) comes last, after a mark of its own: it may contain the separator.
_MARK = "|>#<|"
_SQUEUE = f"%A|%F|%K|%T|%P|%Q|%u|%S|%V|%N|%E|%r{_MARK}%o{_MARK}%j"
# Fields that every version has: given an unknown field, sacct prints nothing at all.
_SACCT = ("JobID", "State", "ExitCode", "Start", "End", "Submit", "NodeList", "Reason", "User", "JobName")

ALIVE = {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "STOPPED"}
ALIVE |= {"REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job or array element, according to Slurm. Times are in seconds since the epoch."""

    id: str
    """As in the events: 12, or 12_3 for an array element."""
    state: str = UNKNOWN
    reason: str = ""
    user: str = ""
    start: float | None = None
    """When it started; for a pending job, when Slurm expects it to start, if it does."""
    end: float | None = None
    submit: float | None = None
    nodes: str = ""
    dependency: str = ""
    exit_code: str = ""
    name: str = ""
    command: str = ""
    """The path of its batch script, if it has one and squeue shows it."""
    ahead: int = 0
    """Pending jobs of any user in its partition that come before it."""

    @property
    def alive(self) -> bool:
        """Whether it is running, or will run unless something prevents it."""
        return self.state in ALIVE

    @property
    def pending(self) -> bool:
        return self.state in {"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SPECIAL_EXIT"}


class Answer(msgspec.Struct, kw_only=True):
    """What Slurm said about the jobs asked for, and what it could not say."""

    jobs: dict[str, Job] = {}
    problems: list[str] = []

    def job(self, id: str) -> Job:
        """The job, or one in state UNKNOWN."""
        return self.jobs.get(id) or Job(id=id)


def ask(ids: Iterable[str], patience: float = 5.0) -> Answer:
    """The states of the Slurm jobs `ids`, in at most two calls; no call if `ids` is empty.

    A failed call is listed in `problems`, and what it would have told stays UNKNOWN.
    """
    wanted = {id for id in ids if is_slurm(id)}
    answer = Answer()
    if not wanted:
        return answer
    if shutil.which("squeue") is None:
        answer.problems.append("squeue is not on PATH here: the state of Slurm jobs is unknown")
        return answer
    try:
        text = slurm.call(
            "squeue", "--noheader", "--array", "--states=all", "--format", _SQUEUE, patience=patience
        )
        answer.jobs = {id: job for id, job in parse_squeue(text).items() if id in wanted}
    except slurm.SlurmError as error:
        answer.problems.append(f"squeue: {error}")
    gone = sorted(wanted - answer.jobs.keys())
    if not gone or shutil.which("sacct") is None:
        if gone:
            answer.problems.append("sacct is not on PATH here: how jobs that left the queue ended is unknown")
        return answer
    try:
        for job in parse_sacct(_sacct(gone, patience=patience)):
            answer.jobs[job.id] = job
    except slurm.SlurmError as error:
        answer.problems.append(f"sacct: {error}")
    return answer


def incarnations(ids: Iterable[str]) -> dict[str, list[Job]]:
    """Every start of the jobs that accounting has recorded, in order; {} if it tells nothing.

    A requeued job keeps its id; only `sacct --duplicates` shows that it previously ended as PREEMPTED,
    NODE_FAIL or TIMEOUT.
    """
    wanted = sorted({id for id in ids if is_slurm(id)})
    if not wanted or shutil.which("sacct") is None:
        return {}
    try:
        text = _sacct(wanted, "--duplicates", patience=5.0)
    except slurm.SlurmError:
        return {}
    found: dict[str, list[Job]] = {}
    for job in parse_sacct(text):
        found.setdefault(job.id, []).append(job)
    return found


def is_slurm(id: str) -> bool:
    """Whether a job id from an event is one of Slurm's (local ones begin with `local-`)."""
    return bool(re.fullmatch(r"[0-9]{1,10}(_[0-9]{1,10})?", id))


def _sacct(ids: list[str], *options: str, patience: float) -> str:
    # It is the only Slurm command that ignores SLURM_CLUSTERS.
    where = ("--clusters", chosen) if (chosen := commands.chosen_cluster()) else ()
    # Without a start time, sacct looks back only to midnight, even for given ids (Slurm < 23).
    return slurm.call(
        *("sacct", "--noheader", "--parsable2", "--allocations", "--starttime", "2000-01-01"),
        *(*where, *options, "--format", ",".join(_SACCT), "--jobs", ",".join(ids)),
        patience=patience,
    )


def parse_squeue(text: str) -> dict[str, Job]:
    """The jobs in squeue's lines, by id, with `ahead` counted over the jobs of all users."""
    jobs: dict[str, Job] = {}
    queues: dict[str, list[tuple[int, int]]] = {}
    rows: list[tuple[str, int, list[str]]] = []
    for line in text.splitlines():
        line, _, free = line.partition(_MARK)
        fields = line.split("|", 11)
        if len(fields) < 12 or not fields[0].isdigit():
            continue
        number, array, element, state, partition, rank = fields[:6]
        id = f"{array}_{element}" if element.isdigit() else array
        rows.append((id, int(number), [*fields, free]))
        # A job that waits for another, is held, or can never start does not block others.
        reason = fields[11]
        aside = reason.startswith("Dependency") or pending.is_held(reason) or bool(pending.never(reason))
        if state == "PENDING" and not aside:
            for one in partition.split(","):
                queues.setdefault(one, []).append((-_number(rank), int(number)))
    for queue in queues.values():
        queue.sort()
    for id, order, fields in rows:
        state, partition, rank, user, start, submit, nodes, dependency, reason, free = fields[3:]
        command, _, name = free.partition(_MARK)
        place = (-_number(rank), order)
        ahead = 0
        if state == "PENDING":
            ahead = min(bisect_left(queues.get(one, []), place) for one in partition.split(","))
        jobs[id] = Job(
            id=id,
            state=state,
            reason="" if reason == "None" else reason,
            user=user,
            start=_time(start),
            submit=_time(submit),
            nodes=nodes,
            dependency="" if dependency == "(null)" else dependency,
            name=name,
            command="" if command == "(null)" else command,
            ahead=ahead,
        )
    return jobs


def parse_sacct(text: str) -> list[Job]:
    """The jobs in sacct's lines, in order. `CANCELLED by 1000` counts as the state CANCELLED."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", len(_SACCT) - 1)
        if len(fields) < len(_SACCT) - 2:
            continue
        id, state, code, start, end, submit, nodes, reason, user, name = [*fields, "", ""][: len(_SACCT)]
        jobs.append(
            Job(
                id=id,
                state=state.split()[0] if state else UNKNOWN,
                # Accounting keeps the reason why a job last waited, which is not why it ended.
                reason="" if reason == "None" or _time(end) else reason,
                user=user,
                name=name,
                exit_code=code,
                start=_time(start),
                end=_time(end),
                submit=_time(submit),
                nodes="" if nodes == "None assigned" else nodes,
            )
        )
    return jobs


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _time(text: str) -> float | None:
    """A time of Slurm's, in local time, as seconds since the epoch; None for N/A, Unknown and None."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
