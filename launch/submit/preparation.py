"""From the options of launch/prepare.py to those of its job, checked before anything is made."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jobs.catalog import own_images, prepare_options, pretrained
from jobs.catalog import recipes as datasets
from jobs.catalog.manifest import MANIFEST
from jobs.run.errors import UserError
from launch.submit import configs, data_ready, runs

MAKING = ("archives", "no_checksum", "weights", "partial", "converter_args")
"""Options that say how a dataset is made, or which weights come with it."""
ALONE = (
    ("check", "says which datasets, and makes nothing",
     ("dataset", "for_config", "verify", "pack", "unpack", *MAKING)),
    ("for_config", "says which dataset and weights",
     ("dataset", "weights", "no_weights", "verify", "unpack")),
    ("verify", "only looks", ("pack", "unpack", *MAKING)),
    ("unpack", "makes the files again of what is there", MAKING),
    ("images", "makes a dataset of your own",
     ("verify", "unpack", "for_config", "no_checksum", "partial", "converter_args")),
    ("no_weights", "fetches none", ("weights",)),
)  # fmt: skip
"""(an option, why it excludes others, which those are): the job would ignore them."""


@dataclass
class Preparation:
    dataset: str
    argv: list[str]
    """The job's options, except --check and --run."""
    mounts: list[Path] = field(default_factory=list)
    """Folders to mount in a container besides the run and the data root."""
    checked: configs.Chain | None = None
    """The config to --check: the job reads the copy in the run."""


def read(arguments: argparse.Namespace, data_root: Path) -> Preparation:
    """What the options ask for. Raises UserError for whatever the job could only refuse."""
    check_together(arguments)
    mounts, of_own_images = [], []
    if arguments.archives:
        archives = arguments.archives.expanduser().absolute()
        if not archives.is_dir():
            raise UserError(f"--archives {arguments.archives}: there is no such folder")
        arguments.archives = archives
        mounts.append(archives)
    if arguments.for_config:
        fit_to_config(arguments)
    own = own_images.asked(arguments)
    checked = check_of(arguments) if arguments.check else None
    if own:
        of_own_images = fit_own(arguments)
        mounts += own_images.folders(arguments)
    dataset = arguments.dataset or "voc"
    if not own:
        dataset = name_of(arguments, data_root, dataset)
    for reference in () if arguments.no_weights else arguments.weights or ():
        pretrained.published(reference)
    if arguments.converter_args is not None:
        datasets.split_arguments(arguments.converter_args)
    check_fitting(arguments, data_root, dataset)
    argv = ["--data-root", str(data_root), *of_own_images, *prepare_options.command_line(arguments, dataset)]
    return Preparation(dataset, argv, mounts, checked)


def name_of(arguments: argparse.Namespace, data_root: Path, dataset: str) -> str:
    """The dataset's name as it is stored. Raises UserError for one that is neither known nor there."""
    converts = arguments.converter_args is not None
    if converts or not own_images.is_there(data_root, dataset):
        return datasets.check_name(dataset, bool(arguments.verify) or converts)
    if arguments.verify or arguments.pack or arguments.unpack:
        return dataset
    root = data_root / datasets.folder_of(dataset)
    raise UserError(
        f"--dataset {dataset}: {root} exists; --verify checks it, --pack and --unpack convert it, and to "
        "make it again give all the options that made it"
    )


def check_together(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that the job would ignore because of another one."""

    def given(name: str) -> bool:
        return getattr(arguments, name) not in (None, False)

    for name, why, others in ALONE:
        beside = [own_images.option(other) for other in others if given(other)]
        if given(name) and beside:
            raise UserError(f"{own_images.option(name)} {why}: leave out {' and '.join(beside)}")


def fit_own(arguments: argparse.Namespace) -> list[str]:
    """Checks the options for a dataset of the user's own images, sets --weights to those of its base config,
    and returns the job's options. Raises UserError."""
    own_images.check(arguments)
    base = arguments.base or own_images.DEFAULT_BASE
    located = configs.locate(base)
    chain = configs.check(located, here=False)
    arguments.base = base if "::" in base else str(located)
    target = arguments.write_config or runs.CHECKOUT / "configs" / f"{arguments.dataset}.py"
    arguments.write_config = own_images.absolute(str(target))
    if not arguments.write_config.endswith(".py"):
        raise UserError(f"--write-config {arguments.write_config}: a config's name ends in .py")
    if not arguments.weights and not arguments.no_weights:
        fit_weights(arguments, chain, base)
    return own_images.command_line(arguments)


def check_of(arguments: argparse.Namespace) -> configs.Chain:
    """The config to --check; no weights are fetched for it. Raises UserError if it is not a valid config."""
    arguments.no_weights = True
    return configs.check(configs.locate(arguments.check), evaluated=False, here=False)


def fit_to_config(arguments: argparse.Namespace) -> None:
    """Sets --dataset and --weights to what a config needs, and prints what of that cannot be fetched.

    Raises UserError unless it reads exactly one dataset, which prepare.py can make.
    """
    name = arguments.for_config
    chain = configs.check(configs.locate(name), evaluated=False, here=False)
    paths = data_ready.paths(chain)
    found = {data_ready.recipe_of(path) for path in paths}
    if len(found) != 1 or "" in found:
        read = ", ".join(f"data/{path}" for path in paths) or "no dataset below data/"
        fit_weights(arguments, chain, name)
        beside = f" (its weights: --weights {' '.join(arguments.weights)})" if arguments.weights else ""
        raise UserError(
            f"{name} reads {read}: only the datasets that --dataset lists can be prepared{beside}"
        )
    (arguments.dataset,) = found
    fit_weights(arguments, chain, name)


def fit_weights(arguments: argparse.Namespace, chain: configs.Chain, name: str) -> None:
    """Sets --weights to the pretrained weights of a config, and prints which of them cannot be fetched.
    Raises UserError if its model would download some itself."""
    arguments.weights = []
    pretrained.check_timm(chain.values.get("model"))
    clip = pretrained.meant_clip(chain.values.get("model"))
    for reference in configs.weights(chain):
        if clip:
            print(
                f"{name} names {reference} for CLIP's weights: fetching those; train with --set "
                f"model.pretrained={clip}",
                file=sys.stderr,
            )
            arguments.weights.append(clip)
        elif pretrained.address(reference):
            arguments.weights.append(reference)
        else:
            print(f"{name} starts from {reference}, which has no URL: place it by hand", file=sys.stderr)
    arguments.no_weights = not arguments.weights


def check_fitting(arguments: argparse.Namespace, data_root: Path, dataset: str) -> None:
    """Raises UserError, before anything is queued, for options that the job could only refuse."""
    root = data_root / datasets.folder_of(dataset)
    if arguments.unpack and not (root / MANIFEST).exists():
        raise UserError(f"--unpack: {root} has no {MANIFEST}: there is no prepared dataset to unpack")
    if dataset == "voc" and (arguments.partial or arguments.converter_args is not None):
        option = "--partial" if arguments.partial else "--converter-args"
        raise UserError(
            f"{option} is for other datasets; VOC 2012 + SBD is prepared completely or not at all"
        )
