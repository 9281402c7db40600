"""`--wait`: follows a run to its end and returns the exit code of the outcome.

It only reads the run directory and asks Slurm, so Ctrl-C ends the waiting and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs import events
from jobs.run_directory import Run
from launch import slurm_queries

ASK_SECONDS = 10.0
"""How often Slurm is asked; events are read more often, they cost nothing."""


def wait(run: Run, last_stage: str, job: str, process: subprocess.Popen[bytes] | None = None) -> int:
    """Waits until `last_stage`, run as `job`, has ended; prints events as they come.

    Returns 0 if it ended well, 1 if not. A job that has left without a word is a failure.
    """
    begun = sum(1 for event in events.iterate(run.events) if event["event"] == "submitted")
    try:
        return _follow(run, last_stage, job, process, begun)
    except KeyboardInterrupt:
        print(
            f"\nThe run goes on without this command. How it stands: python launch/status.py {run.name}; "
            f"to end it: python launch/cancel.py {run.name}",
            file=sys.stderr,
        )
        raise


def _follow(run: Run, last_stage: str, job: str, process: subprocess.Popen[bytes] | None, begun: int) -> int:
    seen, submitted, asked = 0, 0, time.monotonic()
    line = _ProgressLine(run.path / "progress.json")
    jobs: dict[str, str] = {}
    while True:
        # Whether it lives is asked before its last words are read, so that none is missed.
        gone = process is not None and process.poll() is not None
        if process is None and time.monotonic() - asked > ASK_SECONDS:
            gone, asked = _left_the_queue(jobs.get(last_stage, job)), time.monotonic()
        records = events.read(run.events)
        for event in records[seen:]:
            if event["event"] == "submitted":
                submitted += 1
                jobs[event.get("stage", last_stage)] = event["job"]
            if event["event"] == "requeued" and event.get("successor"):
                jobs[event.get("stage", "train")] = event["successor"]
            if submitted < begun:
                continue
            line.clear()
            if text := _told(event):
                print(text, flush=True)
            code = _outcome(event, last_stage)
            if code is not None:
                return code
        seen = len(records)
        if gone:
            line.clear()
            return _after_it_has_gone(run, last_stage, jobs or {last_stage: job}, process)
        line.show()
        time.sleep(0.3)  # the pace of the display


def _outcome(event: dict[str, Any], last_stage: str) -> int | None:
    """The exit code if this event is the end of all there is to wait for, else None."""
    name, stage = event["event"], event.get("stage")
    if name in ("stopped", "cancelled"):
        return 1
    if name == "failed" and stage not in ("train", None):
        # A failed start of a training may be followed by another; `stopped` ends that.
        return 2 if event.get("exit_code") == 2 else 1
    # An inference says in its exit code whether each image could be read, so its end is waited for.
    ends = {"train": "finished", "evaluate": "evaluated", "prepare": "prepared"}
    if name == ends.get(last_stage) and (stage == last_stage or stage is None):
        return 0
    return None


def _told(event: dict[str, Any]) -> str:
    name, stage = event["event"], event.get("stage", "")
    if name == "evaluated":
        metrics = event["metrics"]
        figures = "  ".join(f"{key} {metrics[key]:.2f}" for key in ("mIoU", "mAcc", "aAcc") if key in metrics)
        return f"evaluated {event['checkpoint']}: {figures}\n  {event['path']}"
    hidden = {"time", "event", "stage", "job", "start", "hosts", "stacks", "pid"}
    words = [f"{key}={_short(value)}" for key, value in event.items() if key not in hidden]
    return f"{event['time'][11:19]} {stage:8} {name:11} {'  '.join(words)}".rstrip()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items() if not isinstance(item, dict))
    return str(value)


def _left_the_queue(job: str) -> bool:
    """Whether the last job of all has gone. A dependent one stays as long as it can still run."""
    answer = slurm_queries.ask([job], patience=60)
    if answer.problems and not answer.jobs:
        return False  # Slurm said nothing: no reason to give up
    return not answer.job(job).alive


def _after_it_has_gone(
    run: Run, last_stage: str, jobs: dict[str, str], process: subprocess.Popen[bytes] | None
) -> int:
    """The exit code of a run that has ended without an event that says how. UNKNOWN is no success."""
    if last_stage == "infer" and any(
        event["event"] == "finished" and event.get("stage") == "infer" for event in events.iterate(run.events)
    ):
        job = None if process is not None else _slurm(jobs).job(jobs["infer"])
        if job is None or job.state == "COMPLETED":
            return 0
        if job.exit_code.partition(":")[0] == "2":
            return 2
    how = "the run has ended unfinished"
    if process is None:
        answer = _slurm(jobs)
        states = ", ".join(f"{stage} job {id} {answer.job(id).state}" for stage, id in jobs.items())
        how = f"the run has left the queue unfinished: {states}"
    print(f"error: {how}; python launch/logs.py {run.name} tells why", file=sys.stderr)
    return 1


def _slurm(jobs: dict[str, str]) -> slurm_queries.Answer:
    return slurm_queries.ask(jobs.values(), patience=60)


class _ProgressLine:
    """The last line of a terminal, rewritten in place; nothing where there is no terminal."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shown = ""
        self.active = sys.stdout.isatty()

    def show(self) -> None:
        if not self.active:
            return
        try:
            now = json.loads(self.file.read_text())
        except (FileNotFoundError, ValueError):
            return
        total = f"/{now['max_steps']}" if now.get("max_steps") else ""
        text = f"{now.get('phase', '')} step {now.get('step')}{total}  loss {_short(now.get('loss'))}"
        if text != self.shown:
            print(f"\r\033[K{text}", end="", flush=True)
            self.shown = text

    def clear(self) -> None:
        if self.active and self.shown:
            print("\r\033[K", end="", flush=True)
            self.shown = ""
