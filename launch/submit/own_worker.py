"""`train.py --worker FILE -- ARGUMENTS`: a training without MMSegmentation (docs/worker-protocol.md)."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
from pathlib import Path

from jobs.run import secrets
from jobs.run.errors import UserError
from jobs.run.settings import Settings
from launch.submit import config_files, snapshot
from launch.submit.configs import Chain
from launch.submit.runs import CHECKOUT

NOT_FOR_IT = ("config", "set", "sweep", "seeds", "zip", "checkpoint", "element")
"""Options that only mean something for an MMSegmentation config."""


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at `--` into (train.py's arguments, the program's)."""
    if "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


def check_options(arguments: argparse.Namespace, own: list[str]) -> None:
    """Raises UserError for options that exclude each other, and for a secret in the program's arguments."""
    if not arguments.worker:
        if own and arguments.resume:
            raise UserError(f"--resume continues a run as it is: it takes no `-- {own[0]} …`")
        if own:
            raise UserError(f"`-- {own[0]} …`: only a --worker takes arguments of its own after --")
        return
    for name in NOT_FOR_IT:
        if (value := getattr(arguments, name)) or type(value) is int:
            raise UserError(
                f"--worker trains without an MMSegmentation config, so it takes no --{name}: give the "
                "program its own arguments after --"
            )
    for argument, following in itertools.pairwise([*own, ""]):
        name, equals, value = argument.partition("=")
        no_secret = re.fullmatch(r"[0-9.eE+-]*|-.*", value if equals else following)  # --max-token 77
        if name.startswith("-") and secrets.looks_secret(name) and not no_secret:
            raise secrets.typed(name)


def check_stage(arguments: argparse.Namespace, train: Settings, by_worker: bool) -> None:
    """Raises UserError for a `--stage` without effect: only MMSegmentation's loaders read from there.
    (A profile's `stage` is for every training, and is also where the environment's image goes.)"""
    if by_worker and arguments.job_stage and not train.environment:
        raise UserError(
            "--stage copies a dataset for MMSegmentation's loaders: a --worker reads data/ itself"
        )


def read(worker: str) -> Chain:
    """The program and the modules that it imports from beside it or the checkout, for the snapshot. Raises
    UserError if it does not exist or is not Python."""
    given = Path(worker).expanduser()
    file = next((path for path in (given.absolute(), CHECKOUT / given) if path.is_file()), None)
    if file is None:
        near = difflib.get_close_matches(given.name, [path.name for path in given.parent.glob("*.py")], 1)
        hint = f": did you mean {given.parent / near[0]}?" if near else ""
        raise UserError(f"there is no program {worker!r} for --worker{hint}")
    file = file.resolve()
    imports = config_files.imports(config_files.parsed(file))
    names = [name for name in imports if name.split(".")[0] not in snapshot.FOLDERS]  # which are there
    return Chain(files=[file], modules=config_files.modules(names, [file.parent, CHECKOUT]))
