"""Shows where all runs stand, or one run's timeline: each start, why it ended, its jobs.

Slurm is asked at most twice, however many runs there are. A run without Slurm, or with one that does not
answer, is shown from its own events; what nobody can tell is called unknown.
"""

import argparse
import gc
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from jobs.run import environment, files

environment.enter()

import msgspec

from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.slurm import queries as slurm_queries
from jobs.slurm.queries import Answer, Job
from launch.observe import efficiency, history, states, tables
from launch.observe import wording as words
from launch.observe.history import History
from launch.submit import identity, runs

EXAMPLES = """examples:
  python launch/status.py                 all runs
  python launch/status.py --watch         again and again, until Ctrl-C
  python launch/status.py first           one run: its starts, jobs and where the time went
  python launch/status.py --json | jq '.runs[] | select(.state == "failed") | .name'
"""

COLUMNS = (
    *("run", "state", ">epoch", ">step", ">s/it", ">best mIoU", ">mIoU"),
    *(">interrupted", ">efficiency", ">left", "job"),
)
# What a narrow terminal does without, the least needed first; `status.py RUN` and --json have it all.
SPARE = ("job", ">step", ">mIoU", ">efficiency", ">s/it", ">interrupted", ">best mIoU", ">left", ">epoch")
STARTS = (">start", "how it ended", "began", ">lasted", ">from", ">to step", "on", "job")

