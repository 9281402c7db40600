"""The state of a run in plain words: from its events, from Slurm, from the local chain's process.

What cannot be determined is `unknown`, never a success.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from jobs.run import files, kinds, metrics
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.metrics import Figure
from jobs.run.past import History, StageJob
from jobs.slurm import pending
from jobs.slurm.queries import UNKNOWN, Answer, Job, is_slurm
from launch.observe import efficiency, evaluations, history, local_jobs, sweeps, wording
from launch.submit import identity

UNSUBMITTED = "not submitted"

SILENT = 600.0
"""Seconds without progress after which a running training is called silent."""


class State(msgspec.Struct, frozen=True):
    code: str
    """queued, waiting, starting, running, suspended, requeueing, finished, evaluating, prepared, cancelled,
    stopped, failed, stuck, unreadable, unknown."""
    words: str
    stage: str = "train"
    """Whose state it is: prepare, train, evaluate or infer."""

    @property
    def lives(self) -> bool:
        """Whether one of its jobs is queued or running, as far as is known."""
        return self.code in {
            *("queued", "waiting", "starting", "running", "suspended", "requeueing", "evaluating"),
            *("unreadable", "unknown"),
        }


class Status(msgspec.Struct, kw_only=True):
    """A run as shown in the table and by `--json`."""

    name: str
    state: str
    words: str
    stage: str = "train"
    """Whose state it is: prepare, train, evaluate or infer."""
    job: str = ""
    sweep: str = ""
    """The name of its sweep, if any."""
    epoch: int | None = None
    max_epochs: int | None = None
    step: int | None = None
    max_steps: int | None = None
    seconds_per_step: float | None = None
    loss: float | None = None
    best: Figure | None = None
    """The figure of the best validation."""
    evaluated: Figure | None = None
    """The figure of the evaluation that counts for the run (evaluations.py)."""
    preemptions: int = 0
    interruptions: int = 0
    starts: int = 0
    lost_steps: int = 0
    efficiency: float | None = None
    """ETTR, queue included."""
    eta_seconds: float | None = None
    updated: float | None = None
    """Time of the last sign of life, in seconds since the epoch."""


def jobs_to_ask(past: History) -> list[str]:
    """The Slurm jobs whose state the events leave open: the newest of each stage, and a reserve."""
    over = ("finished", "failed", "superseded", "stopped", "cancelled")
    open_jobs = [job for job in past.jobs.values() if job.state not in over and is_slurm(job.id)]
    if past.finished is not None or past.stopped:
        open_jobs = [job for job in open_jobs if job.stage != "train"]
    newest = {job.stage: job.id for job in open_jobs}
    failed = past.newest_job("train")
    if failed and failed.state == "failed" and past.cancelled is None and is_slurm(failed.id):
        newest["train"] = failed.id
    if past.reserve is not None and "train" in newest:
        newest["its successor"] = past.reserve
    return list(newest.values())


def status(run: Run, past: History, answer: Answer, now: float) -> Status:
    """Everything that the table shows of a run; `past` already includes progress.json."""
    progress = history.progress(run)
    state = judge(run, past, answer, progress, now)
    if state.code == "suspended" and past.incarnations:
        history.still_suspended(past.incarnations[-1], now)
    if state.code == "failed" and past.incarnations and past.incarnations[-1].ended is None:
        history.gone_silently(past.incarnations[-1])
    shares = efficiency.shares(past, now if state.lives else past.last)
    job = past.newest_job("train") or next(reversed(list(past.jobs.values())), None)
    step, epoch = history.furthest(past, progress)
    found = Status(
        name=run.name,
        state=state.code,
        words=state.words,
        stage=state.stage,
        job=job.id if job else "",
        # The events of what was only made, perhaps by a launcher that was killed, name no element.
        sweep=sweeps.stem_of(run.name) if past.element else "" if past.jobs else sweeps.of(run),
        step=step,
        epoch=epoch,
        max_epochs=progress.get("max_epochs"),
        max_steps=progress.get("max_steps"),
        seconds_per_step=progress.get("seconds_per_step"),
        loss=progress.get("loss"),
        best=(best := past.best or progress.get("best")),
        evaluated=_evaluated(run, past, best),
        preemptions=past.preemptions,
        interruptions=past.interruptions,
        starts=len(past.incarnations),
        lost_steps=efficiency.lost_steps(past),
        efficiency=shares.ettr,
        updated=max(past.last, progress.get("time") or 0.0) or None,
    )
    if state.code in ("running", "starting", "requeueing", "suspended") and found.step and found.max_steps:
        found.eta_seconds = efficiency.eta(past, now, found.step, found.max_steps, found.seconds_per_step)
    return found


def _evaluated(run: Run, past: History, best: Figure | None) -> Figure | None:
    if not past.evaluations:
        return None
    number, owner = _gone_by(run, past)
    return metrics.evaluated(past.evaluations[number].metrics, best, owner)


def _gone_by(run: Run, past: History) -> tuple[int, str]:
    """See evaluations.chosen."""
    return evaluations.chosen([Path(one.path) for one in past.evaluations], run.checkpoints)


def past_of(run: Run) -> History:
    """The history of a run. Raises UserError if it cannot be read."""
    past = history.attempt(run)
    if isinstance(past, Exception):
        raise UserError(f"{run.name} is {unreadable(run, past).words}")
    return past


def unreadable(run: Run, error: Exception) -> Status:
    """The status of a run that cannot be read: another user's, or a damaged one."""
    why = (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else f"{type(error).__name__}: {error}"
    )
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return Status(name=run.name, state="unreadable", words=f"unreadable: {wording.gist(why)}{where}")


