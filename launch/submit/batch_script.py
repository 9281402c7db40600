"""The text of a job's batch script: what a launcher submits, `--dry-run` prints and `jobs/*.sbatch` contain.

All of them share it, so that plain `sbatch` does what the launcher does. Everything that comes from a user is
quoted with shlex; the shell runs only the profile's `setup` lines as they are written.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import msgspec

from jobs.run import files, image
from jobs.run.errors import UserError
from jobs.run.settings import Container
from jobs.run.stages import LEAVING
from launch.submit import profiles, programs, runs
from launch.submit.profiles import Resolved


class Batch(msgspec.Struct, kw_only=True):
    """One job to be written as a batch script."""

    resolved: Resolved
    name: str
    """Slurm's job name."""
    run: Path | None = None
    """The run directory; None in a tracked script, which takes it as its first argument."""
    made: bool = True
    """Whether the run directory exists; if not, the script makes it with `make`."""
    make: list[str] = []
    """A launcher's name (train, prepare) and the arguments with which it makes the run directory."""
    arguments: list[str] = []
    """Further arguments of the job's command, after RUN."""
    mounts: list[Path] = []
    """Folders that these arguments name, to be mounted in a container."""
    elements: int = 0
    """Size of the job array (a sweep), where `run` ends before the element's number; 0 for a plain job."""
    checkout: Path | None = None


def text(batch: Batch) -> str:
    """The whole script. Raises UserError for a value that cannot stand in a directive or comment."""
    parts = [_header(batch), _where(batch), _setup(batch), _command(batch)]
    return "\n".join(["#!/bin/bash", *(part for part in parts if part)])


def tracked(stage: str) -> str:
    """The text of `jobs/STAGE.sbatch`, for a job without a launcher, with the default settings."""
    profile = profiles.load("slurm")
    resolved = profiles.resolve(profile, stage, {})
    resolved.sources.clear()  # nothing but defaults, which a user edits above
    return text(Batch(resolved=resolved, name=f"baton-{stage}", made=stage != "train"))


def directives(batch: Batch) -> dict[str, str | None]:
    """The sbatch options of a job, in the order of the header; None for an option without a value."""
    settings = batch.resolved.settings
    low, high = batch.resolved.nodes
    options: dict[str, str | None] = {
        "job-name": batch.name,
        "output": _output(batch),
        "open-mode": "append",
        "requeue": None,
        "nodes": str(low) if low == high else f"{low}-{high}",
    }
    if low == high:
        options |= {"ntasks-per-node": str(settings.gpus), "cpus-per-task": str(settings.cpus_per_gpu)}
    else:
        # Slurm counts tasks when a job starts and requires as many when it is requeued: with fewer nodes it
        # would never start again. So only srun is given the number of tasks.
        options["mincpus"] = str(settings.gpus * settings.cpus_per_gpu)
    if batch.resolved.stage in LEAVING and settings.signal_delay:
        options["signal"] = f"USR2@{settings.signal_delay}"
    gpus = f"{settings.gpu_type}:{settings.gpus}" if settings.gpu_type else str(settings.gpus)
    if settings.gres == "gpus-per-node":
        options["gpus-per-node"] = gpus
    elif settings.gres == "gres":
        options["gres"] = f"gpu:{gpus}"
    if settings.memory:
        options["mem"] = settings.memory
    for key in ("partition", "account", "qos", "reservation", "constraint", "time"):
        if value := getattr(settings, key):
            options[key] = value
    if settings.exclude:
        options["exclude"] = ",".join(settings.exclude)
    if batch.elements:
        options["array"] = f"0-{batch.elements - 1}"
    for key, value in settings.sbatch.items():
        options[key] = None if value in ("", "true") else value
    return options


def _output(batch: Batch) -> str:
    """Where the batch shell's own output goes, as a Slurm filename pattern (in which % is written %%).

    Raises UserError for a run at a path that no pattern can carry.
    """
    if batch.run is not None:
        runs.check_path(batch.run, "the path of the run")
    id = "%A_%a" if batch.elements else "%j"
    if batch.run is None:
        return f"logs/slurm-{id}.out"
    if not batch.made:
        return f"{_no_pattern(batch.run.parent.parent)}/slurm-{id}.out"
    element = "%a" if batch.elements else ""
    return f"{_no_pattern(batch.run)}{element}/{files.JOB()}/{files.LOG(JOB=id)}"


