"""doctor's probe: a small job that tries on the nodes what a run will need there.

Its batch script is made like that of a run (launch/submit/batch_script.py), from the same profile: set-up
lines, interpreter, environment, container, account. What works for the probe works for a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec

from jobs.run import cuda
from jobs.run.directory import Run
from jobs.slurm import commands
from jobs.slurm import login as slurm
from jobs.slurm import queries as slurm_queries
from launch.observe import wording
from launch.observe.doctor import disks
from launch.observe.doctor.facts import Facts, Partition, gres_style
from launch.observe.doctor.findings import Finding
from launch.submit import batch_script as script
from launch.submit import creation as requests
from launch.submit import profiles, snapshot
from launch.submit.runs import CHECKOUT, runs_root

PAUSE = 0.5
BLOCK = 64 << 20
"""Bytes that a node reads to measure the shared file system."""


def probes_root() -> Path:
    """The folder of the probes' folders."""
    return runs_root().parent / "doctor"


def tried(
    facts: Facts, where: Partition, profile: profiles.Profile, chosen: dict[str, Any], minutes: float
) -> list[Finding]:
    """As `run`, but a probe refused by Slurm is a finding, too."""
    try:
        return run(facts, where, profile, chosen, minutes)
    except slurm.SlurmError as error:
        return [
            Finding("probe", "bad", f"Slurm refuses it: {error}", "a run would be refused, too",
                    "--account, --qos or --partition; `sbatch --test-only` shows whether Slurm takes it")
        ]  # fmt: skip


def run(
    facts: Facts, where: Partition, profile: profiles.Profile, chosen: dict[str, Any], minutes: float
) -> list[Finding]:
    """Submits the probe to a partition, waits for its answers, and returns what they mean.

    `chosen`: settings that take precedence over the profile's. The job is cancelled if it has not ended
    within `minutes`. Raises SlurmError if Slurm refuses it.
    """
    folder = probes_root() / f"probe-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    (folder / "job").mkdir(parents=True)
    snapshot.take(folder / "code", CHECKOUT / "data")
    token = secrets.token_hex(8)
    (folder / "token").write_text(token)
    resolved = settings(facts, where, profile, chosen)
    (folder / "stage").write_text(resolved.settings.stage)
    block = folder / "block"  # new, so that no node has it in its page cache
    try:
        with contextlib.suppress(OSError):  # without room for it, it is shorter
            block.write_bytes(os.urandom(BLOCK))
        return _submitted(folder, token, resolved, minutes)
    finally:
        block.unlink(missing_ok=True)


def _submitted(folder: Path, token: str, resolved: profiles.Resolved, minutes: float) -> list[Finding]:
    tasks = resolved.nodes[0] * resolved.settings.gpus
    requests.write_scripts(Run(folder), script.Batch(resolved=resolved, name="baton-doctor", run=folder))
    file = folder / "job" / "probe.sbatch"
    began = time.monotonic()
    answer = slurm.call("sbatch", "--parsable", str(file), changes=True)
    job = commands.job_number(answer)
    if job is None:
        raise slurm.SlurmError(commands.nameless(answer))
    (folder / "job" / "id").write_text(job)
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
            Finding("probe", "good", f"job {job} ran after {wording.span(started)}", "that is the queue, now")
        )
    wants = 0 if resolved.settings.gres == "none" else 1
    return found + meaning(answers, token, tasks, wants, folder, _last_words(folder))


def settings(
    facts: Facts, where: Partition, profile: profiles.Profile, chosen: dict[str, Any]
) -> profiles.Resolved:
    """The settings of the probe's job: two ranks, on two nodes if there are two, with one GPU each if any.

    On a single node with a single GPU there is one rank: two would share it, which no training does.
    """
    nodes = min(2, max(1, where.nodes))
    style = profile.stages.get("train", {}).get("gres") or profile.top.get("gres")
    if style is None:
        style = gres_style(facts) if where.gpus else "none"
    per_node = 1 if nodes == 2 else 2 if style == "none" else min(2, max(1, where.gpus))
    own = {"nodes": str(nodes), "gpus": per_node, "cpus_per_gpu": 1, "time": "10", "gres": style}
    resolved = profiles.resolve(profile, "train", {"partition": where.name} | own | chosen)
    return msgspec.structs.replace(resolved, stage="probe")


