"""The successor: the same script submitted again, as this job was, if the job itself cannot come back.

It is submitted when that turns out to be so, or in advance: then it waits for this job to end in any way but
success, and Slurm cancels it if this job succeeds. (A requeue is not an end: the successor keeps waiting.)
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from jobs.run import files
from jobs.run.directory import Run, write_atomically
from jobs.run.settings import Settings
from jobs.run.task import job_id
from jobs.slurm import calls as slurm
from jobs.slurm import commands

# sbatch's input variables that were meant for the first job only.
NOT_INHERITED = ("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
SHORT = {
    "-A": "account", "-C": "constraint", "-D": "chdir", "-J": "job-name", "-L": "licenses", "-N": "nodes",
    "-c": "cpus-per-task", "-n": "ntasks", "-p": "partition", "-q": "qos", "-t": "time", "-w": "nodelist",
    "-x": "exclude",
}  # fmt: skip
SLACK_SECONDS = 90.0
"""Slurm checks time limits every 30 s or so, and may send a signal early by as much."""


def submit(
    run: Run,
    dependency: str,
    options: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
    stage: str = "train",
) -> tuple[str | None, str]:
    """Submits this job's script again, with the options that it was itself submitted with and `options`;
    returns (job id or None, sbatch's output). Several `--exclude` are combined. `arguments`: the script's; by
    default the run's name.

    `dependency`, an afterany or afternotok, replaces that in the header: what the first job waited for (the
    preparation) ended long ago.
    """
    shown = slurm.this_job()
    script = _script(run, shown, stage)
    excluded = [one.removeprefix("--exclude=") for one in options if one.startswith("--exclude=")]
    kept = [one for one in options if not one.startswith("--exclude=")]
    command = ["sbatch", "--parsable", f"--dependency={dependency}", *kept]
    header = script.read_text(errors="replace") if script.exists() else ""
    command += options_of(shown, header, excluded)
    if element := os.environ.get("SLURM_ARRAY_TASK_ID"):
        command.append(f"--array={element}")
    command += [str(script), *([run.name] if arguments is None else arguments)]
    give_up = time.monotonic() + slurm.PATIENCE
    while True:
        answer = slurm.call(command, clean_environment(os.environ), again=False)
        if answer.ok and (number := commands.job_number(answer.text)):
            return (f"{number}_{element}" if element else number), answer.text
        if not (answer.ok or answer.unanswered) or time.monotonic() > give_up:
            return None, answer.text
        # It may have been submitted nevertheless, and there must not be two.
        if found := _in_queue(dependency, shown.get("JobName", "")):
            return found, answer.text
        if answer.ok:
            return None, commands.nameless(answer.text)


def _in_queue(dependency: str, name: str) -> str | None:
    """The pending job with this name and dependency; None if there is none."""
    shown = slurm.call(["squeue", "--me", "--array", "--noheader", "--states=PENDING", "--format=%i|%E|%j"])
    for line in shown.text.splitlines() if shown.ok else []:
        identifier, waits_for, called = line.split("|", 2)
        if re.sub(r"\([^)]*\)", "", waits_for) == dependency and called == name:
            return identifier
    return None


def _script(run: Run, shown: Mapping[str, str], stage: str) -> Path:
    """This job's batch script as stored by Slurm, which the user may have edited; else the run's own."""
    # A preparation by the tracked script has no run directory; its logs are in the checkout.
    folder = run.job if run.job.is_dir() else run.path / "logs"
    path = folder / files.SUCCESSOR(JOB=shown.get("JobId", ""))
    if shown and slurm.call(["scontrol", "write", "batch_script", shown["JobId"], str(path)]).ok:
        return path
    return own_script(run, stage)


def own_script(run: Run, stage: str = "train") -> Path:
    return Path(os.environ.get("BATON_SCRIPT") or run.job / files.SCRIPT(STAGE=stage))


def options_of(shown: Mapping[str, str], script: str, excluded: Sequence[str] = ()) -> list[str]:
    """sbatch options for everything in which this job (`scontrol show job`) differs from its script's header,
    by its submitting command line, the environment, or later changes."""
    header = directives(script)
    options: list[str] = []

    def differs(option: str, value: str | None, same: Callable[[str, str], bool] = str.__eq__) -> None:
        if value and not (option in header and same(header[option], value)):
            options.append(f"--{option}={value}")

    differs("job-name", shown.get("JobName"))
    differs("chdir", shown.get("WorkDir"))
    # Of several partitions, scontrol shows the one that the job got.
    differs("partition", shown.get("Partition"), lambda header, value: value in header.split(","))
    differs("account", shown.get("Account"), lambda header, value: header.lower() == value.lower())
    differs("qos", shown.get("QOS"))
    differs("reservation", shown.get("Reservation"))
    differs("constraint", shown.get("Features"))
    differs("licenses", shown.get("Licenses"))
    differs("nodelist", shown.get("ReqNodeList"))
    limit = shown.get("TimeLimit", "")
    if minutes(limit) is not None and "TimeMin" not in shown:
        differs("time", limit, lambda header, value: minutes(header) == minutes(value))
    # For a range of nodes, the job has some number within it.
    differs("nodes", shown.get("NumNodes", "").partition("-")[0], _within)
    per_node = shown.get("NtasksPerN:B:S:C", "0").partition(":")[0]
    if per_node != "0":
        differs("ntasks-per-node", per_node)
    elif "ntasks" in header or shown.get("NumTasks") != shown.get("NumNodes"):
        # Without it, Slurm counts one task per node, as it has to if the number of nodes may vary.
        differs("ntasks", shown.get("NumTasks"))
    if "cpus-per-task" in header or shown.get("CPUs/Task") != "1":
        differs("cpus-per-task", shown.get("CPUs/Task"))
    if gpus := re.search(r"gpu[:=](?:[\w.-]+[:=])?\d+", shown.get("TresPerNode", "")):
        count = gpus[0].replace("=", ":").removeprefix("gpu:")
        if "gres" in header:
            differs("gres", f"gpu:{count}")
        else:
            differs("gpus-per-node", count)
    memory = shown.get("MinMemoryNode", "0")
    if memory != "0":
        differs("mem", memory, lambda header, value: megabytes(header) == megabytes(value))
    if shown.get("OverSubscribe") == "NO" and "exclusive" not in header:
        options.append("--exclusive")
    avoided = [node for node in (shown.get("ExcNodeList"), *excluded) if node]
    if excluded or (avoided and header.get("exclude") != avoided[0]):
        options.append(f"--exclude={','.join(avoided)}")
    return options


def directives(script: str) -> dict[str, str]:
    """The #SBATCH options of a batch script, by long name; "" for one without a value."""
    found: dict[str, str] = {}
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break  # sbatch reads no further
        if not line.startswith("#SBATCH"):
            continue
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
        while words:
            word = words.pop(0)
            name, given, value = word.partition("=")
            if not given and words and not words[0].startswith("-"):
                value = words.pop(0)
            if re.fullmatch(r"-[a-zA-Z].+", word):  # -plow
                name, value = word[:2], word[2:]
            found[SHORT.get(name, name.removeprefix("--"))] = value
    return found


def minutes(text: str) -> float | None:
    """A Slurm time limit (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        return None
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        return days * 1440 + first * 60 + second + third / 60
    return first + second / 60


def megabytes(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text, re.IGNORECASE)
    return float(match[1]) * 1024 ** ("KMGT".index(match[2].upper() or "M") - 1) if match else None


def _within(header: str, value: str) -> bool:
    low, _, high = header.partition("-")
    return low.isdigit() and value.isdigit() and int(low) <= int(value) <= int(high or low)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of this job: a successor that inherited SLURM_RESTART_COUNT or a
    node list would mistake itself for this job. sbatch's input variables (SBATCH_ACCOUNT) are the user's."""
    ours = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI", *NOT_INHERITED)
    names = ("BATON_JOB", "BATON_RESTART", "BATON_START", "BATON_RUN", "BATON_HEARTBEAT_FD")
    return {
        name: value
        for name, value in environ.items()
        if name in commands.WHERE or not (name.startswith(ours) or name in names)
    }


# In advance


def presubmit(run: Run, if_ending: bool) -> str:
    """Submits the successor in advance; returns what was done, in words.

    Jobs that depend on this one then accept either. With `if_ending`, only if the job's end is near and Slurm
    will not requeue it: saving may take longer than the time that is left.
    """
    job = job_id() or "unknown"
    if not os.environ.get("SLURM_JOB_ID") or (run.job / files.CANCELLED()).exists():
        return "no successor to submit"
    if if_ending and not _ending(run):
        return "the end of the job's time is not near: no successor submitted"
    if waiting := presubmitted(run, job):
        return f"job {waiting} was submitted in advance and waits"
    successor, text = submit(run, f"afternotok:{job}", ["--kill-on-invalid-dep=yes"])
    if successor is None:
        return f"could not submit a successor in advance: {text}"
    try:
        write_atomically(run.job / files.PRESUBMITTED(JOB=job), successor.encode())
    except OSError as error:  # then only Slurm will cancel it, if this job succeeds
        print(f"baton: could not record that job {successor} is the successor: {error}", flush=True)
    move_dependents(job, lambda text: either(text, job, successor), but=successor)
    return f"submitted job {successor} in advance; it goes on if this one is killed"


def _ending(run: Run) -> bool:
    shown = slurm.this_job()
    if shown.get("JobState") != "RUNNING":
        return False
    if "PreemptTime" in shown and shown.get("Requeue") == "1":
        answer = slurm.call(["scontrol", "show", "partition", "-o", shown.get("Partition", "")])
        if "PreemptMode=REQUEUE" in answer.text:
            return False
    try:
        end = datetime.fromisoformat(shown["EndTime"]).timestamp()
        settings = run.request().cluster if run.request_file.exists() else Settings()
    except (KeyError, ValueError):
        return False
    return end - time.time() < settings.signal_delay + SLACK_SECONDS


def presubmitted(run: Run, job: str) -> str | None:
    """The successor of `job` that was submitted in advance, if it is still in the queue; else None."""
    try:
        waiting = (run.job / files.PRESUBMITTED(JOB=job)).read_text().strip()
    except OSError:
        return None
    if not waiting:
        return None
    shown = slurm.call(["squeue", "--noheader", f"--jobs={waiting}", "--format=%T|%o"])
    if not shown.ok:
        return waiting if shown.unanswered else None
    state, _, command = shown.text.strip().partition("|")
    # Check the script, too: ids are reused, and another job with this id is not ours to cancel.
    ours = not command or Path(command.partition(".sbatch")[0]).parent in (run.job, own_script(run).parent)
    return waiting if state and ours else None


def predecessor(run: Run, job: str) -> str | None:
    """The job for which `job` was submitted in advance; None if there is none."""
    for path in run.job.glob(files.PRESUBMITTED(JOB="*")):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == job:
                return path.name.removeprefix(files.PRESUBMITTED(JOB=""))
    return None


def withdraw(run: Run, job: str) -> None:
    """Cancels the successor that was submitted in advance for `job`."""
    path = run.job / files.PRESUBMITTED(JOB=job)
    if not os.path.exists(path):
        return
    if (waiting := presubmitted(run, job)) and not (answer := slurm.call(["scancel", waiting])).ok:
        print(f"baton: job {waiting}, submitted in advance, is still there: {answer.text}", flush=True)
        return
    with contextlib.suppress(OSError):  # read-only by now: a successor that is gone is ignored
        path.unlink()


# Jobs that depend on this one


def dependents(job: str) -> dict[str, str]:
    """Our pending jobs that depend on `job` -> their dependency."""
    return {one: text for one, text in _waiting().items() if rename(text, job, "") != text}


def _waiting() -> dict[str, str]:
    """All our pending jobs -> their dependency, "" if there is none."""
    shown = slurm.call(["squeue", "--me", "--array", "--noheader", "--states=PENDING", "--format=%i %E"])
    if not shown.ok:
        print(f"baton: cannot see which jobs depend on this one: {shown.text}", flush=True)
    lines = (line.partition(" ") for line in (shown.text.splitlines() if shown.ok else []))
    return {one: of_element(text.strip(), one) for one, _, text in lines}


def move_dependents(job: str, change: Callable[[str], str], but: str) -> list[str]:
    """Changes the dependency of each of our jobs that depends on `job`; returns the ids of those changed."""
    moved = []
    for identifier, before in _waiting().items():
        after = change(before)
        if identifier == but or after == before:
            continue
        answer = slurm.call(["scontrol", "update", f"JobId={identifier}", f"Dependency={after}"])
        if answer.ok:
            moved.append(identifier)
        else:
            print(f"baton: job {identifier} still depends on {job}: {answer.text}", flush=True)
    return moved


def of_element(dependency: str, identifier: str) -> str:
    """Turns a dependency as shown by squeue into one that can be set: without the states of its parts and
    without failed alternatives, and with an array's aftercorr resolved for the element `identifier`."""
    parts = [part for part in dependency.split("?") if not part.endswith("(failed)")] or [dependency]
    text = re.sub(r"\([^)]*\)", "", "?".join(parts))
    if element := re.fullmatch(r"\d+_(\d+)", identifier):
        text = re.sub(r"\baftercorr:(\d+)(_\*)?(?![\d_])", rf"afterok:\g<1>_{element[1]}", text)
    return text


def rename(dependency: str, job: str, successor: str) -> str:
    """`dependency` with `job` replaced by `successor`, in afternotok and the like, too."""
    return re.sub(rf"(?<![\d_]){re.escape(job)}(?![\d_])", successor, dependency)


def either(dependency: str, job: str, successor: str) -> str:
    """`dependency`, changed so that the success of either job suffices; only if it is nothing but
    afterok:`job`, because Slurm cannot mix "and" with "or"."""
    if dependency.split("?")[0] != f"afterok:{job}" or "," in dependency:
        return dependency
    return f"afterok:{job}?afterok:{successor}"
