"""A run directory: where each thing of a run lies, and `run.yaml`, the request it was made from.

This module and `events.py` are all that launchers and jobs share. Layout (docs/run-directory.md):

    run.yaml        the request: config, overrides, data root, resources, seed, cluster profile, versions
    config.py       the resolved MMSegmentation config, written by the first start
    code/           snapshot of jobs/ and configs/, and the link `data` to the data root; a job's working
                    directory, so that edits after submission change nothing and `data/...` in any config
                    means the data root
    checkpoints/    epoch_N.pth, iter_N.pth and a manifest beside each
    events.jsonl    what happened (events.py)
    metrics.jsonl   training and validation scalars by step
    job/            batch scripts, submitit's files, one log a rank
    eval/           one folder an evaluation
    report.html
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from jobs.run import files
from jobs.run.errors import UserError, one_line
from jobs.run.settings import RunSettings

MOST_SEED = 2**32 - 1
"""NumPy takes no larger one."""


def check_seed(seed: Any, where: str) -> None:
    """Raises UserError for a seed that no generator takes; what is no number is another's matter."""
    if isinstance(seed, int) and not 0 <= seed <= MOST_SEED:
        raise UserError(f"{where}: a seed must be 0 to {MOST_SEED}, not {seed}")


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the user asked for, resolved: the content of `run.yaml`."""

    name: str
    config: str
    """Path of the config below `code/`; "" for a run with a `worker`."""
    data_root: str
    """Absolute path that `data/` stands for in configs."""
    created: str
    set: dict[str, Any] = {}
    """`--set` overrides, dotted key -> value, as mmengine's `cfg_options`."""
    tuples: dict[str, str] = {}
    """Those of `set` that hold tuples, which YAML does not have, as Python writes them."""
    seed: int = 0
    nodes: int = 1
    gpus: int = 1
    """Ranks a node; processes on the CPU where there is no GPU."""
    executor: str = "local"
    """slurm or local."""
    checkpoint: str = "best"
    """What the dependent evaluation takes: best, last, or a path."""
    cluster: RunSettings = msgspec.field(default_factory=RunSettings)
    """The resolved cluster profile."""
    python: str = ""
    """The interpreter that runs the jobs."""
    command: list[str] = []
    """The command line that made the run."""
    versions: dict[str, str] = {}
    dataset: str = ""
    """What a preparation makes, as `--dataset` names it; "" is VOC."""
    verify: str = ""
    """quick or deep, if it only looks."""
    weights: list[str] | None = None
    """Pretrained weights that a preparation fetches, as configs refer to them; None if that is not told."""
    worker: list[str] = []
    """What trains instead of MMSegmentation: the program's path below `code/`, and its arguments."""
    sweep: str = ""
    """The name of the sweep that it is an element of."""

    @property
    def overrides(self) -> dict[str, Any]:
        """`set` with its tuples. Raises UserError for what is no plain Python value."""
        try:
            return self.set | {key: ast.literal_eval(text) for key, text in self.tuples.items()}
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UserError("run.yaml is damaged: `tuples` does not hold plain Python values") from None


NOT_THE_USERS = ("jobs", "launch", "configs", "data", "config_files", "package_configs")
"""Of a run's code/."""


class Run:
    """Paths of one run directory. Making one touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.request_file = self.path / files.REQUEST()
        self.config = self.path / files.CONFIG()
        self.code = self.path / files.CODE()
        self.checkpoints = self.path / files.CHECKPOINTS()
        self.events = self.path / files.EVENTS()
        self.metrics = self.path / files.METRICS()
        self.job = self.path / files.JOB()
        self.eval = self.path / files.EVAL()
        self.report = self.path / files.REPORT()

    @property
    def name(self) -> str:
        return self.path.name

    def modules(self) -> list[Path]:
        """The user's own modules in `code`, which has nothing but what its config needs: files, and packages'
        folders."""
        return [
            path
            for path in sorted(self.code.iterdir())
            if path.name not in NOT_THE_USERS and (path.suffix == ".py" or (path / "__init__.py").is_file())
        ]

    def request(self) -> Request:
        """Reads run.yaml. Raises UserError if it is missing or not a request."""
        try:
            data = yaml.safe_load(self.request_file.read_text(encoding="utf-8"))
            # Numbers in quotes count, as in a profile.
            cluster = data.pop("cluster", {}) if isinstance(data, dict) else {}
            request = msgspec.convert(data, Request)
            request.cluster = msgspec.convert(cluster, RunSettings, strict=False)
            msgspec.json.encode(request)  # not with a lone surrogate: that could not be shown
            return request
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a run directory: it has no run.yaml") from None
        except PermissionError:
            raise UserError(
                f"{self.request_file} cannot be read: it belongs to another user, who can share its model "
                f"(python launch/export.py {self.name} --out DIR) for infer.py to use"
            ) from None
        except (yaml.YAMLError, msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            why = one_line(error)
            if field := re.match(r"Object contains unknown field `(.*?)`", why):
                raise UserError(
                    f"{self.request_file} has a field {field[1]!r} that this version does not know: it was "
                    "written by a newer version; use that one"
                ) from None
            raise UserError(f"{self.request_file} is damaged: {why}") from None

    def write_request(self, request: Request) -> None:
        # libyaml's writer, which not every PyYAML has, takes a tenth of the time.
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        request.tuples = {key: repr(value) for key, value in request.set.items() if has_tuple(value)}
        # The run's own code may be older, and refuse a field that it does not know.
        content = {
            key: value
            for key, value in msgspec.to_builtins(request).items()
            if value is not None and (value or key not in ("tuples", "worker", "sweep"))
        }
        content["cluster"] = {
            key: value
            for key, value in content["cluster"].items()
            if value is not None or key not in ("evaluate", "infer")
        }
        try:
            text = yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True).encode()
        except UnicodeEncodeError:
            raise UserError(
                "an argument, or a path, has bytes that are not UTF-8, which run.yaml cannot hold: "
                "rename what it names"
            ) from None
        write_atomically(self.request_file, text, private=True)


def has_tuple(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return any(map(has_tuple, value.values() if isinstance(value, dict) else value))
    return isinstance(value, tuple)


def write_atomically(path: Path, content: bytes, durable: bool = True, private: bool = False) -> None:
    """Writes a file so that a reader, or a crash at any moment, sees the old content or the new, whole.

    `durable`: also if it is the machine that crashes, which takes as long as the disk does. `private`: for
    its owner's eyes alone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a killed writer's, with whatever permissions
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # nobody knows the other name
        del error.filename2  # set to None it would be told: 'PATH' -> None
        raise
    finally:
        with contextlib.suppress(OSError):  # which would hide why it could not be written
            temporary.unlink(missing_ok=True)


def newest_start(job: Path) -> int:
    """The highest N of the marks `start-N` in a run's job directory; 0 if there is none. Raises OSError where
    that cannot be read, which glob would take for an empty folder: nobody is to overlook a later start."""
    try:
        names = os.listdir(job)
    except FileNotFoundError:
        return 0
    marks = (re.fullmatch(files.START(N="([0-9]{1,9})"), name) for name in names)
    return max((int(mark[1]) for mark in marks if mark), default=0)


def newest_start_seen(job: Path) -> int:
    """`newest_start`; 0 also where that cannot be read: a file server that does not answer keeps no job from
    coming back, and no end from being told."""
    try:
        return newest_start(job)
    except OSError:
        return 0