# key of an answer -> (topic, fix)
TRIED = {
    "environment": ("environment", "python: in the profile, or a module load line in its setup:"),
    "compute": ("GPUs on the nodes", "a driver that fits torch's CUDA version; nvidia-smi on the node tells"),
    "meeting": ("rendezvous", "nodes must reach each other by TCP: ask whether ports are blocked"),
    "gloo": ("gloo", "GLOO_SOCKET_IFNAME below env: in the profile names the network"),
    "nccl": ("NCCL", "NCCL_SOCKET_IFNAME below env: in the profile names the network; NCCL_DEBUG=INFO tells"),
}


def meaning(
    answers: list[dict[str, Any]], token: str, tasks: int, wants: int, folder: Path, log: str
) -> list[Finding]:
    """What the answers of the probe's tasks mean for a run. `wants`: GPUs requested per task."""
    if not answers:
        return [
            Finding("nodes", "bad", f"no answer from the nodes: {log or 'the log is empty'}",
                    "either the nodes do not see this file system, or the interpreter does not run there",
                    f"put checkout, environment and runs on a shared file system; logs: {folder}/job")
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
                    f"ask for the shared file system; logs: {folder}/job")
        )  # fmt: skip
    if wants:
        found += _gpus(answers)
    for key, (topic, fix) in TRIED.items():
        parts = [one[key] for one in answers if key in one]
        wrong = [(one["host"], one[key]["text"]) for one in answers if key in one and not one[key]["ok"]]
        if wrong:
            host, error = wrong[0]
            found.append(
                Finding(topic, "bad", f"{host}: {error}", "a training would end with this error", fix)
            )
        elif parts:
            text = f"{parts[0]['text']} ({parts[0]['seconds']:.1f} s)"
            found.append(Finding(topic, "good", text, "works on the nodes"))
    for one in answers:
        if "files" in one:
            found += disks.meaning(one["host"], one["files"])
    if wants and not any("nccl" in one for one in answers) and any("gpus" in one for one in answers):
        found.append(
            Finding("NCCL", "warning", "not tried: the ranks had no GPU each that torch could use",
                    "whether GPUs of several ranks work together is unknown",
                    "what is said of the GPUs on the nodes first; then the probe again")
        )  # fmt: skip
    return found


def _gpus(answers: list[dict[str, Any]]) -> list[Finding]:
    """If GPUs were requested: whether they were allocated, and whether this torch can use them."""
    topic = "GPUs on the nodes"
    for one in answers:
        seen = one.get("gpus")
        if seen is None or seen["usable"]:
            continue
        if seen["cuda"] is None:
            return [
                Finding(topic, "bad", f"{one['host']}: torch is built for the CPU only",
                        "a training there leaves its GPUs idle and takes days instead of hours",
                        f"install torch's CUDA build where {one.get('interpreter', 'the interpreter')} lies, "
                        "or name another python: in the profile")
            ]  # fmt: skip
        driver = seen.get("driver")
        if way := cuda.fix(seen["cuda"], driver):
            return [
                Finding(topic, "bad", f"{one['host']}: torch is built for CUDA {seen['cuda']}, "
                        f"and the driver takes {driver} at most",
                        "a training there runs on the CPU", way)
            ]  # fmt: skip
        came = f"Slurm gave {seen['given']}, torch (CUDA {seen['cuda']}) sees none"
        return [
            Finding(topic, "bad", f"{one['host']}: {came}",
                    "a training there runs on the CPU" if seen["given"] else "the job gets no GPU",
                    "the node's driver must be as new as torch's CUDA; in a container: options: [--nv]"
                    if seen["given"] else "gres: in the profile asks for GPUs in another way")
        ]  # fmt: skip
    return []


def _requeue(job: str) -> Finding:
    shown = slurm.call("scontrol", "--oneliner", "show", "job", job)
    if "Requeue=1" in shown:
        return Finding("probe", "good", "--requeue is honoured", "an interrupted training keeps its job id")
    return Finding(
        "probe", "warning", "--requeue is refused (Requeue=0)",
        "an interrupted training goes on in a successor job, under a new id; the evaluation is moved to it",
        "nothing to do; the administrator may set JobRequeue=1",
    )  # fmt: skip


def _last_words(folder: Path) -> str:
    """The last line of the job's logs; those of its ranks come before that of its batch shell."""
    logs = sorted((folder / "job").glob("*_log.out"), key=lambda path: (-len(path.name), path.name))
    for path in logs:
        if lines := path.read_text(errors="replace").strip().splitlines():
            return lines[-1]
    return ""