ASK = 10.0
"""Seconds between two questions to Slurm of --watch, however often it looks at the runs."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name or path (default: all runs)")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help="refresh until Ctrl-C"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    arguments = parser.parse_args()
    gc.disable()  # thousands of events, and the process ends when they are shown
    if arguments.watch is not None:
        if arguments.watch <= 0:
            raise UserError(f"--watch {arguments.watch:g} must be more than 0 seconds")
        return watch(arguments)
    show(arguments, Slurm())
    return 0


class Slurm(NamedTuple):
    """How Slurm is asked."""

    ask: Callable[[Iterable[str]], Answer] = slurm_queries.ask
    incarnations: Callable[[Iterable[str]], dict[str, list[Job]]] = slurm_queries.incarnations


def show(arguments: argparse.Namespace, slurm: Slurm) -> None:
    now = time.time()
    if arguments.run:
        run = runs.find(arguments.run)
        print_one(run, now, arguments.json, slurm)
        return
    found, answer = all_statuses(now, slurm)
    if arguments.json:
        print(json.dumps({"runs": msgspec.to_builtins(found), "problems": answer.problems}))
        return
    if not found:
        print(f"no runs in {runs.runs_root()}; to begin one: python launch/train.py --help")
        return
    tables.show(COLUMNS, [cells(one) for one in found], [one.state for one in found], SPARE)
    for problem in answer.problems:
        print(f"note: {problem}")
    print("one run: python launch/status.py RUN · its log: python launch/logs.py RUN -f")


def watch(arguments: argparse.Namespace) -> int:
    """Shows it again and again; on a terminal in place, elsewhere only when something changed."""
    import contextlib
    import io

    before, slurm = "", patient()
    while True:
        gc.collect()
        if sys.stdout.isatty():
            tables.control("\033[2J\033[H")
            show(arguments, slurm)
        else:
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                show(arguments, slurm)
            if text.getvalue() != before:
                before = text.getvalue()
                print(before, end="", flush=True)
        time.sleep(arguments.watch)


def patient() -> Slurm:
    """For one who looks again and again: Slurm is asked every ASK seconds at most (of jobs that are new, at
    once), and whether a job has ended is not asked twice."""
    ended: dict[str, Job] = {}
    asked_of: set[str] = set()
    answer, asked = Answer(), -ASK

    def ask(ids: Iterable[str]) -> Answer:
        nonlocal answer, asked, asked_of
        wanted = set(ids)
        if wanted <= asked_of and time.monotonic() - asked < ASK:
            return answer
        answer = slurm_queries.ask(wanted - ended.keys())
        asked, asked_of = time.monotonic(), wanted
        for job in answer.jobs.values():
            if not job.alive and job.state != slurm_queries.UNKNOWN:
                ended[job.id] = job
        answer.jobs = ended | answer.jobs
        return answer

    remembered: dict[frozenset[str], tuple[float, dict[str, list[Job]]]] = {}

    def incarnations(ids: Iterable[str]) -> dict[str, list[Job]]:
        wanted = frozenset(ids)
        if wanted not in remembered or time.monotonic() - remembered[wanted][0] > ASK:
            remembered[wanted] = (time.monotonic(), slurm_queries.incarnations(wanted))
        return remembered[wanted][1]

    return Slurm(ask, incarnations)


def all_statuses(now: float, slurm: Slurm) -> tuple[list[states.Status], Answer]:
    """Every run and preparation, newest first, and what Slurm said (at most two calls)."""
    everything = [*runs.all_runs(runs.prepare_root()), *runs.all_runs()]
    pasts = [history.attempt(run) for run in everything]
    answer = slurm.ask(id for past in pasts if isinstance(past, History) for id in states.jobs_to_ask(past))
    found = [_status(run, past, answer, now) for run, past in zip(everything, pasts, strict=True)]
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [one for _, one in found], answer


def _status(run: Run, past: History | Exception, answer: Answer, now: float) -> tuple[float, states.Status]:
    """(when it was submitted, how it stands)."""
    if isinstance(past, Exception):
        return 0.0, states.unreadable(run, past)
    try:
        return past.submitted or past.last, states.status(run, past, answer, now)
    except Exception as error:
        return 0.0, states.unreadable(run, error)


def cells(one: states.Status) -> list[str]:
    """A row of the table."""
    return [
        one.name,
        one.words,
        _of(one.epoch, one.max_epochs),
        _of(one.step, one.max_steps),
        f"{one.seconds_per_step:.2f}" if one.seconds_per_step else "",
        f"{one.best_mIoU:.2f}" if one.best_mIoU is not None else "",
        f"{one.mIoU:.2f}" if one.mIoU is not None else "",
        f"{one.interruptions}×" if one.interruptions else "",
        f"{one.efficiency:.2f}" if one.efficiency is not None else "",
        words.span(one.eta_seconds) if one.eta_seconds else "",
        one.job,
    ]


def _of(done: int | None, total: int | None) -> str:
    if done is None:
        return ""
    return f"{done}/{total}" if total else str(done)


def print_one(run: Run, now: float, as_json: bool, slurm: Slurm) -> None:
    past = states.past_of(run)
    answer = identity.mine(run, past, slurm.ask(past.job_ids()))
    history.add_accounting(past, slurm.incarnations(past.job_ids()))
    one = states.status(run, past, answer, now)
    lives = one.state in ("running", "starting", "requeueing", "suspended")
    command = next_command(run, one)
    shares = efficiency.shares(past, now if lives else past.last)
    if as_json:
        data: dict[str, Any] = msgspec.to_builtins(one)
        data["starts"] = [
            {key: value for key, value in msgspec.to_builtins(start).items() if key != "marks"}
            for start in past.incarnations
        ]
        data["jobs"] = [_job(job, answer) for job in past.jobs.values()]
        data["seconds"] = msgspec.to_builtins(shares)
        data["problems"] = answer.problems
        data["next"] = command
        print(json.dumps(data))
        return
    print(f"{run.name}: {one.words}\n{run.path}")
    for line in _whole_reason(past, one):
        print(f"  {line}")
    facts = [
        ("epoch", _of(one.epoch, one.max_epochs)),
        ("step", _of(one.step, one.max_steps)),
        ("s/it", f"{one.seconds_per_step:.2f}" if one.seconds_per_step else ""),
        ("loss", f"{one.loss:.4g}" if one.loss is not None else ""),
        ("best mIoU", f"{one.best_mIoU:.2f}" if one.best_mIoU is not None else ""),
        ("mIoU", f"{one.mIoU:.2f}" if one.mIoU is not None else ""),
        ("left", words.span(one.eta_seconds) if one.eta_seconds else ""),
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
        rows = [_job(job, answer) for job in past.jobs.values()]
        tables.show(
            ("stage", "state", "job", "submitted", "after"),
            [
                [row["stage"], row["words"], row["job"], words.moment(row["submitted"]), row["after"]]
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
    """What the state's one line leaves out of an error's text."""
    if one.state not in ("failed", "stopped"):
        return []
    jobs = [job.why for job in past.jobs.values() if job.stage == one.stage]
    texts = [past.stopped, (past.failed.error or past.failed.reason) if past.failed else "", *jobs[-1:]]
    whole = next((text for text in texts if text), "")
    return whole.strip().splitlines() if len(whole.strip().splitlines()) > 1 else []


def _start(one: history.Incarnation, now: float) -> list[str]:
    return [
        str(one.start),
        one.why or ("running" if one.first_step else "starting"),
        words.moment(one.began),
        words.span((one.ended or now) - one.began),
        "" if one.resumed_step is None else str(one.resumed_step),
        "" if one.step is None else str(one.step),
        f"{','.join(one.hosts)} ({words.plural(one.world_size, 'rank')})",
        one.job,
    ]


def _job(job: history.StageJob, answer: Answer) -> dict[str, Any]:
    seen = answer.job(job.id)
    text, code = (
        job.state,
        {"started": "running", "submitted": "queued", "requeued": "requeueing"}.get(job.state),
    )
    if slurm_queries.is_slurm(job.id):
        why = f" ({seen.reason})" if seen.pending and seen.reason else ""
        text = f"{job.state}; Slurm: {seen.state}{why}"
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
        f"{name} {words.span(getattr(shares, name))} ({100 * getattr(shares, name) / shares.wall:.0f}%)"
        for name in efficiency.NAMES
        if getattr(shares, name) > 0
    ]
    print(f"\n{words.span(shares.wall)} in all: {', '.join(parts)}")
    kinds = Counter(one.ending for one in past.incarnations if one.interrupted)
    told = ", ".join(f"{count} {ENDINGS.get(ending, ending)}" for ending, count in kinds.items())
    print(
        f"efficiency (ETTR) {shares.ettr:.3f}; {words.plural(past.interruptions, 'interruption')}"
        f"{f' ({told})' if told else ''}, {words.plural(efficiency.lost_steps(past), 'step')} done again"
    )


# How an interruption is called where they are counted.
ENDINGS = {"timeout": "at the time limit", "hang": "hanging"}


def next_command(run: Run, one: states.Status) -> str:
    """What to type next, as the state and whose it is suggest."""
    name, stage = run.name, one.stage
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
        return f"python launch/report.py {name}" + (f" · {again['evaluate']}" if one.mIoU is None else "")
    if one.state in ("failed", "stopped"):
        of = "" if stage == "train" else f" --job {stage}"
        return f"{look}{of}, fix it, then {again[stage]}"
    if one.state == "cancelled":
        return again[stage]
    if one.state == "stuck":
        return f"python launch/cancel.py {name}, then {again[stage]}"
    if one.state == "queued" and not one.job:
        return f"sbatch {shlex.quote(str(run.job / files.SCRIPT(STAGE='train')))}"
    return f"{look} -f · to end it: python launch/cancel.py {name}"


def _typed(run: Run) -> str:
    """The command line that made a run, to be typed once more."""
    try:
        command = run.request().command
    except UserError:
        command = []
    return shlex.join(["python", *(command or ["launch/prepare.py"])])


def _data_root(run: Run) -> str:
    """The option that a training on a prepared data root needs; "" for the default one."""
    try:
        root = run.request().data_root
    except UserError:
        return ""
    return "" if root == str(runs.CHECKOUT / "data") else f" --data-root {shlex.quote(root)}"


if __name__ == "__main__":
    tables.guard()
    run_command(main)
