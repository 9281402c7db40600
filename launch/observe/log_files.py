"""Which files hold a run's logs, whose each is, and reading them while they grow."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from jobs.run import files, records
from jobs.run.directory import Run
from jobs.run.past import History
from launch.observe import wording

_LOCAL = re.compile(r"(local-\d+)-(\w+)_(\d+)_log\.(?:out|err)")
_RANK = re.compile(r"_(\d+)_log\.(?:out|err)")
TAIL_BYTES = 1 << 20


class LogFile(msgspec.Struct, frozen=True):
    path: Path
    job: str
    stage: str
    """prepare, train, evaluate, infer, export; "" if no event names the job."""
    rank: int | None
    """None: the batch script's own words."""

    @property
    def label(self) -> str:
        rank = "batch" if self.rank is None else f"rank {self.rank}"
        return f"{self.stage or 'job'} {self.job}, {rank}"


def find(run: Run, past: History, stage: str = "", rank: int | None = None) -> list[LogFile]:
    """The run's log files in the order of its jobs, the batch script's before its ranks'.

    `stage` and `rank` choose; a rank chosen leaves the batch scripts out.
    """
    stages = {job.id: job.stage for job in past.jobs.values()}
    stages |= {one.job: "train" for one in past.incarnations}
    order = {id: number for number, id in enumerate(stages)}
    found = []
    try:
        names = os.listdir(run.job)
    except FileNotFoundError:
        return []
    for name in names:
        file = _of(run.job / name, stages)
        if file and not file.path.is_file():
            continue  # a pipe, say, which would be waited for
        if file and (not stage or file.stage == stage) and (rank is None or file.rank == rank):
            found.append(file)
    last = len(order)
    found.sort(key=lambda f: (order.get(f.job, last), f.stage, -1 if f.rank is None else f.rank, f.path.name))
    return found


def _of(path: Path, stages: dict[str, str]) -> LogFile | None:
    """Whose log a file is, by its name: JOB_log.out, JOB_RANK_log.out or local-PID-STAGE_RANK_log.out.

    12_3_log.out is rank 3 of job 12, or the batch script of the array's element 12_3: the run's jobs decide.
    """
    if local := _LOCAL.fullmatch(path.name):
        return LogFile(path, local[1], local[2], int(local[3]))
    for job in sorted(stages, key=len, reverse=True):
        if path.name in (files.LOG(JOB=job), f"{job}_log.err"):
            return LogFile(path, job, stages[job], None)
        if path.name == files.RANK_LOG(JOB=job.removeprefix("local-"), RANK=0) and job.startswith("local-"):
            return LogFile(path, job, stages[job], None)  # submitit's own: what the chain itself said
        rest = path.name.removeprefix(job)
        if rest != path.name and (rank := _RANK.fullmatch(rest)):
            return LogFile(path, job, stages[job], int(rank[1]))
    unknown = re.fullmatch(r"([\w-]+?)(?:_(\d+))?_log\.(?:out|err)", path.name)
    if unknown is None:
        return None
    return LogFile(path, unknown[1], "", None if unknown[2] is None else int(unknown[2]))


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a file, of a long one without reading all of it; [] if it is gone."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            content = file.read()
    except FileNotFoundError:
        return []
    text = content.decode(errors="replace").splitlines()
    if size > TAIL_BYTES:
        text = text[1:]
    return text[-lines:] if lines else text


class Growing:
    """Reads the whole lines that were added to a file since the last time."""

    def __init__(self, path: Path, skip: bool = False) -> None:
        self.path = path
        self.position = path.stat().st_size if skip else 0

    def lines(self, last: bool = False) -> list[str]:
        """New lines; with `last` also one that has no end yet. A file that shrank is read from its start."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self.position:
                    self.position = 0
                file.seek(self.position)
                content = file.read()
        except FileNotFoundError:
            return []
        if not last:
            content = content[: content.rfind(b"\n") + 1]
        self.position += len(content)
        return content.decode(errors="replace").splitlines()


# How Python writes a warning: FILE:LINE: CATEGORY: TEXT, then the indented line of the source.
_WARNING = re.compile(r"(?P<file>\S*\.py):\d+: (?P<category>\w*Warning): (?P<text>.*)")
_DEPRECATED = re.compile(r"deprecat|will be (removed|changed)|in a future (release|version)", re.IGNORECASE)
# What differs between ranks in the same line of a log.
_STAMP = re.compile(r"^\[?\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d\S*\s*")


class Sieve:
    """Leaves out of logs what a reader does not need twice, or at all, and counts it: deprecation warnings
    of libraries, which only their developers can act on, and warnings that another rank has shown already.
    The files keep everything."""

    def __init__(self) -> None:
        self.shown: dict[str, Path] = {}
        """Warning -> the file that showed it."""
        self.deprecations = self.repeated = 0
        self._inside: set[Path] = set()
        """Files whose last line was a warning left out: an indented one after it belongs to it."""

    def take(self, file: Path, lines: Sequence[str]) -> list[str]:
        """Those of `file`'s next lines that are to be shown."""
        return [line for line in lines if self._keeps(file, line)]

    def _keeps(self, file: Path, line: str) -> bool:
        if file in self._inside and line.startswith("  ") and line.strip():
            self._inside.discard(file)  # the one line of source
            return False
        self._inside.discard(file)
        warning = _WARNING.search(line)
        if warning is None:
            return True
        if _is_deprecation(warning):
            self.deprecations += 1
        elif self.shown.setdefault(warning[0], file) != file:
            self.repeated += 1
        else:
            return True
        self._inside.add(file)
        return False

    def left_out(self) -> str:
        """What was left out, in words; "" if nothing."""
        parts = [
            wording.plural(self.deprecations, "deprecation warning") + " of libraries"
            if self.deprecations
            else "",
            wording.plural(self.repeated, "warning") + " that another rank shows, too"
            if self.repeated
            else "",
        ]
        return " and ".join(part for part in parts if part)


def _is_deprecation(warning: re.Match[str]) -> bool:
    ours = not re.search(r"(site|dist)-packages/|/lib/python3", warning["file"])
    category = warning["category"]
    named = category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
    return not ours and (named or bool(_DEPRECATED.search(warning["text"])))


def in_all(texts: Sequence[Sequence[str]]) -> set[str]:
    """The lines that stand in each of several texts, whenever they were written."""
    if len(texts) < 2:
        return set()
    return set.intersection(*({unstamped(line) for line in text} for text in texts)) - {""}


def unstamped(line: str) -> str:
    """A line of a log without the time it begins with."""
    return _STAMP.sub("", line).strip()


def first_error(run: Run, past: History, stage: str = "") -> list[str]:
    """The first error of the newest failure (of a job of `stage`, where one is asked for), with its traceback
    if a rank left one; [] without a failure."""
    failed = past.failed
    if failed is None or stage not in ("", failed.stage):
        return []
    start, rank = failed.start, failed.rank
    said = (("start", start), ("rank", rank), ("on", failed.host), ("after step", failed.step))
    where = ", ".join(f"{name} {value}" for name, value in said if value is not None)
    lines = [f"first error{f' ({where})' if where else ''}: {failed.error or failed.reason}"]
    left = records.read_json(run.job / files.ERROR(START=start, RANK=rank))
    if left.get("traceback"):
        lines += [f"  {line}" for line in str(left["traceback"]).rstrip().splitlines()[-20:]]
    if failed.log:
        lines.append(f"  its log: {run.path / failed.log}")
    return lines
