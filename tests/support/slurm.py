"""What the tests on the real cluster do to it: submit, wait for a condition, preempt, break a node."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jobs.run import events
from tests.support.cluster import daemons, processes
from tests.support.cluster.config import Cluster

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 300.0) -> T:
    """Polls until `condition` is true and returns its value. Fails the test, saying `what`, after `seconds`.

    The deadline is there to end a test that will never pass; no test depends on how fast things are.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return value


class Slurm:
    """A running test cluster, as the tests use it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.layout = cluster.layout
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment["SLURM_CONF"] = str(self.layout.slurm_conf)

    def run(self, *argv: str, check: bool = True, **options: Any) -> str:
        """Runs a command against the cluster and returns what it wrote."""
        environment = self.environment | options.pop("env", {})
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, **options)
        assert not check or done.returncode == 0, (
            f"{argv} ended with {done.returncode}: {done.stderr}{done.stdout}"
        )
        return done.stdout

    def submit(self, script: str, *options: str, cwd: Path) -> str:
        """Submits a batch script given as text; its output goes to `cwd`. Returns the job id."""
        return self.run("sbatch", "--parsable", *options, input=script, cwd=cwd).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job`, field by field."""
        text = self.run("scontrol", "-o", "show", "job", job_id)
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def wait_state(self, job_id: str, *states: str, seconds: float = 90.0) -> str:
        """Waits until the job is in one of `states`; fails at once if it ended in another way."""

        def there() -> str | None:
            state = self.state(job_id)
            return state if state in states else None

        return wait_for(there, f"job {job_id} is {' or '.join(states)}", seconds)

    def wait_ended(self, job_id: str, seconds: float = 180.0) -> str:
        """Waits until a job will never run again; returns its state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        return self.wait_state(job_id, *ended, seconds=seconds)

    def nodes_of(self, job_id: str) -> list[str]:
        return self.run("scontrol", "show", "hostnames", self.job(job_id)["NodeList"]).split()

    def preempt(self, job_id: str) -> str:
        """Takes the job's nodes away for a job of higher priority, which ends as soon as it runs."""
        nodes = ",".join(self.nodes_of(job_id))
        options = ["-p", "high", "--exclusive", "--nodelist", nodes, "--time=5", "--output=/dev/null"]
        return self.run("sbatch", "--parsable", *options, "--wrap", "true").strip()

    def kill_node(self, node: str) -> None:
        """What a power cut does: everything on the node is gone at once."""
        daemon = daemons.running(self.layout, f"slurmd-{node}")
        assert daemon, f"{node} is not up"
        processes.kill([daemon])
        processes.kill(processes.jobs(self.layout, node=node))

    def kill_processes_of(self, job_id: str) -> None:
        """What a node that runs out of memory does: the job's own processes are gone, nobody was asked."""
        mine = processes.jobs(self.layout, job_id=job_id)
        processes.kill([p for p in mine if "slurmstepd" not in processes.command(p)])

    def revive_node(self, node: str) -> None:
        daemons.start(self.cluster, f"slurmd-{node}")

    def wait_nodes(self) -> None:
        """Until every node is there again: after a controller's start they must report to it first."""

        def there() -> bool:
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T").split()
            return bool(states) and all(state in ("idle", "mixed", "allocated") for state in states)

        wait_for(there, "every node has reported")

    def processes_of(self, job_id: str, node: str | None = None) -> list[str]:
        """Command lines of every process of a job, on every node."""
        return [processes.command(p) for p in processes.jobs(self.layout, node, job_id)]

    def wait_no_processes(self, job_id: str, seconds: float = 30.0) -> None:
        wait_for(
            lambda: not self.processes_of(job_id),
            f"job {job_id} leaves no process; left: {self.processes_of(job_id)}",
            seconds,
        )


def wait_event(run: Path, name: str, seconds: float = 120.0, **fields: object) -> dict[str, Any]:
    """Waits for the first event `name` of a run with these fields."""

    def found() -> dict[str, Any] | None:
        for record in events.read(run / "events.jsonl"):
            if record["event"] == name and all(record.get(k) == v for k, v in fields.items()):
                return record
        return None

    return wait_for(found, f"event {name} {fields} in {run}/events.jsonl", seconds)
