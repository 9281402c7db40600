"""Cluster profiles: `configs/clusters/NAME.yaml`, and how a job's settings come together.

A setting is looked up on the command line, then in the profile's section for the job (prepare, train,
evaluate, infer, export), then at the profile's top, then in the defaults (below, and of
jobs/run/settings.py); each keeps its source, which `--dry-run` and the batch script show. docs/clusters.md
explains every key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from jobs.run import output, secrets, staged, trackers
from jobs.run.errors import UserError, one_line
from jobs.run.settings import Container, Notify, Settings
from jobs.run.stages import LEAVING
from jobs.slurm import successor
from launch.submit import executors

CLUSTERS = Path(__file__).resolve().parents[2] / "configs" / "clusters"
STAGES = ("prepare", "train", "evaluate", "infer", "export")


DEFAULTS: dict[str, dict[str, Any]] = {
    # Reading two archives takes one thread and some I/O.
    "prepare": {"gres": "none", "gpus": 1, "cpus_per_gpu": 4},
    "train": {},
    "evaluate": {},
    "infer": {},
    "export": {},
}

# For these, only the job's own section counts: a CPU job does not ask for GPUs because trainings do, and an
# inference is one process.
NOT_FROM_TOP = {
    "prepare": {"gres", "gpu_type", "gpus", "cpus_per_gpu", "nodes", "container"},
    "evaluate": {"nodes"},
    "infer": {"gpus", "nodes"},
    "export": {"gpus", "nodes"},
}

# Options that the launcher sets itself or that break what it promises -> what to use instead. sbatch accepts
# any unique prefix of an option's name, so prefixes of these are refused, too.
OWN_OPTIONS = {
    "account": "`account`",
    "array": "--sweep",
    "chdir": "nothing: a job runs in its run directory",
    "clusters": "the environment variable SLURM_CLUSTERS, by which status.py asks the same cluster",
    "constraint": "`constraint`",
    "container": "`container`",
    "cpus-per-gpu": "`cpus_per_gpu`",
    "cpus-per-task": "`cpus_per_gpu`",
    "dependency": "nothing: the launcher sets it",
    "error": "nothing: logs lie in the run directory",
    "exclude": "`exclude`",
    "export": "`env`",
    "export-file": "`env`",
    "gpus": "`gpus`",
    "gpus-per-node": "`gpus`",
    "gpus-per-task": "`gpus`",
    "help": "nothing: with it nothing is submitted",
    "job-name": "--run",
    "kill-on-invalid-dep": "nothing: the launcher sets it",
    "mem": "`memory`",
    "no-requeue": "nothing: a successor job is submitted where requeueing is not allowed",
    "nodes": "`nodes`",
    "ntasks": "`nodes` and `gpus`",
    "ntasks-per-node": "`gpus`",
    "open-mode": "nothing: logs are appended to",
    "output": "nothing: logs lie in the run directory",
    "parsable": "--json",
    "partition": "`partition`",
    "qos": "`qos`",
    "quiet": "nothing: sbatch's answer names the job",
    "requeue": "nothing: it is always set",
    "reservation": "`reservation`",
    "signal": "`signal_delay`",
    "tasks-per-node": "`gpus`",
    "test-only": "--dry-run",
    "time": "`time`",
    "usage": "nothing: with it nothing is submitted",
    "version": "nothing: with it nothing is submitted",
    "wait": "--wait",
    "wrap": "`setup`",
}
# ASCII: \d alone matches the digits of all scripts, which Slurm does not read.
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE", re.ASCII)
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE | re.ASCII)
_NODES = re.compile(r"([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?", re.ASCII)

MOST = {"gpus": 1024, "cpus_per_gpu": 4096, "hang_minutes": 525_600}

SCRIPT_VARIABLES = {"run", "python", "host_python", "checkout", "name", "job", "logs", "code", "next"}
"""Shell variables of a batch script (launch/submit/batch_script.py)."""
_NOT_FOR_ENV = re.compile(
    # bash's own, which are read-only or which it does not work without.
    "BASHOPTS|BASH_VERSINFO|EUID|PPID|SHELLOPTS|UID|IFS"
    # What tells a job who it is.
    "|BATON_.*|SLURM_(JOB|ARRAY|STEP|PROCID|LOCALID|NODEID|NTASKS|NPROCS|NNODES|TASKS|RESTART|CPUS_PER).*"
)


class Resolved(msgspec.Struct, kw_only=True):
    """One job's settings, and the source of each that was set."""

    profile: str
    executor: str
    stage: str
    settings: Settings
    sources: dict[str, str]
    hints: list[str] = []

    @property
    def nodes(self) -> tuple[int, int]:
        """(fewest, most) nodes."""
        match = _NODES.fullmatch(self.settings.nodes)
        assert match is not None  # checked when it was resolved
        return int(match[1]), int(match[2] or match[1])