def judge(run: Run, past: History, answer: Answer, progress: dict[str, Any], now: float) -> State:
    """The state of a run, with a description in one line."""
    state = _judge(run, past, identity.mine(run, past, answer), progress, now)
    return msgspec.structs.replace(state, words=wording.gist(state.words))


def _judge(run: Run, past: History, answer: Answer, progress: dict[str, Any], now: float) -> State:
    if past.finished is not None:
        return _after_training(run, past, answer)
    if past.cancelled is not None:
        cancelled = State("cancelled", "cancelled", _main_stage(past))
        return _beside(run, past, answer, cancelled, past.cancelled)
    if past.stopped:
        return _beside(
            run, past, answer, State("stopped", f"stopped: {past.stopped}"), past.stopped_at or past.last
        )
    job = past.newest_job("train")
    if job is None:
        return _other_stage(run, past, answer)
    if not is_slurm(job.id):
        if not local_jobs.local_job(run, job.id):
            if host := local_jobs.elsewhere(run, job.id):
                return _out_of_sight(host)
            return _gone(past, "its local process is gone")
        if local_jobs.is_stopped(local_jobs.local_chains(run).get(job.id)):
            return State("suspended", "suspended: its processes are stopped (SIGCONT continues them)")
        return _running(past, progress, now, preparing=_is_preparing(past))
    seen = answer.job(job.id)
    if seen.pending:
        return _pending(past, job, seen, now)
    if seen.state in ("SUSPENDED", "STOPPED"):
        return State("suspended", "suspended by Slurm, goes on by itself when it is resumed")
    if seen.alive:
        last = past.incarnations[-1] if past.incarnations else None
        if last is not None and last.job == job.id and last.ended is not None:
            if last.ending in ("failed", "hang", "killed") and seen.state == "RUNNING":
                return State("starting", f"starting again after: {last.why}")
            return State("requeueing", f"{last.why}; leaving the nodes")
        return _running(past, progress, now)
    if seen.state == UNKNOWN:
        age = wording.span(now - past.last) if past.last else "never"
        error = f"; its last error: {_error(past)}" if past.failed else ""
        return State("unknown", f"Slurm says nothing of job {job.id}; last word {age} ago{error}")
    how = f"job {job.id} ended as {seen.state}{f' ({seen.reason})' if seen.reason else ''}"
    if past.reserve is not None and answer.job(past.reserve).alive:
        return State("requeueing", f"{how}; job {past.reserve} goes on")
    if seen.state == "FAILED" and not (past.incarnations or (run.job / files.LOG(JOB=job.id)).exists()):
        return State("failed", f"{how} before its log began: do its nodes see {run.path}?")
    return _gone(past, how)


def _out_of_sight(host: str, stage: str = "train") -> State:
    return State("unknown", f"runs on {host} or did: only there can be seen whether it lives", stage)


