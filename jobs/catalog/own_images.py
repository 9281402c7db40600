"""The command line for one's own dataset, shared by launcher and job. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from jobs.catalog import classes
from jobs.catalog.manifest import MANIFEST
from jobs.catalog.recipes import RECIPES, VOC, VOC_FOLDER
from jobs.run import output
from jobs.run.errors import UserError

KINDS = ("auto", "labels", "colours", "binary", "coco", "labelme", "label-studio")
TAKEN = {VOC_FOLDER.lower(), "pretrained", *VOC, *RECIPES, *(one.folder.lower() for one in RECIPES.values())}

DESCRIPTION, SHEET, FINDINGS = "dataset.json", "contact.html", "findings.tsv"
"""The description, contact sheet and findings of such a dataset; in its folder, even if it is packed."""
NAME = "[a-z][a-z0-9_]{0,40}"
DEFAULT_BASE = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"

PATHS = ("images", "classes", "train_list", "val_list")
FLAGS = ("copy", "ignore_exif", "class_weights")
VALUES = ("mask_kind", "mask_suffix", "split", "seed", "group_by", "crop", "base", "write_config")


def add(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("a dataset of your own (docs/own-images.md); --dataset names it")
    add = group.add_argument
    add("--images", metavar="DIR", help="folder of the images, with all below it")
    add(
        "--masks",
        nargs="+",
        metavar="PATH",
        help="folder of the masks (labels, colours, 0/255) or of LabelMe's JSON files; or files of COCO JSON",
    )
    add("--classes", metavar="FILE", help="text file: one class per line, in the order of the labels")
    add("--mask-kind", choices=KINDS, help="what --masks is (default: recognised from the first of them)")
    add(
        "--mask-suffix",
        metavar="SUFFIX",
        help="what follows the image's name in a mask's name, such as _mask.png",
    )
    add("--split", metavar="SHARE", help="share of the images to train on (default 0.8), drawn by --seed")
    add("--seed", metavar="N", help="of the split (default 0)")
    add(
        "--group-by", metavar="REGEX", help="images whose names match it with the same text stay in one split"
    )
    add(
        "--train-list",
        metavar="FILE",
        help="instead of --split: names of the images to train on, one per line",
    )
    add("--val-list", metavar="FILE", help="the same for those to validate on (default: all others)")
    add("--copy", action="store_true", help="copy the images (default: hard links where they can be made)")
    add("--ignore-exif", action="store_true", help="use images as they are stored, as the masks were drawn")
    add("--class-weights", action="store_true", help="the config weights the loss by median frequency")
    add("--crop", metavar="N", help="side of the crops that the config trains on")
    add("--base", metavar="CONFIG", help="the config to inherit (default: the recipe of 200 epochs)")
    add("--write-config", metavar="FILE", help="where the config goes (default configs/NAME.py)")
    to.add_argument(
        "--check",
        metavar="CONFIG",
        help="check the datasets of a config, whichever they are, and make nothing",
    )


def asked(args: argparse.Namespace) -> bool:
    """Whether one's own dataset is to be made. Raises UserError if only some of its options are given."""
    given = [name for name in (*PATHS, "masks", *FLAGS, *VALUES) if getattr(args, name)]
    if not given:
        return False
    if args.check:
        raise UserError(f"--check looks at what a config reads: leave out {option(given[0])}")
    missing = [option(name) for name in ("images", "masks", "classes") if not getattr(args, name)]
    if missing or not args.dataset:
        lacking = " and ".join(missing + ([] if args.dataset else ["--dataset NAME"]))
        raise UserError(f"{option(given[0])} is for a dataset of your own, which needs {lacking} too")
    return True


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that cannot work; makes paths absolute."""
    name = args.dataset
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"--dataset {name}: the name of your own dataset may have a-z, 0-9 and _ only, such as mine"
        )
    if name in TAKEN:
        raise UserError(f"--dataset {name} is prepared from archives: choose another name")
    for one in PATHS:
        if path := getattr(args, one):
            setattr(args, one, absolute(path))
    args.masks = [absolute(path) for path in args.masks]
    if not Path(args.images).is_dir():
        raise UserError(f"--images {args.images}: there is no such folder")
    for path in args.masks:
        if not Path(path).exists() or output.special(Path(path)):
            raise UserError(f"--masks {path}: there is no such folder or file")
    for one in ("train_list", "val_list"):
        if (path := getattr(args, one)) and not Path(path).is_file():
            raise UserError(f"{option(one)} {path}: there is no such file")
    if len(args.masks) > 1 and any(Path(path).is_dir() for path in args.masks):
        raise UserError("--masks takes one folder, or files of COCO JSON")
    classes.read(Path(args.classes))
    if args.write_config:
        output.check_file(Path(args.write_config), "--write-config")
    check_split(args)
    if args.crop and not (re.fullmatch(r"[0-9]{1,5}", args.crop) and 32 <= int(args.crop) <= 8192):
        raise UserError(f"--crop {args.crop}: a whole number from 32 to 8192")


def check_split(args: argparse.Namespace) -> None:
    if args.val_list and not args.train_list:
        raise UserError("--val-list needs --train-list: the images to train on")
    if args.train_list and (args.split or args.group_by or args.seed):
        raise UserError(
            "--train-list says which images to train on: leave out --split, --seed and --group-by"
        )
    if args.split and not (re.fullmatch(r"0?\.[0-9]+", args.split) and 0 < float(args.split) < 1):
        raise UserError(f"--split {args.split}: give the share to train on, between 0 and 1, such as 0.8")
    if args.seed and not re.fullmatch(r"[0-9]{1,9}", args.seed):
        raise UserError(f"--seed {args.seed}: a whole number from 0 to 999999999")
    if args.group_by:
        try:
            re.compile(args.group_by)
        except re.error as error:
            raise UserError(f"--group-by {args.group_by!r} is not a regular expression: {error}") from None


def is_there(data_root: Path, name: str) -> bool:
    """Whether there is a dataset of this name that was made from own images, or by a converter."""
    folder = name.lower()
    if not re.fullmatch(NAME, folder) or folder in TAKEN:
        return False
    places = (data_root / folder, aside(data_root, folder))
    return any((place / one).is_file() for place in places for one in (MANIFEST, DESCRIPTION))


def aside(data_root: Path, folder: str = "") -> Path:
    """Where a dataset is kept while another one replaces it. (No dataset has this name.)"""
    return data_root / ".prepare.old" / folder


def command_line(args: argparse.Namespace) -> list[str]:
    """The options as arguments of the job; with the paths from `check`."""
    argv = []
    for name in (*PATHS, *VALUES):
        if value := getattr(args, name):
            argv.append(f"{option(name)}={value}")
    argv += [option(name) for name in FLAGS if getattr(args, name)]
    return [*argv, "--masks", *args.masks]


def folders(args: argparse.Namespace) -> list[Path]:
    """The folders to mount in a container: those of all inputs."""
    files = [args.classes, args.train_list, args.val_list, args.write_config]
    found = [Path(args.images), *(Path(path) for path in args.masks)]
    found = [path if path.is_dir() else path.parent for path in found]
    return list(dict.fromkeys([*found, *(Path(file).parent for file in files if file)]))


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())