class Profile(msgspec.Struct, kw_only=True):
    """A profile as read: layers of raw values, not yet merged for a job."""

    name: str
    executor: str
    source: str
    top: dict[str, Any] = {}
    stages: dict[str, dict[str, Any]] = {}


def load(name: str, executor_without: str = "local") -> Profile:
    """The profile NAME (or a path to a .yaml file); "" means the built-in one for `executor_without`.

    Raises UserError for an unknown name, an unreadable file and every unknown key, with a suggestion.
    """
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else CLUSTERS / f"{name}.yaml"
    if not name or (name in ("local", "slurm") and not file.is_file()):
        executor = name or executor_without
        return Profile(name=executor, executor=_executor(executor, executor), source="default")
    import yaml

    try:
        if output.special(file):
            raise ValueError("it is a device or a pipe")
        # Every scalar as typed: YAML 1.1 would read 24:00:00 as 86400 and `no` as false.
        raw = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)
        msgspec.json.encode(raw)  # raises for a lone surrogate, which no script could hold
    except FileNotFoundError:
        known = sorted({path.stem for path in CLUSTERS.glob("*.yaml")} | {"local", "slurm"})
        raise UserError(
            f"there is no cluster profile {name!r}{_suggest(name, known)}; there are {', '.join(known)}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{_short(file)} cannot be read: {one_line(error)}") from None
    return parse(raw or {}, _short(file), file.stem)


def parse(raw: Any, source: str, name: str) -> Profile:
    """A profile from the mapping in its YAML file (all scalars as strings). Raises UserError."""
    if not isinstance(raw, dict):
        raise UserError(f"{source} is not a cluster profile: it holds a {type(raw).__name__} instead of keys")
    top = {key: value for key, value in raw.items() if key not in STAGES and key != "executor"}
    _check_keys(top, source, "", extra=("executor", *STAGES))
    stages: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        section = raw.get(stage) or {}
        if not isinstance(section, dict):
            raise UserError(f"{source}: `{stage}` must hold keys of its own, not {section!r}")
        _check_keys(section, source, f" in `{stage}`")
        stages[stage] = {key: value for key, value in section.items() if value != ""}
    profile = Profile(
        name=name,
        executor=_executor(raw.get("executor", "slurm"), source),
        source=source,
        top={key: value for key, value in top.items() if value != ""},
        stages=stages,
    )
    for stage in STAGES:  # finds a wrong value now, not when the evaluation is submitted
        resolve(profile, stage, {})
    return profile