def make_log_folder(batch: Batch) -> None:
    """Makes the folder of the batch shell's log if the run does not exist yet: Slurm does not make it, and a
    job without it ends before its first line."""
    if batch.run is not None and not batch.made:
        batch.run.parent.parent.mkdir(parents=True, exist_ok=True)


def _no_pattern(path: Path) -> str:
    return str(path).replace("%", "%%")


def _header(batch: Batch) -> str:
    lines = []
    for key, value in directives(batch).items():
        # sbatch reads its directives like a shell, but a quote ends at the next one of its kind.
        lines.append(f"#SBATCH --{key}" if value is None else f"#SBATCH --{key}={shlex.quote(value)}")
    sources = batch.resolved.sources
    values = msgspec.to_builtins(batch.resolved.settings)
    if sources:
        lines.append("# Where these come from:")
    for key, source in sorted(sources.items()):
        setting, _, name = key.partition(".")
        # Of a setting that may hold a secret (jobs/run/secrets.py), only the source is shown.
        value = values[setting][name] if name else values[setting]
        lines.append(f"#   {key}: ({source})" if setting in UNTOLD else f"#   {key}: {value!r} ({source})")
    if bad := next((line for line in lines if profiles.has_control(line)), None):
        # After a line break, the rest of a path or name would be a command.
        raise UserError(f"a batch script cannot contain a line break or control character: {bad!r}")
    if batch.run is None:
        lines += ["#", *(f"# {line}" for line in USAGE[batch.resolved.stage].splitlines())]
    return "\n".join(lines) + "\n"


UNTOLD = {"env", "secrets", "notify", "setup", "container", "srun"}
"""Settings whose values appear in no comment."""


USAGE = {
    "train": """Trains a run; submit it from the checkout:
  sbatch jobs/train.sbatch RUN [options of launch/train.py]
RUN is a run's name. If there is none of that name yet, it is made with the options, such as
--config configs/demo.py. Edit the #SBATCH lines above to your cluster's needs.""",
    "evaluate": """Evaluates a run; submit it from the checkout:
  sbatch jobs/evaluate.sbatch RUN [options of python -m jobs.evaluate]
Behind its training: sbatch --dependency=afterok:JOB --kill-on-invalid-dep=yes jobs/evaluate.sbatch RUN""",
    "infer": """Segments images with a run's model; submit it from the checkout:
  sbatch jobs/infer.sbatch RUN [options of python -m jobs.infer] -- IMAGE... (absolute paths)""",
    "export": """Exports a run's best weights; submit it from the checkout:
  sbatch jobs/export.sbatch RUN [options of python -m jobs.export]""",
    "prepare": """Prepares the dataset; submit it from the checkout:
  sbatch jobs/prepare.sbatch [options of python -m jobs.prepare]""",
}


