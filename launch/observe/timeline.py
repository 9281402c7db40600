"""One run: its starts, its jobs, where the time went, and what to type next."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from typing import Any

import msgspec

from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.past import History, Incarnation, StageJob
from jobs.slurm import queries as slurm_queries
from jobs.slurm.queries import Answer
from launch.observe import accounting, efficiency, figures, local_jobs, states, tables, wording
from launch.observe.overview import Slurm, of_total
from launch.submit import executors, identity, longer, runs

STARTS = (">start", "how it ended", "began", ">lasted", ">from", ">to step", "on", "job")


def print_one(run: Run, now: float, as_json: bool, slurm: Slurm) -> None:
    past = states.past_of(run)
    answer = identity.mine(run, past, slurm.ask(past.job_ids()))
    accounting.add(past, slurm.incarnations(past.job_ids()))
    one = states.status(run, past, answer, now)
    lives = one.state in ("running", "starting", "requeueing", "suspended")
    command = next_command(run, one)
    shares = efficiency.shares(past, now if lives else past.last)
    if as_json:
        data = figures.as_json(one)
        data["starts"] = [
            {key: value for key, value in msgspec.to_builtins(start).items() if key != "marks"}
            for start in past.incarnations
        ]
        data["jobs"] = [_job(run, past, job, answer) for job in past.jobs.values()]
        data["seconds"] = msgspec.to_builtins(shares)
        data["problems"] = answer.problems
        data["next"] = command
        print(json.dumps(data))
        return
    print(f"{run.name}: {one.words}\n{run.path}")
    for line in _whole_reason(past, one):
        print(f"  {line}")
    best, evaluated = figures.heads([one])
    facts = [
        ("epoch", of_total(one.epoch, one.max_epochs)),
        ("step", of_total(one.step, one.max_steps)),
        ("s/it", f"{one.seconds_per_step:.2f}" if one.seconds_per_step else ""),
        ("loss", f"{one.loss:.4g}" if one.loss is not None else ""),
        (best, figures.cell(one.best, best)),
        (evaluated, figures.cell(one.evaluated, evaluated)),
        ("left", wording.span(one.eta_seconds) if one.eta_seconds else ""),
    ]
    print("  ".join(f"{name} {value}" for name, value in facts if value))
    if past.incarnations:
        print()
        tables.show(
            STARTS,
            [_start(start, now) for start in past.incarnations],
            [{"finished": "finished", "": "running"}.get(s.ending, "queued") for s in past.incarnations],
            ("job", "on", "began", ">from"),
        )
    if past.jobs:
        print()
        rows = [_job(run, past, job, answer) for job in past.jobs.values()]
        tables.show(
            ("stage", "state", "job", "submitted", "after"),
            [
                [row["stage"], row["words"], row["job"], wording.moment(row["submitted"]), row["after"]]
                for row in rows
            ],
            [row["state"] for row in rows],
            ("submitted", "after"),
        )
    _time_spent(past, shares)
    for problem in answer.problems:
        print(f"note: {problem}")
    print(f"\nnext: {command}")


def _whole_reason(past: History, one: states.Status) -> list[str]:
    """The lines of an error's text, if the state's one line leaves some out."""
    if one.state not in ("failed", "stopped"):
        return []
    jobs = [job.why for job in past.jobs.values() if job.stage == one.stage]
    failure = (past.failed.error or past.failed.reason or "") if past.failed else ""
    texts = [past.stopped, failure, *jobs[-1:]]
    whole = next((text for text in texts if text), "")
    return whole.strip().splitlines() if len(whole.strip().splitlines()) > 1 else []


def _start(one: Incarnation, now: float) -> list[str]:
    return [
        str(one.start),
        one.why or ("running" if one.first_step else "starting"),
        wording.moment(one.began),
        wording.span((one.ended or now) - one.began),
        "" if one.resumed_step is None else str(one.resumed_step),
        "" if one.step is None else str(one.step),
        f"{','.join(one.hosts)} ({wording.plural(one.world_size, 'rank')})",
        one.job,
    ]


def _job(run: Run, past: History, job: StageJob, answer: Answer) -> dict[str, Any]:
    seen = answer.job(job.id)
    text, code = (
        job.state,
        {"started": "running", "submitted": "queued", "requeued": "requeueing"}.get(job.state),
    )
    if slurm_queries.is_slurm(job.id):
        why = f" ({seen.reason})" if seen.pending and seen.reason else ""
        text = f"{job.state}; Slurm: {seen.state}{why}"
    elif code and not local_jobs.local_job(run, job.id) and not local_jobs.elsewhere(run, job.id):
        # Only a training reports its start; the evaluation that depends on it starts when it has finished.
        begun, train = job.stage != "train" or job.started is not None, past.newest_job("train")
        if job.stage != "train" and train is not None and train.id == job.id:
            begun = train.state == "finished"
        text, code = ("its local process is gone", "failed") if begun else ("never began", "cancelled")
    if job.why:
        text = f"{text}: {job.why}"
    return {
        "job": job.id,
        "stage": job.stage,
        "state": code or job.state,
        "slurm": seen.state,
        "words": text,
        "submitted": job.submitted,
        "after": job.after,
    }


def _time_spent(past: History, shares: efficiency.Shares) -> None:
    if shares.ettr is None:
        return
    parts = [
        f"{name} {wording.span(getattr(shares, name))} ({100 * getattr(shares, name) / shares.wall:.0f}%)"
        for name in efficiency.NAMES
        if getattr(shares, name) > 0
    ]
    print(f"\n{wording.span(shares.wall)} in all: {', '.join(parts)}")
    kinds = Counter(one.ending for one in past.incarnations if one.interrupted)
    endings = ", ".join(f"{count} {ENDINGS.get(ending, ending)}" for ending, count in kinds.items())
    print(
        f"efficiency (ETTR) {shares.ettr:.3f}; {wording.plural(past.interruptions, 'interruption')}"
        f"{f' ({endings})' if endings else ''}, "
        f"{wording.plural(efficiency.lost_steps(past), 'step')} done again"
    )


# What interruptions are called where they are counted.
ENDINGS = {"timeout": "at the time limit", "hang": "hanging"}


def next_command(run: Run, one: states.Status) -> str:
    """What to type next, given the state and the stage that it is about."""
    name, stage = runs.typed(run), one.stage
    look = f"python launch/logs.py {name}"
    again = {
        "prepare": _typed(run) if stage == "prepare" else "",
        "train": f"python launch/train.py --resume {name}",
        "evaluate": f"python launch/evaluate.py {name}",
        "infer": f"python launch/infer.py {name} IMAGE",
    }
    if one.state == "finished" and stage == "prepare":
        return f"python launch/train.py{_data_root(run)}"
    if one.state == "finished":
        more = f" · {again['evaluate']}" if one.evaluated is None and _is_mmseg(run) else ""
        return f"python launch/report.py {name}{more}"
    if one.state in ("failed", "stopped"):
        of = "" if stage == "train" else f" --job {stage}"
        whole = f"{look}{of}, fix it, then {again[stage]}"
        # The run trains with copies: editing the originals would change nothing.
        how = []
        if stage == "train" and _is_mmseg(run) and longer.begins_anew(run):
            how.append("the config by --set KEY=VALUE or --unset KEY; an edited file is another run's")
        if stage == "train" and _has_own_code(run):
            how.append(f"your code in the run's copy of it, {run.code}")
        return f"{whole} ({'; '.join(how)})" if how else whole
    if one.state == "cancelled":
        return again[stage]
    if one.state == "stuck" and (release := re.search(r"scontrol release \S+", one.words)):
        return f"{release[0]} · or, to end it: python launch/cancel.py {name}"
    if one.state == "stuck" and "held by" not in one.words:
        return f"python launch/cancel.py {name}, then {again[stage]}"
    if one.state == "queued" and not one.job:
        return _submission(run)
    return f"{look} -f · to end it: python launch/cancel.py {name}"


def _submission(run: Run) -> str:
    """The command that submits a run that has only been made."""
    try:
        return executors.named(run.request().executor).by_hand([run])
    except UserError:
        return f"python launch/train.py --resume {runs.typed(run)}"


def _is_mmseg(run: Run) -> bool:
    try:
        return not run.request().worker
    except UserError:
        return True


def _has_own_code(run: Run) -> bool:
    try:
        return bool(run.request().worker or run.modules())
    except (UserError, OSError):
        return False


def _typed(run: Run) -> str:
    """The command line that made a run, to be typed again."""
    try:
        command = run.request().command
    except UserError:
        command = []
    return shlex.join(["python", *(command or ["launch/prepare.py"])])


def _data_root(run: Run) -> str:
    """The --data-root option for a training on the data root just prepared; "" for the default one."""
    try:
        root = run.request().data_root
    except UserError:
        return ""
    return "" if root == str(runs.CHECKOUT / "data") else f" --data-root {shlex.quote(root)}"
