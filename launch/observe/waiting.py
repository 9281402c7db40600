"""`--wait`: follows a run to its end and returns the exit code for the outcome.

It only reads the run directory and queries Slurm, so Ctrl-C ends nothing but the waiting.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from typing import Any

from jobs.run import events, files, story
from jobs.run.directory import Run
from jobs.run.errors import MALFORMED
from jobs.run.exit_codes import USER_ERROR
from jobs.slurm import login as slurm
from jobs.slurm import queries as slurm_queries
from launch.observe import evaluation_table as figures
from launch.observe import history, tables, wording
from launch.submit import runs

ASK_SECONDS = 10.0
"""Seconds between queries to Slurm; events are read more often, because that costs nothing."""


def wait(
    run: Run, jobs: dict[str, str], process: subprocess.Popen[bytes] | None = None, as_json: bool = False
) -> int:
    """Waits until the last of `jobs` (stage -> job id, as submitted) has ended; prints events as they come,
    on standard error with `as_json`, since standard output then holds JSON for a program.

    Returns 0 if it ended well, 1 if not, 2 for a mistake of the user's. A job that has left the queue without
    an event has failed. Events of the run's other jobs (an evaluation or inference by hand, an earlier job)
    do not count as its end.
    """
    try:
        return _follow(run, _Own(run, jobs), process, as_json)
    except KeyboardInterrupt:
        print(
            "\nThe run goes on without this command. To see how it is doing: python launch/status.py "
            f"{runs.typed(run)}; to end it: python launch/cancel.py {runs.typed(run)}",
            file=sys.stderr,
        )
        raise


class _Own:
    """The jobs that are waited for: those submitted, and the successors that replaced them."""

    def __init__(self, run: Run, jobs: dict[str, str]) -> None:
        self.run = run
        self.current = dict(jobs)
        self.last_stage = list(jobs)[-1]
        self.ids = set(jobs.values())
        self.submitted = False

    def takes(self, event: dict[str, Any]) -> bool:
        """Whether an event is about these jobs and after their submission; notes a successor."""
        job = event.get("job")
        if job is None:  # about the whole run, such as `cancelled`
            return self.submitted
        if job not in self.ids and self.submitted and "train" in self.current:
            self._in_advance(self.current["train"])
        if job not in self.ids:
            return False
        self.submitted = True
        if event["event"] == "requeued" and (successor := event.get("successor")):
            self._add(event.get("stage", "train"), successor)
        return True

    def last(self) -> str:
        """The id of the job that will end last."""
        job = self.current[self.last_stage]
        return self._in_advance(job) if self.last_stage == "train" else job

    def _add(self, stage: str, successor: str) -> None:
        self.ids.add(successor)
        self.current[stage] = successor

    def _in_advance(self, job: str) -> str:
        """The job that continues `job` if that is killed, as a file says while it waits; else `job`."""
        while (following := history.reserve(self.run, job)) is not None:
            self.ids.add(following)
            job = following
        return job


def _follow(run: Run, own: _Own, process: subprocess.Popen[bytes] | None, as_json: bool) -> int:
    seen, asked, mistake = 0, time.monotonic(), False
    line = _ProgressLine(run)
    line.active = line.active and not as_json
    to = sys.stderr if as_json else sys.stdout
    while True:
        # Check whether it is alive before reading its last events, so that none is missed.
        last = own.last()
        gone = process is not None and process.poll() is not None
        if process is None and time.monotonic() - asked > ASK_SECONDS:
            gone, asked = _left_the_queue(last), time.monotonic()
        records = events.read(run.events)
        for event in records[seen:]:
            if not own.takes(event):
                continue
            line.clear()
            if text := _line_of(event):
                print(text, file=to, flush=True)
            code = _outcome(event, own.last_stage, mistake)
            if event["event"] == "failed":
                mistake = event.get("exit_code") == USER_ERROR
            if code is not None:
                if process is not None:
                    process.wait()  # the report, for example, is written after the last event
                return code
            line.stage, line.job = event.get("stage", line.stage), event.get("job", line.job)
        seen = len(records)
        if gone and own.last() == last:  # else it has named a successor
            line.clear()
            return _after_it_has_gone(run, own, process)
        line.show()
        time.sleep(0.3)  # the refresh interval of the display


def _outcome(event: dict[str, Any], last_stage: str, mistake: bool) -> int | None:
    """The exit code if this event ends the waiting, else None. `mistake`: the last start of the training
    failed because of a mistake of the user's."""
    name, stage = event["event"], event.get("stage")
    if name in ("stopped", "cancelled"):
        return USER_ERROR if mistake and name == "stopped" else 1
    if name == "failed" and stage not in ("train", None):
        # A failed start of a training may be followed by another; `stopped` ends that.
        return USER_ERROR if event.get("exit_code") == USER_ERROR else 1
    # An inference's exit code says whether every image could be read, so its process or job is waited for.
    ends = {"train": {"finished"}, "evaluate": {"evaluated"}, "prepare": {"prepared", "verified"}}
    if name in ends.get(last_stage, ()) and (stage == last_stage or stage is None):
        return 0
    return None