def _where(batch: Batch) -> str:
    """Sets the run and the interpreters; under plain sbatch also makes the run directory if it is missing."""
    stage, settings = batch.resolved.stage, batch.resolved.settings
    lines = [
        "# The shell outlives the signals that a preemption sends to all of the job. A handler that does",
        '# nothing, not "ignore": bash runs it when a command has ended, and keeps the exit code.',
        "trap : USR2 TERM",
        "# What sbatch took over from a shell inside srun or salloc, or made of --export=NONE, is not meant",
        "# for the steps of this job.",
        "unset SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE",
        "unset SLURM_MPI_TYPE SLURM_EXPORT_ENV SRUN_EXPORT_ENV",
        "# A job is on its node's cluster, which by a name Slurm would look up in its database first.",
        "unset SLURM_CLUSTERS SBATCH_CLUSTERS",
        "# srun refuses two of these, of which one is the shell's; with none a step has the job's memory.",
        'if [ -n "${SLURM_MEM_PER_NODE:+${SLURM_MEM_PER_CPU-}${SLURM_MEM_PER_GPU-}}" ]; then',
        "    unset SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU",
        "fi",
        "",
    ]
    if batch.run is None:
        lines.append("checkout=$PWD python=${BATON_PYTHON:-$PWD/.venv/bin/python} host_python=$python")
        if stage == "prepare":
            lines.append("run=$checkout")
        else:
            lines.append(f"name=${{1:?usage: sbatch jobs/{stage}.sbatch RUN}}")
            lines.append("shift")
            lines.append("run=${BATON_RUNS:-$checkout/logs/runs}/${name##*/}")
        make = '"$host_python" "$checkout/launch/train.py" --no-submit --run "${name##*/}" "$@"'
    else:
        lines += _names(batch)
        make = _make(batch)
    if not batch.made and stage in ("train", "prepare"):
        lines.append(
            "# The run directory: request, snapshot of the code, scripts. A signal does not stop that."
        )
        lines.append(f'[ -e "$run/run.yaml" ] || (trap "" USR2 TERM; exec {make}) || exit')
    lines += _logs(batch)
    if settings.env or settings.secrets:
        lines.append("# The profile's environment, in a file that only you can read.")
        lines.append(f'. "$run/job/{stage}.env" || exit 2')
    return "\n".join(lines) + "\n"


def _names(batch: Batch) -> list[str]:
    """The assignments of the run and the interpreters."""
    element = '"$SLURM_ARRAY_TASK_ID"' if batch.elements else ""
    python, host = _quote(batch.resolved.settings.python or sys.executable), _quote(sys.executable)
    return [f"run={_quote(batch.run)}{element}", f"python={python} host_python={host}"]


def _logs(batch: Batch) -> list[str]:
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if batch.elements else "$SLURM_JOB_ID"
    logs = '"$checkout/logs"' if batch.run is None and batch.resolved.stage == "prepare" else '"$run/job"'
    return [
        f"job={number}",
        "# Slurm reads % in a log's path as a pattern.",
        f"logs={logs}; logs=${{logs//%/%%}}/$job",
    ]


def _make(batch: Batch) -> str:
    """The command with which a batch script makes its run directory, in the same place whatever BATON_RUNS is
    in its shell."""
    if not batch.make:
        return ""
    launcher, *arguments = batch.make
    place = os.environ.get("BATON_RUNS") and runs.runs_root()
    command = [
        "env",
        f"BATON_RUNS={_quote(place or '')}",
        '"$host_python"',
        _quote(f"{batch.checkout}/launch/{launcher}.py"),
        shlex.join(arguments),
    ]
    if batch.elements:
        command.append('--element "$SLURM_ARRAY_TASK_ID"')
    return " ".join(command)


def _setup(batch: Batch) -> str:
    if not batch.resolved.settings.setup:
        return ""
    lines = ["# Set-up lines of the cluster profile: the first that fails ends the job."]
    for line in batch.resolved.settings.setup:
        message = _quote(f"set-up line failed: {' '.join(line.split())}")
        lines += [
            "{",
            line,
            "} || { code=$?; echo error: " + message + ' "(exit code $code)" >&2; exit "$code"; }',
        ]
    lines.append(
        "# What a line may have set for the shell itself must not end the job before it has come back."
    )
    lines.append("set +eu +o pipefail; trap - ERR; trap : USR2 TERM")
    if batch.run is not None:
        lines += ["# Nor take its names.", *_names(batch), *_logs(batch)]
    return "\n".join(lines) + "\n"


# Since Slurm 22.05, srun takes the CPUs per task from the job only when told to.
SRUN = (
    'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --open-mode=append \\\n    '
    '--output="${logs}_%t_log.out" --error="${logs}_%t_log.out"'
)