def resolve(
    profile: Profile, stage: str, chosen: dict[str, Any], common: dict[str, Any] | None = None
) -> Resolved:
    """The settings of one job. `chosen` comes from the command line. Raises UserError for a wrong value.

    `common` does too, but was meant for another job of the same command (the training before an evaluation):
    the profile's section for this job wins over it.
    """
    own = NOT_FROM_TOP.get(stage, set())
    layers = [
        (DEFAULTS[stage], "default"),
        ({key: value for key, value in profile.top.items() if key not in own}, profile.source),
        ({key: value for key, value in (common or {}).items() if key not in own}, "command line"),
        (profile.stages.get(stage, {}), f"{profile.source} ({stage})"),
        (chosen, "command line"),
    ]
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer, source in layers:
        for key, value in layer.items():
            if key in ("env", "secrets", "sbatch"):
                _check_mapping(value, key, source)
                sources |= {f"{key}.{name}": source for name in value}
                value = {**merged.get(key, {}), **value}
            else:
                sources[key] = source
            merged[key] = value
            _convert({key: value}, source)
    settings = _convert(merged, profile.source)
    _check_values(settings, sources)
    if stage in LEAVING:
        _check_end(settings, sources)
    return Resolved(
        profile=profile.name, executor=profile.executor, stage=stage, settings=settings, sources=sources
    )


def _executor(value: Any, source: str) -> str:
    known = executors.names()
    if value in known:
        return str(value)
    raise UserError(f"{source}: `executor` is {' or '.join(known)}, not {value!r}")


def _check_keys(section: dict[str, Any], source: str, where: str, extra: tuple[str, ...] = ()) -> None:
    known = [*Settings.__struct_fields__, *extra]
    for key in section:
        if key not in known:
            hint = _suggest(str(key), known) or "; an sbatch option goes below `sbatch:`"
            raise UserError(f"{source}: unknown key {key!r}{where}{hint}")
    for name, type in (("container", Container), ("notify", Notify)):
        inner = section.get(name)
        for key in inner if isinstance(inner, dict) else ():
            if key not in type.__struct_fields__:
                hint = _suggest(str(key), list(type.__struct_fields__))
                raise UserError(f"{source}: unknown key {key!r} in `{name}`{where}{hint}")


