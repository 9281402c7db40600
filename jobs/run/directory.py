"""A run directory: where each file of a run is, and `run.yaml`, the request it was made from.

Layout (docs/run-directory.md has all of it):

    run.yaml        the request: config, overrides, data root, resources, seed, cluster profile, versions
    config.py       the resolved MMSegmentation config, written by the first start code/           snapshot of
    jobs/, launch/, configs/, and the link `data` to the data root; a job's working
                    directory, so that edits after submission change nothing and `data/...` in any config
                    means the data root
    checkpoints/    epoch_N.pth, iter_N.pth and a manifest beside each
    events.jsonl    what happened (events.py)
    metrics.jsonl   training and validation scalars by step
    job/            batch scripts, submitit's files, one log per rank
    eval/           one folder per evaluation
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
"""The largest seed that NumPy accepts."""


def check_seed(seed: Any, where: str) -> None:
    """Raises UserError for a number or text that is no valid seed; other types are checked elsewhere."""
    if isinstance(seed, (str, float)) or (isinstance(seed, int) and not 0 <= seed <= MOST_SEED):
        raise UserError(f"{where}: a seed must be 0 to {MOST_SEED}, not {seed!r}")


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the user asked for, resolved: the content of `run.yaml`."""

    name: str
    config: str
    """Path of the config below `code/`; "" for a run with a `worker`."""
    source: str = ""
    """Where that was copied from, which messages name; "" in runs of older versions."""
    data_root: str
    """The absolute path that `data/` means in configs."""
    created: str
    set: dict[str, Any] = {}
    """`--set` overrides, dotted key -> value, as mmengine's `cfg_options`."""
    tuples: dict[str, str] = {}
    """Those of `set` that hold tuples, which YAML lacks, as Python literals."""
    seed: int = 0
    nodes: int = 1
    gpus: int = 1
    """Ranks per node; CPU processes where there is no GPU."""
    executor: str = "local"
    """slurm, local, or another module of launch/submit/executors."""
    checkpoint: str = "best"
    """What the dependent evaluation evaluates: best, last, or a path."""
    cluster: RunSettings = msgspec.field(default_factory=RunSettings)
    """The resolved cluster profile."""
    python: str = ""
    """The interpreter that runs the jobs."""
    command: list[str] = []
    """The command line that made the run."""
    versions: dict[str, str] = {}
    dataset: str = ""
    """The dataset that a preparation makes, as named for `--dataset`; "" means VOC."""
    verify: str = ""
    """quick or deep for a preparation that only verifies."""
    weights: list[str] | None = None
    """Pretrained weights that a preparation fetches, as configs refer to them; None if not recorded."""
    worker: list[str] = []
    """What trains instead of MMSegmentation: the program's path below `code/`, and its arguments."""
    sweep: str = ""
    """The name of the sweep that the run belongs to, if any."""

    @property
    def named(self) -> str:
        """The config's path as the user knows it."""
        return self.source or self.config

    @property
    def overrides(self) -> dict[str, Any]:
        """`set` with its tuples. Raises UserError for what is not a Python literal."""
        try:
            return self.set | {key: ast.literal_eval(text) for key, text in self.tuples.items()}
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UserError("run.yaml is damaged: `tuples` does not hold plain Python values") from None


NOT_THE_USERS = ("jobs", "launch", "configs", "data", "config_files", "package_configs")
"""Names in a run's code/ that are not modules of the user's."""


class Run:
    """The paths of one run directory. Creating the object touches nothing on disk."""

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
        """The user's own modules in `code`, which holds only what the config needs: files, and folders of
        packages."""
        return [
            path
            for path in sorted(self.code.iterdir())
            if path.name not in NOT_THE_USERS and (path.suffix == ".py" or (path / "__init__.py").is_file())
        ]

    def request(self) -> Request:
        """Reads run.yaml. Raises UserError if it is missing or not a request."""
        try:
            data = yaml.safe_load(self.request_file.read_text(encoding="utf-8"))
            # Quoted numbers count as numbers, as in a profile.
            cluster = data.pop("cluster", {}) if isinstance(data, dict) else {}
            request = msgspec.convert(data, Request)
            request.cluster = msgspec.convert(cluster, RunSettings, strict=False)
            msgspec.json.encode(request)  # raises for a lone surrogate, which could not be displayed
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
        # libyaml's writer, which some PyYAML builds lack, takes a tenth of the time.
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        request.tuples = {key: repr(value) for key, value in request.set.items() if has_tuple(value)}
        # The run's own code may be older, and refuse unknown fields.
        content = {
            key: value
            for key, value in msgspec.to_builtins(request).items()
            if value is not None and (value or key not in ("source", "tuples", "worker", "sweep"))
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
    """Writes a file so that a reader, or a crash at any moment, sees the old content or all of the new.

    `durable`: even if the machine crashes, which costs an fsync. `private`: readable only by its owner.
    Raises OSError, which names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed writer, with whatever permissions
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # not the temporary name
        del error.filename2  # set to None it would be printed: 'PATH' -> None
        raise
    finally:
        with contextlib.suppress(OSError):  # an error here would hide the reason
            temporary.unlink(missing_ok=True)


def newest_start(job: Path) -> int:
    """The highest N of the files `start-N` in a run's job directory; 0 if there is none. Raises OSError if
    the directory cannot be read, which glob would treat as empty: a later start must not be overlooked."""
    try:
        names = os.listdir(job)
    except FileNotFoundError:
        return 0
    marks = (re.fullmatch(files.START(N="([0-9]{1,9})"), name) for name in names)
    return max((int(mark[1]) for mark in marks if mark), default=0)


def newest_start_seen(job: Path) -> int:
    """`newest_start`, but 0 if the directory cannot be read: a file server that does not answer must not keep
    a job from coming back or an end from being reported."""
    try:
        return newest_start(job)
    except OSError:
        return 0
