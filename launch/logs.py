"""Prints a run's logs, the first error on top; with -f follows it across requeues, ranks and jobs.

Following ends with the run; Ctrl-C ends the following, never the run.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from jobs.run import environment

environment.enter()

from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.slurm import queries as slurm_queries
from launch.observe import history, log_files, states, tables
from launch.observe import wording as words
from launch.observe.log_files import Growing, LogFile
from launch.submit import runs

EXAMPLES = """examples:
  python launch/logs.py first                    the last lines of its newest job
  python launch/logs.py first -f                 follow it to its end
  python launch/logs.py first --rank 3 -n 200
  python launch/logs.py first --job evaluate
"""
LOOK = 0.3
"""Seconds between two looks at the files."""
ASK = 15.0
"""Seconds between two questions to Slurm."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run's name or path")
    parser.add_argument("-f", "--follow", action="store_true", help="follow it to its end")
    parser.add_argument("-n", "--lines", type=int, default=40, help="lines of each file (default 40; 0: all)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every line: libraries' deprecation warnings, each rank's repetitions",
    )
    parser.add_argument("--rank", type=int, help="only this rank (default: all)")
    parser.add_argument(
        "--job", choices=("prepare", "train", "evaluate", "infer"), help="only this job (default: the newest)"
    )
    arguments = parser.parse_args()
    if arguments.lines < 0:
        raise UserError(f"--lines {arguments.lines} must be 0 or more")
    run = runs.find(arguments.run)
    past = states.past_of(run)
    told = log_files.first_error(run, past)
    if told:
        print("\n".join(told))
    if arguments.follow:
        return follow(run, arguments, told)
    files = log_files.find(run, past, arguments.job or "", arguments.rank)
    if not arguments.job and files:
        files = [file for file in files if file.job == files[-1].job and file.stage == files[-1].stage]
    files = [file for file in files if file.path.stat().st_size]
    if not files:
        print(f"no log yet; python launch/status.py {run.name} says where it stands")
        return 0
    show(files, arguments.lines, arguments.all)
    print(f"next: python launch/logs.py {run.name} -f follows it; python launch/status.py {run.name}")
    return 0


def show(files: list[LogFile], lines: int, everything: bool) -> None:
    """The last `lines` lines of each file. What all ranks say is shown once, under the first of them."""
    sieve = log_files.Sieve()
    texts = {file.path: log_files.tail(file.path, 0) for file in files}
    if not everything:
        texts = {path: sieve.take(path, text) for path, text in texts.items()}
    ranks = [file for file in files if file.rank is not None]
    common = set() if everything else log_files.in_all([texts[file.path] for file in ranks])
    for file in files:
        print(f"==> {file.label} ({file.path})")
        text = texts[file.path]
        if common and file.rank is not None and file is not ranks[0]:
            text = [line for line in text if log_files.unstamped(line) not in common]
            print(
                f"    (without {words.plural(len(texts[file.path]) - len(text), 'line')} that all ranks say)"
            )
        print("\n".join(text[-lines:] if lines else text))
    left = sieve.told()
    if left:
        print(f"left out: {left}; --all shows them")


def follow(run: Run, arguments: argparse.Namespace, told: list[str]) -> int:
    """Prints what there is, then what comes, until the run (or the job asked for) has ended.

    `told`: the first error, where it was shown already. Returns 0 if it ended well, else 1.
    """
    seen: dict[Path, Growing] = {}
    sieve = log_files.Sieve()
    events = Growing(run.events)
    begun = time.monotonic()
    asked, state = -ASK, None
    while True:
        past = history.read(run)
        open_jobs = states.jobs_to_ask(past)
        if time.monotonic() - asked > ASK or not open_jobs:  # then nobody need be asked
            answer = slurm_queries.ask(open_jobs)
            asked = time.monotonic()
            state = states.judge(run, past, answer, history.progress(run), time.time())
        # Judged before the last look, so that the last lines are not missed.
        ended = state is not None and not state.lives and state.code != "stuck"
        trained = arguments.job == "train" and past.finished is not None
        ended = ended or trained
        files = log_files.find(run, past, arguments.job or "", arguments.rank)
        for file in files:
            if file.path not in seen:
                first = time.monotonic() - begun < LOOK / 2 or not seen
                seen[file.path] = growing = Growing(file.path)
                there = _sifted(sieve, file, growing.lines(), arguments.all)
                for line in there[-arguments.lines :] if first and arguments.lines else there:
                    print(_prefix(file, len(files) > 1) + line, flush=True)
        for file in files:
            for line in _sifted(sieve, file, seen[file.path].lines(last=ended), arguments.all):
                print(_prefix(file, len(files) > 1) + line, flush=True)
        for line in events.lines():
            text = _told(line)
            if text:
                print(text, flush=True)
        if ended and state is not None:
            error = log_files.first_error(run, history.read(run))
            if error and error != told:
                print("\n".join(error))
            left = sieve.told()
            if left:
                print(f"-- left out: {left}; --all shows them")
            print(f"-- {state.words}; next: python launch/status.py {run.name}")
            return 0 if trained or state.code == "finished" else 1
        time.sleep(LOOK)


def _sifted(sieve: log_files.Sieve, file: LogFile, lines: list[str], everything: bool) -> list[str]:
    return lines if everything else sieve.take(file.path, lines)


def _prefix(file: LogFile, several: bool) -> str:
    if not several:
        return ""
    return f"[{file.stage or file.job} {'batch' if file.rank is None else file.rank}] "


WORDS = {
    "started": "start {start} on {hosts}",
    "resumed": "goes on from step {step}",
    "preempted": "preempted, saved at step {step}",
    "hang": "no progress for {seconds} s",
    "suspended": "goes on after {seconds} s for which it was suspended",
    "failed": "failed: {reason}",
    "requeued": "requeued ({how})",
    "superseded": "ended: start {by} of the run goes on instead",
    "stopped": "stopped: {reason}",
    "cancelled": "cancelled",
    "finished": "training finished",
    "evaluated": "evaluated: {metrics}",
}


def _told(line: str) -> str:
    """An event that changes how the run stands, as a line between those of the logs."""
    try:
        event: Any = json.loads(line)
        if event["event"] == "failed":
            event["reason"] = event.get("error") or event["reason"]
        text = WORDS[event["event"]].format(**event)
        return f"-- {event['time'][:19]} {event.get('stage', '')} {text}"
    except (ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    tables.guard()
    run_command(main)
