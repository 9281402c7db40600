"""Which task of which job this process is, from the environment set by srun or the local chain."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import hostlist

from jobs.run.errors import UserError


@dataclass(frozen=True)
class Task:
    """One rank's place. The world size is that of this step, not the one requested."""

    job: str
    """Slurm's job id, 12_3 for an array element; `local-PID` for a local chain; `direct-PID` by hand."""
    restart: int
    """How often this job id has been requeued so far (0 = never)."""
    step: str
    """Distinguishes the job steps of one allocation (a training may be started again in it)."""
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    hosts: tuple[str, ...]
    """The job step's nodes; rank 0 runs on the first (srun's default placement)."""
    addresses: tuple[str, ...]
    """Where rank 0's supervisor may be reached, most likely first."""

    @property
    def identity(self) -> str:
        """A string that all ranks of a job step share, and no other step has."""
        return f"{self.job}.{self.restart}.{self.step}"


def read(environ: Mapping[str, str] | None = None) -> Task:
    """This process's place, from SUBMITIT_LOCAL_* (which win, for a local run inside an allocation), else
    SLURM_*, else a world of one.

    Raises UserError if Slurm's variables are set but incomplete, because srun did not start the process.
    """
    env = os.environ if environ is None else environ
    if "SUBMITIT_LOCAL_NTASKS" in env:
        return _local(env)
    if "SLURM_JOB_ID" in env:
        if "SLURM_PROCID" not in env:
            raise UserError(f"job {env['SLURM_JOB_ID']}: start `python -m jobs.train RUN` through srun")
        return _slurm(env)
    host = socket.gethostname()
    return Task(f"direct-{os.getpid()}", 0, "0", 0, 1, 0, 1, host, (host,), ("127.0.0.1",))


def job_id(environ: Mapping[str, str] | None = None) -> str | None:
    """The job that this process belongs to, as named in events; None outside of a job."""
    env = os.environ if environ is None else environ
    if "BATON_JOB" in env:
        return env["BATON_JOB"]
    if "SUBMITIT_LOCAL_JOB_ID" in env:
        return f"local-{env['SUBMITIT_LOCAL_JOB_ID']}"
    return slurm_id(env)


def slurm_id(environ: Mapping[str, str] | None = None) -> str | None:
    """This process's job as Slurm's commands take it: 12, 12_3 for an array element, None outside of Slurm.

    Not an element's own number (SLURM_JOB_ID): the last element's is also the array's, so a command with that
    number would apply to all elements.
    """
    env = os.environ if environ is None else environ
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def tasks_on_node(per_node: str, node: int) -> int:
    """The number of tasks on node `node`; `per_node` in Slurm's notation ("2(x3),1"). Raises ValueError."""
    counts: list[int] = []
    for part in per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ValueError(f"not a number of tasks per node: {per_node!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]


def _local(env: Mapping[str, str]) -> Task:
    host = socket.gethostname()
    world = int(env["SUBMITIT_LOCAL_NTASKS"])
    return Task(
        job=job_id(env) or "local",
        restart=int(env.get("BATON_RESTART", "0")),
        step="0",
        rank=int(env["SUBMITIT_LOCAL_GLOBALID"]),
        world_size=world,
        local_rank=int(env["SUBMITIT_LOCAL_LOCALID"]),
        local_world_size=world,
        host=host,
        hosts=(host,),
        addresses=("127.0.0.1",),
    )


def _slurm(env: Mapping[str, str]) -> Task:
    world = int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"])
    host = env.get("SLURMD_NODENAME") or socket.gethostname()
    names = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or host
    hosts = tuple(hostlist.expand_hostlist(names))
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE")
    node = int(env.get("SLURM_NODEID", "0"))
    if len(hosts) == 1:
        addresses: tuple[str, ...] = ("127.0.0.1",)
    else:
        # The batch shell, and so srun, runs on the first node; salloc's srun may not, hence the names, too.
        launch = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
        addresses = tuple(dict.fromkeys(a for a in (hosts[0], launch, *hosts[1:]) if a))
    return Task(
        job=job_id(env) or env["SLURM_JOB_ID"],
        restart=int(env.get("SLURM_RESTART_COUNT") or 0),
        step=env.get("SLURM_STEP_ID", "0"),
        rank=int(env["SLURM_PROCID"]),
        world_size=world,
        local_rank=int(env.get("SLURM_LOCALID", "0")),
        local_world_size=tasks_on_node(per_node, node) if per_node else world,
        host=host,
        hosts=hosts,
        addresses=addresses,
    )
