"""Options that all submitting commands share, and what they result in: the profile, each job's settings."""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from jobs.catalog import pretrained
from jobs.run import checkpoint_files, output, secrets
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from launch.submit import executors, job_environment, machine, profiles, ranges
from launch.submit.runs import CHECKOUT, check_path, runs_root, typed

# option -> (setting, help)
SETTINGS = {
    "--partition": ("partition", "sbatch's --partition"),
    "--account": ("account", "sbatch's --account"),
    "--qos": ("qos", "sbatch's --qos"),
    "--reservation": ("reservation", "sbatch's --reservation"),
    "--constraint": ("constraint", "sbatch's --constraint"),
    "--time": ("time", "time limit of the job, as HH:MM:SS or D-HH:MM:SS"),
    "--memory": ("memory", "memory per node, such as 64G"),
    "--cpus-per-gpu": ("cpus_per_gpu", "CPUs per rank"),
    "--gres": ("gres", "how GPUs are requested: gpus-per-node, gres or none"),
    "--gpu-type": ("gpu_type", "type of GPU, as in --gpus-per-node=TYPE:N"),
    "--signal-delay": ("signal_delay", "seconds before the time limit at which the job saves and leaves"),
}
# For a training only.
OF_TRAINING = {
    "--stage": ("stage", "copy a packed dataset to this folder of each node, as $TMPDIR, and read it there"),
}
# These also apply to a dependent job of the same command; a time limit or a size belongs to one job.
COMMON = ("partition", "account", "qos", "reservation", "constraint", "gres", "gpu_type", "exclude", "sbatch")


def add_common(to: argparse.ArgumentParser, gpus: bool = True, leaves: bool = True) -> None:
    """Adds the options of every submitting command. `leaves`: its job does so before its time limit."""
    to.add_argument(
        "--cluster", default="", metavar="NAME", help="profile configs/clusters/NAME.yaml, `slurm` or `local`"
    )
    to.add_argument("--wait", action="store_true", help="wait for the end; the exit code says how it went")
    to.add_argument(
        "--json", action="store_true", help="print JSON, all else on stderr: an object, of a sweep a list"
    )
    group = to.add_argument_group("the job (the command line takes precedence over the profile)")
    if gpus:
        group.add_argument(
            "--nodes", metavar="N", help="nodes, or a range such as 1-2: start with what is free"
        )
        group.add_argument(
            "--gpus",
            type=ranges.whole("--gpus", 1, profiles.MOST["gpus"]),
            metavar="N",
            help="GPUs per node, one rank each (processes if there are none)",
        )
    for option, (setting, help) in SETTINGS.items():
        if setting == "signal_delay" and not leaves:
            continue
        group.add_argument(option, dest=f"job_{setting}", metavar="X", help=help)
    group.add_argument("--exclude", action="append", metavar="NODES", help="nodes to avoid (may be repeated)")
    group.add_argument(
        "--sbatch", action="append", metavar="KEY=VALUE", help="any further sbatch option, without its dashes"
    )


