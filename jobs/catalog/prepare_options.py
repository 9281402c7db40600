"""The options of a preparation, shared by launcher and job. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.catalog import own_images, pretrained


def add(to: argparse.ArgumentParser) -> None:
    add = to.add_argument
    add("--archives", type=Path, metavar="DIR", help="take the archives from there; nothing is downloaded")
    add("--dataset", metavar="NAME", help="voc (default), or a converter of mmsegmentation's")
    add(
        "--verify",
        nargs="?",
        const="quick",
        choices=("quick", "deep"),
        help="only check that what is there is sound; deep: every byte and pixel",
    )
    add(
        "--no-checksum", action="store_true", help="take archives that are not the release without a checksum"
    )
    add(
        "--weights",
        nargs="+",
        metavar="REFERENCE",
        help="pretrained weights to fetch, as configs refer to them, or addresses (default with VOC the "
        f"recipe's, {pretrained.DEFAULT}, with --images the base's); with --archives they are taken from "
        "there, nothing is downloaded",
    )
    add("--no-weights", action="store_true", help="no pretrained weights")
    add("--partial", action="store_true", help="other datasets: take fewer files than the release has")
    add(
        "--converter-args",
        metavar="ARGS",
        help="other datasets: the converter's arguments; {archives}, {out}, {processes} are filled in",
    )
    form = to.add_mutually_exclusive_group()
    form.add_argument("--pack", action="store_true", help="as one file, which trainings read as it is")
    form.add_argument("--unpack", action="store_true", help="restore the files of a packed dataset")
    own_images.add(to)


def command_line(args: argparse.Namespace, dataset: str) -> list[str]:
    """The options as arguments of the job, except those for one's own dataset; paths are unchanged."""
    argv = ["--archives", str(args.archives)] if args.archives else []
    argv += ["--dataset", dataset] if args.dataset else []
    argv += [f"--verify={args.verify}"] if args.verify else []
    argv += ["--no-checksum"] if args.no_checksum else []
    if args.no_weights:
        argv.append("--no-weights")
    elif args.weights:
        argv += ["--weights", *args.weights]
    argv += [f"--{name}" for name in ("pack", "unpack", "partial") if getattr(args, name)]
    if args.converter_args is not None:
        argv.append(f"--converter-args={args.converter_args}")
    return argv


def weights_of(args: argparse.Namespace, dataset: str) -> list[str]:
    """The pretrained weights that the job fetches, as configs refer to them."""
    if args.no_weights or args.verify or args.unpack:
        return []
    return list(args.weights or ([pretrained.DEFAULT] if dataset == "voc" else []))
