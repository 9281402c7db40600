"""Jobs on this machine, judged by their processes: whether a chain of a run's stages is alive."""

from __future__ import annotations

from pathlib import Path

from jobs.run import files, place, records
from jobs.run.directory import Run
from launch.submit import executors


def local_chain(run: Run) -> int | None:
    """The pid of the run's local chain, if that is alive; not of another process that reuses the pid."""
    return _living(run.job / files.CHAIN())


def local_chains(run: Run) -> dict[str, int]:
    """Every live local chain of the run, its own and those of evaluations and inferences by hand:
    job id -> pid."""
    found = {path.stem: _living(path) for path in sorted(run.job.glob(files.OTHER_CHAIN(LOCALJOB="local-*")))}
    chain = records.read_json(run.job / files.CHAIN())
    if (pid := local_chain(run)) is not None:
        found[str(chain.get("job") or f"local-{pid}")] = pid
    return {job: pid for job, pid in found.items() if pid is not None}


def local_job(run: Run, job: str) -> bool:
    """Whether a job outside Slurm is alive; a local one (`local-PID`) even if it is only just starting."""
    if not job.startswith("local-"):
        executor = executors.of_job(job)
        return executor is not None and executor.is_alive(run, job)
    return job in local_chains(run) or _is_starting(run, job)


def _living(file: Path) -> int | None:
    """The pid in a chain's file, if that process is alive; None if not, or if another reuses the pid."""
    chain = records.read_json(file)
    if place.elsewhere(chain):
        return None
    try:
        pid = int(chain["pid"])
        started = place.process_start(pid)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return pid if started is not None and str(started) == str(chain.get("start_time")) else None


def elsewhere(run: Run, job: str) -> str:
    """The host where a local job that is not visible here may be alive; "" if it would be visible."""
    for file in (run.job / files.OTHER_CHAIN(LOCALJOB=job), run.job / files.CHAIN()):
        record = records.read_json(file)
        if record and str(record.get("job") or job) == job:
            return place.elsewhere(record)
    return ""


def is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped, by a signal or a debugger."""
    try:
        return pid is not None and place.stat(pid)[0] in "tT"
    except (OSError, IndexError):
        return False


def _is_starting(run: Run, job: str) -> bool:
    """Whether submitit's controller of a local job exists: the chain itself may not have started yet."""
    try:
        command = Path(f"/proc/{job.removeprefix('local-')}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return str(run.job).encode() in command