def _command(batch: Batch) -> str:
    stage, settings = batch.resolved.stage, batch.resolved.settings
    srun = [SRUN, *(_quote(option) for option in settings.srun)]
    low, high = batch.resolved.nodes
    if low != high:
        tasks = f"--ntasks-per-node={settings.gpus} --cpus-per-task={settings.cpus_per_gpu}"
        srun[0] = SRUN.replace('--cpus-per-task="$SLURM_CPUS_PER_TASK"', tasks)
    code = batch.run / files.CODE() if batch.run is not None and batch.made else None
    python = '"$python"'
    if settings.environment and programs.knows(code, image.PROGRAM):
        known = programs.knows(code, image.STARTED_SO)
        start = f"-S -c {_quote(image.START)}" if known else f"-m {image.PROGRAM}"
        python += f" {start} {_quote(settings.stage)}"
    if settings.container is not None:
        flags, prefix = _container(settings.container, batch.mounts)
        srun += flags
        python = " ".join([*prefix, python])
    given = " ".join(
        filter(None, [shlex.join(batch.arguments), '"$@"' if batch.run is None and stage != "train" else ""])
    )
    cd = (
        'cd "$run/code" || exit 2'
        if batch.run is not None or stage != "prepare"
        else 'cd "$checkout" || exit 2'
    )
    start = " ".join(srun)
    if stage == "train":
        after = programs.module(code, programs.AFTER_TRAINING)
        presubmit = PRESUBMIT.format(after=after) if settings.presubmit else ""
        return TRAIN.format(cd=cd, srun=start, python=python, presubmit=presubmit, after=after)
    target = "" if stage == "prepare" else ' "$run"'
    command = f"{python} -u -m jobs.{stage}{target} {given}".rstrip()
    after = programs.module(code, programs.AFTER_OTHERS)
    if after != programs.AFTER_OTHERS:  # which could not requeue a job that had completed
        return OTHER.format(cd=cd, srun=start, command=command, codes="85", again=f"{after} requeue")
    again = f'{after} {stage} "$run" "$code"'
    if batch.run is None:
        again += ' "$@"' if stage == "prepare" else ' "$name" "$@"'
    return OTHER.format(cd=cd, srun=start, command=command, codes="0 | 85", again=again)


OTHER = """\
{cd}
# Ignored, so that a warning ends nothing: a job that ended within its grace time would not be run again.
{srun} \\
  sh -c 'trap "" USR2 TERM; exec "$@"' baton {command}
code=$?
# 85: it was told to leave and goes on in another start, unless the job is being cancelled. 0: it is done,
# which Slurm must hear in a way that it understands within a grace time, too.
case "$code" in {codes}) (trap "" USR2 TERM; exec "$host_python" -m {again}) ;; esac
exit "$code"
"""

PRESUBMIT = """\
# The partition kills without notice: a successor waits, for any end of this job but success.
(trap "" USR2 TERM; exec "$host_python" -m {after} "$run" --presubmit)
"""

TRAIN = """\
{cd}
{presubmit}while :; do
  # Ignored from the first instruction until the handlers stand, so that an early signal ends nothing.
  {srun} \\
    sh -c 'trap "" USR2 TERM; exec "$@"' baton {python} -u -m jobs.train "$run"
  code=$?
  (trap "" USR2 TERM; exec "$host_python" -m {after} "$run" --exit-code "$code")
  next=$?
  # 75: start again here. All else is the job's end; 0 only when training is finished.
  [ "$next" -eq 75 ] || exit "$next"
done
"""


def _container(container: Container, folders: list[Path]) -> tuple[list[str], list[str]]:
    """(srun's flags, what goes before the interpreter). The run directory, the data root and `folders` are
    mounted."""
    own = ['"$run"', '"$(readlink -f "$run/code/data")"', *map(_quote, folders)]
    if container.kind == "pyxis":
        mounts = ",".join([f"{path}:{path}" for path in own] + [_quote(mount) for mount in container.mounts])
        flags = [
            f"--container-image={_quote(container.image)}",
            f"--container-mounts={mounts}",
            '--container-workdir="$run/code"',
        ]
        return flags + [_quote(option) for option in container.options], []
    binds = [f"--bind {mount}" for mount in [*own, *(_quote(mount) for mount in container.mounts)]]
    options = [_quote(option) for option in container.options]
    command = [container.kind, "exec", "--nv", *binds, '--pwd "$run/code"', *options, _quote(container.image)]
    return [], command


def _quote(value: object) -> str:
    return shlex.quote(str(value))