def add_training(to: argparse.ArgumentParser) -> None:
    """Adds the options that only a training has."""
    for option, (setting, help) in OF_TRAINING.items():
        to.add_argument(option, dest=f"job_{setting}", metavar="FOLDER", help=help)


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings given on the command line."""
    values: dict[str, Any] = {}
    for setting, _ in (SETTINGS | OF_TRAINING).values():
        if (value := getattr(arguments, f"job_{setting}", None)) is not None:
            values[setting] = value
    if getattr(arguments, "nodes", None) is not None:
        values["nodes"] = arguments.nodes
    if getattr(arguments, "gpus", None) is not None:
        values["gpus"] = arguments.gpus
    if getattr(arguments, "track", None):
        values["track"] = [name for given in arguments.track for name in given.split(",")]
    if arguments.exclude:
        values["exclude"] = arguments.exclude
    if arguments.sbatch:
        pairs = (pair.lstrip("-").partition("=") for pair in arguments.sbatch)
        values["sbatch"] = {key: value for key, _, value in pairs}
    return values


def profile(arguments: argparse.Namespace) -> profiles.Profile:
    """The profile asked for; by default Slurm if it can be reached, else this machine."""
    if arguments.cluster:
        return profiles.load(arguments.cluster)
    return profiles.load("", "slurm" if machine.has_slurm() else "local")


def profile_of(arguments: argparse.Namespace, run: Run, stage: str) -> profiles.Profile:
    """The profile for a further job of a run: the one asked for, else the one it was submitted with.

    The run records the settings of its training, evaluation and inference. Where there is no Slurm, a run of
    Slurm's counts as local.
    """
    request = run.request()
    if not remembers(arguments, request):
        return profile(arguments)
    own = request.cluster if stage == "train" else getattr(request.cluster, stage)
    kept = msgspec.to_builtins(own) if own else {}
    top: dict[str, Any] = {}
    section: dict[str, Any] = {}
    for key, source in kept.get("sources", {}).items():
        setting, _, name = key.partition(".")
        if setting not in kept:  # another version's
            continue
        # What came from this job's own section still wins over what the command says of another job.
        layer = section if source.endswith(f"({stage})") else top
        if name:
            layer.setdefault(setting, {})[name] = kept[setting][name]
        else:
            layer[setting] = kept[setting]
    return profiles.Profile(
        name=request.cluster.profile or request.executor,
        executor=_executor(request),
        source=f"run.yaml of {run.name}",
        top=top,
        stages={stage: section},
    )


def remembers(arguments: argparse.Namespace, request: Request) -> bool:
    """Whether `profile_of` uses the settings recorded in the run."""
    return not arguments.cluster and executors.named(_executor(request)).is_here()


def _executor(request: Request) -> str:
    return request.executor if request.executor in executors.names() else "local"


def settings(
    arguments: argparse.Namespace, profile: profiles.Profile, stage: str, first: bool = True
) -> profiles.Resolved:
    """The settings of the command's own job (`first`), or of one that depends on it.

    Raises UserError for what a local job cannot have on this machine.
    """
    given = chosen(arguments)
    if first:
        resolved = profiles.resolve(profile, stage, given)
    else:
        common = {key: value for key, value in given.items() if key in COMMON}
        resolved = profiles.resolve(profile, stage, {}, common)
    job_environment.check(resolved.settings)
    clear = [name for name in resolved.settings.env if secrets.looks_secret(name)]
    for name in clear:
        resolved.hints.append(
            f"{resolved.sources[f'env.{name}']}: {name} stands there in clear: put it into a file that only "
            f"you can read, and name that instead, as secrets: {{{name}: FILE}}"
        )
    executors.named(profile.executor).check(resolved)
    return resolved


def command_line(arguments: argparse.Namespace) -> list[str]:
    """The options of `add_common` that describe the job, as they would be typed again elsewhere."""
    cluster = arguments.cluster or "slurm"
    if cluster.endswith((".yaml", ".yml")):
        cluster = str(Path(cluster).expanduser().absolute())
    argv = [f"--cluster={cluster}"]
    for option, (setting, _) in (SETTINGS | OF_TRAINING).items():
        if (value := getattr(arguments, f"job_{setting}", None)) is not None:
            argv.append(f"{option}={value}")
    for name in ("nodes", "gpus"):
        if (value := getattr(arguments, name, None)) is not None:
            argv.append(f"--{name}={value}")
    for name in ("exclude", "sbatch", "track"):
        argv += [f"--{name}={value}" for value in getattr(arguments, name, None) or []]
    return argv


ADDRESSES = ("http://", "https://")


WHICH = "best (default), last, a path, or a name such as epoch_50.pth"
"""What --checkpoint accepts for a run."""


def checkpoint(which: str, run: Run | None = None, address: bool = True) -> str:
    """What --checkpoint means: best, last, the absolute path of a file, or a URL, unchanged.

    A bare name is also looked for among the checkpoints of `run`; for a run that is still to be trained
    (None), the name of a checkpoint that it will write is accepted. Raises UserError for anything else, for a
    URL unless `address` allows one, and for a run without an MMSegmentation model or that is not writable.
    """
    if run is not None:
        request = run.request()
        if request.worker or request.dataset or not request.config:
            what = f"was trained by {request.worker[0]}" if request.worker else "is a preparation"
            raise UserError(f"{run.name} {what}: only MMSegmentation's models are evaluated and used here")
        if not all(os.access(folder, os.W_OK) for folder in (run.path, run.job) if folder.exists()):
            raise UserError(
                f"{run.path} cannot be written to, and a job records its progress there: use a copy, "
                f"cp -r {run.path} {runs_root() / 'NAME'}"
            )
    if which in ("best", "last"):
        if run is not None and not any(run.checkpoints.glob("*.pth.json")):
            raise UserError(
                f"{run.name} has no checkpoint yet: python launch/status.py {typed(run)} shows how far it is"
            )
        return which
    if which.startswith(ADDRESSES):
        if not address:
            raise UserError(
                f"--checkpoint {which}: only evaluate.py accepts a URL: fetch the file and give its path"
            )
        if not re.fullmatch(r"https?://[^/\s]+/\S*\.pth", which):
            raise UserError(f"--checkpoint {which!r}: the URL of a checkpoint ends in .pth")
        pretrained.file_name(which)
        return which
    file = Path(which).expanduser().absolute()
    if file.is_file():
        check_path(file, "--checkpoint")
        try:
            why = checkpoint_files.why_unsaved(file)
        except OSError as error:
            raise UserError(f"--checkpoint {file} cannot be read: {error.strerror}") from None
        if why:
            raise UserError(f"--checkpoint {file} {why}")
        return str(file)
    own = [name for name in (which, f"{which}.pth") if re.fullmatch(r"(epoch|iter)_[0-9]+\.pth", name)]
    if run is not None:
        own = [name for name in own if (run.checkpoints / name).is_file()]
    if which in own:
        return which
    close = difflib.get_close_matches(which, ["best", "last", *own], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it takes {WHICH}"
    raise UserError(f"--checkpoint {which}: there is no such file; {hint}")


def check_pictures(asked: list[str]) -> None:
    """Raises UserError for what can be no image id, and for `all` beside others. The job checks the ids."""
    wrong = [one for one in asked if re.fullmatch(r"none|[-+][0-9].*", one, re.IGNORECASE)]
    together = len(asked) > 1 and "all" in asked
    if wrong or together:
        given = wrong[0] if wrong else " ".join(asked)
        raise UserError(f"--pictures {given}: give all, a number (0 for none), or image ids")


def out_folder(given: str, own: Path | None = None) -> Path:
    """--out as an absolute path. Raises UserError if the folder has other files; `own`: see output.check."""
    out = Path(given).expanduser().absolute()
    output.check(out, own)
    check_path(out, "--out")
    return out


def data_root(arguments: argparse.Namespace) -> Path:
    """The data root as an absolute path; by default data/ in the checkout."""
    path = Path(arguments.data_root).expanduser().absolute() if arguments.data_root else CHECKOUT / "data"
    path = Path(os.path.normpath(path))
    check_path(path, "--data-root")
    return path


WEIGHTS = ("load_from", "pretrained", "checkpoint", "checkpoint_path")
"""Last parts of config keys whose value is a file of weights."""


def weights_found(key: str, value: str) -> str:
    """The value of an override as the job, which runs in another directory, understands it: a relative path
    of a file of weights is made absolute. `data/…` means the data root."""
    path = Path(value)
    relative = not path.is_absolute() and path.parts[:1] != ("data",)
    # os.path, not Path: it answers False to a text that cannot be a file name.
    if key.rpartition(".")[2] in WEIGHTS and relative and os.path.isfile(value):
        return str(path.absolute())
    return value


def overrides(pairs: list[str]) -> dict[str, Any]:
    """`--set` pairs as dotted key -> value: a Python literal where it reads as one, else a string."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not all(part for part in key.split(".")):
            raise UserError(f"--set {pair!r}: write KEY=VALUE, such as train_dataloader.batch_size=4")
        if secrets.looks_secret(key.rpartition(".")[2]):
            raise secrets.typed(f"--set {key}")
        values[key] = literal(weights_found(key, value))
        if isinstance(values[key], str) and value.lstrip().startswith(("[", "(", "{")):
            try:
                parts(value)
            except ValueError as error:
                as_text = f"; as a text: {key}={json.dumps(value)}"
                raise UserError(f"--set {pair!r}: {error}{as_text}") from None
    return values


def parts(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes. Raises ValueError if one of these is unbalanced: taken
    as plain text, it would mean what nobody intended."""
    found, closing, quote, escaped = [""], "", "", False
    for character in text:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        elif character in "([{":
            closing += ")]}"["([{".index(character)]
        elif character in ")]}":
            if not closing.endswith(character):
                raise ValueError(f"a {character} closes no bracket")
            closing = closing[:-1]
        if character == "," and not closing and not quote:
            found.append("")
        else:
            found[-1] += character
    if closing or quote:
        raise ValueError(f"a {quote or closing[-1]} is missing")
    return found


def literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("none", "null"):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    # As in mmengine's own `--cfg-options`: a,b is a list, (a,b) is a tuple.
    return list(value) if isinstance(value, tuple) and not text.lstrip().startswith("(") else value