def _main_stage(past: History) -> str:
    """The purpose of the run: a training, or else the stage submitted last."""
    stages = [job.stage for job in past.jobs.values()]
    return "train" if past.incarnations or "train" in stages or not stages else stages[-1]


def _is_preparing(past: History) -> bool:
    job = past.newest_job("prepare")
    return job is not None and job.state in ("submitted", "started") and not past.incarnations


def _running(past: History, progress: dict[str, Any], now: float, preparing: bool = False) -> State:
    if preparing:
        return State("waiting", "preparing the dataset")
    last = past.incarnations[-1] if past.incarnations else None
    if last is None or last.ended is not None:
        return State("starting", "starting" + (" again" if last else ""))
    if last.first_step is None:
        step = last.resumed_step
        return State("starting", f"starting, goes on from step {step:,}" if step else "starting")
    phase = progress.get("phase")
    doing = {"validate": "running, validating", "save": "running, saving"}.get(str(phase), "running")
    if progress.get("diverged"):
        doing = f"{doing}, but the loss is nan"
    quiet = now - max(last.last_seen, progress.get("time") or 0.0)
    if quiet > SILENT:
        doing = f"{doing}, but silent for {wording.span(quiet)}"
    return State("running", doing)


def _pending(past: History, job: StageJob, seen: Job, now: float) -> State:
    when = f", expected start {wording.clock(seen.start, now)}" if seen.start and seen.start > now else ""
    if seen.reason.startswith("DependencyNeverSatisfied"):
        waited = f"job {job.after}" if job.after else "the job it waits for"
        return State("stuck", f"will never start: {waited} did not succeed; cancel it and submit it again")
    if seen.reason.startswith("Dependency"):
        return State("waiting", f"waits for job {job.after or seen.dependency}{when}")
    if stuck := _stuck(seen):
        return State("stuck", stuck)
    behind = _behind(seen)
    resumed = past.rests and past.rests[-1][1] == job.submitted and job.started is None  # by the user
    if past.incarnations and not resumed:
        if seen.reason in ("BeginTime", "") or seen.state == "REQUEUED":
            return State("requeueing", f"waiting for requeue{when}")
        return State("requeueing", f"waiting for requeue, {behind}{when}")
    return State("queued", f"{behind}{when}")


def _behind(seen: Job) -> str:
    """A pending job's place in the queue: next with reason Resources; with reason Priority behind jobs that
    are not counted, since they are in other partitions; none with any other reason."""
    if stuck := _stuck(seen):
        return stuck
    if why := pending.waits(seen.reason):
        return f"queued: {why} ({seen.reason})"
    if seen.ahead:
        return f"queued behind {wording.plural(seen.ahead, 'job')}"
    if seen.reason == "Resources":
        return "queued, next in line"
    return "queued, others go first" if seen.reason == "Priority" else "queued"


def _stuck(seen: Job) -> str:
    """Why a job will not start without intervention; "" if it may start."""
    if seen.reason == "JobHeldAdmin":
        return f"held by an administrator, who alone can release job {seen.id}"
    if pending.is_held(seen.reason) or seen.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"):
        return f"held ({seen.reason}); scontrol release {seen.id} lets it go on"
    why = pending.never(seen.reason)
    return f"will never start as it is: {why} ({seen.reason})" if why else ""


def _queued(seen: Job, code: str) -> str:
    return "stuck" if _stuck(seen) else code


def _gone(past: History, how: str) -> State:
    if past.failed:
        return State("failed", f"failed: {_error(past)}")
    return State("failed", f"{how}, and nothing says why" if past.incarnations else f"{how} before it began")


def _error(past: History) -> str:
    return past.failed.error or past.failed.reason if past.failed else ""


