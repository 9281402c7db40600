"""doctor's probe: a small job that tries on the nodes what a run will need there."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from launch import slurm, slurm_queries, words
from launch.cluster_facts import Facts, Partition
from launch.findings import Finding, gres_style
from launch.runs import CHECKOUT, runs_root

PAUSE = 0.5


def run(facts: Facts, where: Partition, minutes: float) -> list[Finding]:
    """Submits the probe to a partition, waits for its answers, and says what they mean.

    The job is cancelled if it has not ended within `minutes`. Raises SlurmError if Slurm refuses it.
    """
    folder = runs_root().parent / "doctor" / f"probe-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    token = secrets.token_hex(8)
    (folder / "token").write_text(token)
    nodes = min(2, where.nodes)
    tasks = 2
    script = folder / "probe.sbatch"
    script.write_text(text(facts, where, folder, nodes, tasks))
    began = time.monotonic()
    job = slurm.call("sbatch", "--parsable", str(script), changes=True).strip().split(";")[0]
    found = [_requeue(job)]
    deadline = began + 60 * minutes
    started: float | None = None
    while True:
        seen = slurm_queries.ask([job]).job(job)
        if seen.state == "RUNNING" and started is None:
            started = time.monotonic() - began
        if not seen.alive and seen.state != slurm_queries.UNKNOWN:
            break
        if len(list(folder.glob("answer-*.json"))) == tasks:
            break
        if time.monotonic() > deadline:
            slurm.call("scancel", job)
            why = f" ({seen.reason})" if seen.reason else ""
            found.append(
                Finding(
                    "probe",
                    "warning",
                    f"job {job} has not ended in {minutes:g} min: {seen.state}{why}",
                    "nothing is known about the nodes",
                    "again with --probe-minutes 60, or another --partition",
                )
            )
            return found
        time.sleep(PAUSE)
    answers = [json.loads(path.read_text()) for path in sorted(folder.glob("answer-*.json"))]
    if started is not None:
        found.append(
            Finding("probe", "good", f"job {job} ran after {words.span(started)}", "that is the queue, now")
        )
    return found + meaning(answers, token, tasks, folder, _last_words(folder))


def text(facts: Facts, where: Partition, folder: Path, nodes: int, tasks: int) -> str:
    """The probe's batch script."""
    options = {
        "job-name": "baton-doctor", "output": f"{str(folder).replace('%', '%%')}/log.out",
        "partition": where.name,
        "nodes": str(nodes), "ntasks-per-node": str(tasks // nodes), "cpus-per-task": "1", "time": "10",
    }  # fmt: skip
    style = gres_style(facts)
    if where.gpus and style != "none":
        options[style] = "gpu:1" if style == "gres" else str(min(where.gpus, tasks // nodes))
    header = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    return "\n".join(
        [
            "#!/bin/bash", *header, "#SBATCH --requeue", f"cd {shlex.quote(str(CHECKOUT))} || exit 2",
            f"srun {shlex.quote(sys.executable)} -m jobs.probe {shlex.quote(str(folder))}", "",
        ]
    )  # fmt: skip


def meaning(answers: list[dict[str, Any]], token: str, tasks: int, folder: Path, log: str) -> list[Finding]:
    """What the answers of the probe's tasks mean for a run."""
    if not answers:
        return [
            Finding("nodes", "bad", f"no answer from the nodes: {log or 'the log is empty'}",
                    "either the nodes do not see this file system, or the interpreter does not run there",
                    f"put checkout, environment and runs on a shared file system; log: {folder}/log.out")
        ]  # fmt: skip
    found = []
    hosts = ", ".join(sorted({one["host"] for one in answers}))
    if all(one["token"] == token for one in answers) and len(answers) == tasks:
        found.append(
            Finding("shared files", "good", f"{hosts} and this machine see the same files", "runs live there")
        )
    else:
        found.append(
            Finding("shared files", "bad", f"{len(answers)} of {tasks} tasks answered, from {hosts}",
                    "a node that does not see the run directory cannot train",
                    "ask for the shared file system")
        )  # fmt: skip
    for key, topic, mend in (
        ("environment", "environment", "python: in the profile, or a module load line in its setup:"),
        ("meeting", "rendezvous", "nodes must reach each other by TCP: ask whether ports are blocked"),
        (
            "gloo",
            "gloo and NCCL",
            "GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME below env: in the profile name the network",
        ),
    ):
        parts = [one[key] for one in answers if key in one]
        wrong = [(one["host"], one[key]["text"]) for one in answers if key in one and not one[key]["ok"]]
        if wrong:
            host, error = wrong[0]
            found.append(
                Finding(topic, "bad", f"{host}: {error}", "a training would end with this error", mend)
            )
        elif parts:
            found.append(
                Finding(
                    topic, "good", f"{parts[0]['text']} ({parts[0]['seconds']:.1f} s)", "works on the nodes"
                )
            )
    return found


def _requeue(job: str) -> Finding:
    shown = slurm.call("scontrol", "--oneliner", "show", "job", job)
    if "Requeue=1" in shown:
        return Finding("probe", "good", "--requeue is honoured", "an interrupted training keeps its job id")
    return Finding(
        "probe", "warning", "--requeue is refused (Requeue=0)",
        "an interrupted training goes on in a successor job, under a new id; the evaluation is moved to it",
    )  # fmt: skip


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / "log.out").read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""