def _line_of(event: dict[str, Any]) -> str:
    name, stage = event["event"], event.get("stage", "")
    if name == "evaluated":
        return figures.summary(event)
    hidden = {"time", "event", "stage", "job", "start", "hosts", "stacks", "pid", "metric", "less"}
    fields = [f"{key}={_short(value)}" for key, value in event.items() if key not in hidden]
    return f"{event['time'][11:19]} {stage:8} {name:11} {'  '.join(fields)}".rstrip()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items() if not isinstance(item, dict))
    return str(value)


def _left_the_queue(job: str) -> bool:
    """Whether the last job has left the queue. A dependent one stays in it as long as it can still run.

    squeue alone decides: a job that it no longer lists has gone, whether or not sacct can tell how it ended.
    """
    answer = slurm_queries.ask([job], patience=60)
    if any(problem.startswith("squeue") for problem in answer.problems):
        return False  # no answer: no reason to give up
    return not answer.job(job).alive


def _after_it_has_gone(run: Run, own: _Own, process: subprocess.Popen[bytes] | None) -> int:
    """The exit code for a run that ended without an event that says how. UNKNOWN is not a success."""
    last = own.last()
    alone = own.last_stage in ("infer", "export")
    finished = alone and bool(story.read(run.events).finishes_of(own.last_stage, last))
    how, code = "the run has ended unfinished", 1
    if process is None:
        answer = slurm_queries.ask(own.current.values(), patience=60)
        finished = finished and answer.job(last).state == "COMPLETED"
        states = ", ".join(f"{stage} job {id} {answer.job(id).state}" for stage, id in own.current.items())
        how = f"the run has left the queue unfinished: {states}"
        code = 2 if _exit_code(answer.job(last)) == "2" else 1  # such as a wrong option
    if finished:
        return 0
    print(f"error: {how}; python launch/logs.py {runs.typed(run)} shows why", file=sys.stderr)
    return code


def _exit_code(job: slurm_queries.Job) -> str:
    """The exit code of a failed job; "" if unknown, as while squeue still lists the job."""
    if job.exit_code or job.state != "FAILED":
        return job.exit_code.partition(":")[0]
    try:
        shown = slurm.call("scontrol", "-o", "show", "job", job.id, patience=5)
    except slurm.SlurmError:
        return ""
    found = re.search(r"\bExitCode=(\d+):", shown)
    return found[1] if found else ""


class _ProgressLine:
    """A progress line at the bottom of the terminal, rewritten in place; nothing without a terminal."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stage = self.job = ""
        """The stage and job of the last event."""
        self.shown = ""
        self.active = sys.stdout.isatty()

    def show(self) -> None:
        if not self.active:
            return
        text = self._training() if self.stage == "train" else self._last_words()
        text = text[: shutil.get_terminal_size().columns - 1]
        if text and text != self.shown:
            tables.control(f"\r\033[K{wording.safe(text)}")
            self.shown = text

    def _training(self) -> str:
        try:
            now = json.loads((self.run.path / files.PROGRESS()).read_text())
            total = f"/{now['max_steps']}" if now.get("max_steps") else ""
            loss = f"  loss {_short(now['loss'])}" if "loss" in now else ""
            return f"{now.get('phase', '')} step {now.get('step')}{total}{loss}"
        except (FileNotFoundError, *MALFORMED):
            return ""

    def _last_words(self) -> str:
        """The last log line of rank 0 of any other job than a training: it has one every few seconds."""
        names = (
            files.RANK_LOG(JOB=self.job, RANK=0),
            files.LOCAL_LOG(LOCALJOB=self.job, STAGE=self.stage, RANK=0),
        )
        for file in (self.run.job / name for name in names):
            if self.job and file.is_file():
                with file.open("rb") as log:
                    log.seek(max(0, file.stat().st_size - 1000))
                    lines = log.read().decode(errors="replace").split("\n")
                return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def clear(self) -> None:
        if self.active and self.shown:
            tables.control("\r\033[K")
            self.shown = ""
