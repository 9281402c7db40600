"""A run's log files: finding them, whose each is, and reading them while they grow."""

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
    """prepare, train, evaluate, infer or export; "" if no event names the job."""
    rank: int | None
    """None for the batch script's own output."""

    @property
    def label(self) -> str:
        rank = "batch" if self.rank is None else f"rank {self.rank}"
        return f"{self.stage or 'job'} {self.job}, {rank}"


def find(run: Run, past: History, stage: str = "", rank: int | None = None) -> list[LogFile]:
    """The run's log files in the order of its jobs, the batch script's before its ranks'.

    `stage` and `rank` filter them; with a rank, the batch scripts' are left out.
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
            continue  # such as a pipe, on which reading would block
        if file and (not stage or file.stage == stage) and (rank is None or file.rank == rank):
            found.append(file)
    last = len(order)
    found.sort(key=lambda f: (order.get(f.job, last), f.stage, -1 if f.rank is None else f.rank, f.path.name))
    return found


def _of(path: Path, stages: dict[str, str]) -> LogFile | None:
    """Whose log a file is, from its name: JOB_log.out, JOB_RANK_log.out or local-PID-STAGE_RANK_log.out.

    12_3_log.out is rank 3 of job 12, or the batch script of array element 12_3, depending on the run's jobs.
    """
    if local := _LOCAL.fullmatch(path.name):
        return LogFile(path, local[1], local[2], int(local[3]))
    for job in sorted(stages, key=len, reverse=True):
        if path.name in (files.LOG(JOB=job), f"{job}_log.err"):
            return LogFile(path, job, stages[job], None)
        if path.name == files.RANK_LOG(JOB=job.removeprefix("local-"), RANK=0) and job.startswith("local-"):
            return LogFile(path, job, stages[job], None)  # submitit's: the output of the chain itself
        rest = path.name.removeprefix(job)
        if rest != path.name and (rank := _RANK.fullmatch(rest)):
            return LogFile(path, job, stages[job], int(rank[1]))
    unknown = re.fullmatch(r"([\w-]+?)(?:_(\d+))?_log\.(?:out|err)", path.name)
    if unknown is None:
        return None
    return LogFile(path, unknown[1], "", None if unknown[2] is None else int(unknown[2]))


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a file, without reading all of a long one; [] if it is gone."""
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
    """Reads the complete lines added to a file since the last read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def lines(self, last: bool = False) -> list[str]:
        """New lines; with `last` also an incomplete one. A file that has shrunk is read from its start."""
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
# The time at the start of a log's line, which differs between ranks.
_STAMP = re.compile(r"^\[?\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d\S*\s*")


class Sieve:
    """Leaves out of displayed logs, and counts, what nobody needs twice or at all: deprecation warnings of
    libraries, which only their developers can act on, and warnings that another rank has already shown."""

    def __init__(self) -> None:
        self.shown: dict[str, Path] = {}
        """Warning -> the file that showed it."""
        self.deprecations = self.repeated = 0
        self._inside: set[Path] = set()
        """Files whose last line was a warning that was left out: an indented line after it belongs to it."""

    def take(self, file: Path, lines: Sequence[str]) -> list[str]:
        """Those of the next `lines` of `file` that are to be shown."""
        return [line for line in lines if self._keeps(file, line)]

    def _keeps(self, file: Path, line: str) -> bool:
        if file in self._inside and line.startswith("  ") and line.strip():
            self._inside.discard(file)  # the warning's line of source
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
        """A summary of what was left out; "" if nothing was."""
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
    """The lines that all of several texts have, apart from their time stamps; empty for fewer than two."""
    if len(texts) < 2:
        return set()
    return set.intersection(*({unstamped(line) for line in text} for text in texts)) - {""}


def unstamped(line: str) -> str:
    """A line of a log without its time stamp."""
    return _STAMP.sub("", line).strip()


def first_error(run: Run, past: History, stage: str = "") -> list[str]:
    """The first error of the newest failure (of a job of `stage`, if given), with its traceback if a rank
    left one; [] without a failure."""
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