def _check_mapping(value: Any, key: str, source: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise UserError(f"{source}: `{key}` must hold names with values")


def _convert(values: dict[str, Any], source: str) -> Settings:
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        # msgspec ends with "- at `$.time`".
        said = str(error).replace("`$.", "`")
        if (place := re.search(r"Invalid enum value .* - at `([\w.]+)", said)) is not None:
            said += f"; it may be {', '.join(_choices(place[1]))}"
        raise UserError(f"{source}: {said}") from None


def _choices(key: str) -> list[str]:
    """The words that a setting may be; `key` may be nested, as container.kind is."""
    named: Any = Settings
    for name in key.split("."):
        struct = next(part for part in _parts(named) if hasattr(part, "__struct_fields__"))
        named = get_type_hints(struct)[name]
    return [word for word in _parts(named) if isinstance(word, str) and word]


def _parts(of: Any) -> list[Any]:
    """The parts of a type at any depth: classes, and the words of its literals."""
    inner = get_args(of)
    return [part for one in inner for part in _parts(one)] if inner else [of]


def _check_end(settings: Settings, sources: dict[str, str]) -> None:
    """Raises UserError for a job that would be told to exit as soon as it runs, at every start."""
    limit = 60 * (successor.minutes(settings.time or "") or 0)  # 0 means no limit to Slurm, too
    if 0 < limit <= settings.signal_delay:
        raise UserError(
            f"{sources['time']}: `time` {settings.time} is not longer than `signal_delay` (the "
            f"{settings.signal_delay} s before its end at which a job saves and leaves), so the job would "
            "do nothing: give a longer time, or a shorter signal_delay"
        )


def _check_values(settings: Settings, sources: dict[str, str]) -> None:
    def wrong(key: str, why: str) -> UserError:
        """`key`: a setting, or a name in a mapping, such as env.NAME."""
        own = [source for name, source in sources.items() if name.startswith(f"{key}.")]
        source = sources.get(key) or (own[-1] if own else "default")
        return UserError(f"{source}: `{key.partition('.')[0]}` {why}")

    if settings.time and not _TIME.fullmatch(settings.time):
        raise wrong(
            "time", f"is not a time that Slurm reads: {settings.time!r}; write HH:MM:SS or D-HH:MM:SS"
        )
    if settings.memory and not _MEMORY.fullmatch(settings.memory):
        raise wrong("memory", f"is not an amount of memory: {settings.memory!r}; write it as 64G")
    nodes = _NODES.fullmatch(settings.nodes)
    if not nodes or int(nodes[2] or nodes[1]) < int(nodes[1]):
        raise wrong("nodes", f"must be 1 or more, or a range such as 1-2, not {settings.nodes!r}")
    for key in ("gpus", "cpus_per_gpu", "hang_minutes"):
        if not 1 <= getattr(settings, key) <= MOST[key]:
            raise wrong(key, f"must be 1 to {MOST[key]:,}, not {getattr(settings, key)}")
    if not 0 <= settings.signal_delay <= 65535:
        raise wrong("signal_delay", f"must be 0 to 65535 seconds, not {settings.signal_delay}")
    for name in settings.track:
        if name not in trackers.NAMES:
            hint = _suggest(name, list(trackers.NAMES))
            raise wrong(
                "track", f"names no service that is known: {name!r}{hint}; {', '.join(trackers.NAMES)}"
            )
    _check_stage(settings, wrong)
    for where in ("env", "secrets"):
        for key in getattr(settings, where):
            if not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII):
                raise wrong(f"{where}.{key}", f"has a name that no shell takes: {key!r}")
            if key in SCRIPT_VARIABLES or _NOT_FOR_ENV.fullmatch(key):
                raise wrong(f"{where}.{key}", f"must not set {key!r}: the job itself uses that name")
    for key, lines in (
        ("setup", settings.setup),
        ("srun", settings.srun),
        ("container", settings.container.options if settings.container else []),
        ("sbatch", [f"{key}={value}" for key, value in settings.sbatch.items()]),
    ):
        if name := next((found for line in lines if (found := secrets.in_text(line))), ""):
            raise wrong(key, f"holds a secret in clear ({name}): give it as secrets: {{{name}: FILE}}")
    for key in settings.sbatch:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise wrong(f"sbatch.{key}", f"has {key!r}: write sbatch's long option without its dashes")
        if instead := _own_option(key, settings):
            instead = f"use {instead}".removeprefix("use nothing: ")
            raise wrong(f"sbatch.{key}", f"must not set {key!r}: {instead}")
    for field in settings.__struct_fields__:
        value = getattr(settings, field)
        if field == "setup":  # shell lines may have tabs
            value = [line.replace("\t", " ") for line in value]
        if (bad := _with_control(value)) is None:
            continue
        # If an item held several commands, only a failure of the last would count.
        one_each = "; give each line an item of its own" if field == "setup" else ""
        raise wrong(field, f"holds a line break or control character: {bad!r}{one_each}")


def _check_stage(settings: Settings, wrong: Callable[[str, str], UserError]) -> None:
    try:
        if settings.stage:
            staged.check(settings.stage)
    except UserError as error:
        raise wrong("stage", str(error)) from None
    if settings.environment and not settings.stage:
        raise wrong("environment", "needs `stage`: a folder of the nodes' own, such as $TMPDIR")


def _own_option(key: str, settings: Settings) -> str | None:
    """What to use instead of sbatch's option `key`; None if it may be used."""
    if key == "gres" and settings.gres == "gres":
        return "`gpus` and `gpu_type`, or `gres: gpus-per-node` to have --gres for something else"
    if key in OWN_OPTIONS:
        return OWN_OPTIONS[key]
    return next((instead for own, instead in OWN_OPTIONS.items() if own.startswith(key)), None)


def _with_control(value: Any) -> str | None:
    if isinstance(value, str):
        return value if has_control(value) else None
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((bad for item in value if (bad := _with_control(item))), None)
    if isinstance(value, Container):
        return _with_control([value.image, *value.mounts, *value.options])
    return None


def has_control(text: str) -> bool:
    """Whether it has a line break or another control character, which would break a line of a script."""
    return any(ord(character) < 32 or ord(character) == 127 for character in text)


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(CLUSTERS.parent.parent))
    except ValueError:
        return str(path)