def _after_training(run: Run, past: History, answer: Answer) -> State:
    """The state after a finished training: its newest evaluation, and an inference under way."""
    job = past.newest_job("evaluate")
    evaluated = "finished, evaluated" if past.evaluations else "finished"
    if past.not_finite is not None:
        evaluated = f"{evaluated}, but the loss was no number from step {past.not_finite:,} on"
    if job is None or job.state == "finished":
        return _beside(run, past, answer, State("finished", evaluated), past.finished or 0.0)
    if job.state == "failed":
        why = f"trained; the evaluation failed: {job.why}"
        return _evaluation_failed(run, past, answer, job, why, evaluated)
    if job.state == "cancelled":
        return _beside(
            run,
            past,
            answer,
            State("finished", f"{evaluated}; an evaluation was cancelled"),
            job.ended or 0.0,
        )
    seen = answer.job(job.id)
    if not is_slurm(job.id):
        if local_jobs.local_job(run, job.id):
            return State("evaluating", "trained, being evaluated", "evaluate")
        if host := local_jobs.elsewhere(run, job.id):
            return _out_of_sight(host, "evaluate")
        why = "trained; its evaluation's local process is gone"
        return _evaluation_failed(run, past, answer, job, why, evaluated)
    if seen.pending:
        return State(_queued(seen, "evaluating"), f"trained, evaluation {_behind(seen)}", "evaluate")
    if seen.alive:
        return State("evaluating", "trained, being evaluated", "evaluate")
    if seen.state == UNKNOWN:
        return State("finished", f"trained; of the evaluation (job {job.id}) Slurm says nothing", "evaluate")
    why = f"trained; the evaluation's job {job.id} ended as {seen.state}"
    return _evaluation_failed(run, past, answer, job, why, evaluated)


def _evaluation_failed(
    run: Run, past: History, answer: Answer, job: StageJob, why: str, otherwise: str
) -> State:
    """The state after a failed evaluation: not `failed` if the run already has the evaluation that counts."""
    if not past.evaluations or _gone_by(run, past)[1]:
        return State("failed", why, "evaluate")
    found = State("finished", f"{otherwise}; a later evaluation failed", _main_stage(past))
    return _beside(run, past, answer, found, job.ended or 0.0)


def _beside(run: Run, past: History, answer: Answer, state: State, since: float) -> State:
    """`state`, or with an evaluation or inference that was submitted by hand since then and is active."""
    doing = {"evaluate": "being evaluated", "infer": "segmenting images"}
    for job in reversed(list(past.jobs.values())):
        if job.stage not in doing or job.submitted < since or job.state not in ("submitted", "started"):
            continue
        seen = answer.job(job.id)
        if seen.pending:
            return State(
                _queued(seen, "evaluating"), f"{state.words}; {job.stage} {_behind(seen)}", job.stage
            )
        if seen.alive if is_slurm(job.id) else local_jobs.local_job(run, job.id):
            return State("evaluating", f"{state.words}; {doing[job.stage]}", job.stage)
    return state


def _other_stage(run: Run, past: History, answer: Answer) -> State:
    """The state of a run without a training: a preparation, an evaluation, or one never submitted."""
    job = next(reversed(list(past.jobs.values())), None)
    if job is None:
        if past.prepared:
            return State("finished", "prepared", "prepare")
        if (run.path / files.PROGRESS()).exists():
            return State("unknown", f"{files.EVENTS()} is gone or damaged, so what happened to it is unknown")
        return State("queued", UNSUBMITTED)
    if job.state == "finished":
        made: dict[type, str] = {kinds.Prepared: "prepared", kinds.Verified: "verified"}
        return State("finished", made.get(type(past.prepared), "finished"), job.stage)
    if job.state in ("failed", "stopped"):
        why = f"{job.stage} failed: {job.why}"
        if job.stage == "evaluate":
            return _evaluation_failed(run, past, answer, job, why, "finished, evaluated")
        return State("failed", why, job.stage)
    doing = {"prepare": "preparing", "evaluate": "evaluating", "infer": "segmenting"}.get(
        job.stage, job.stage
    )
    if not is_slurm(job.id):
        if local_jobs.local_job(run, job.id):
            return State("running", doing, job.stage)
        if host := local_jobs.elsewhere(run, job.id):
            return _out_of_sight(host, job.stage)
        return State("failed", f"{job.stage}: its local process is gone", job.stage)
    seen = answer.job(job.id)
    if seen.pending:
        return State(_queued(seen, "queued"), _behind(seen), job.stage)
    if seen.alive:
        return State("running", doing, job.stage)
    if seen.state == UNKNOWN:
        return State("unknown", f"Slurm says nothing of job {job.id}", job.stage)
    return State("failed", f"{job.stage}: job {job.id} ended as {seen.state}", job.stage)
