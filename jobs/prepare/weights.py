"""Pretrained weights of a backbone into DATA/pretrained/, where the training looks for them.

Published names end with the first eight digits of the file's sha256 (PyTorch's always, OpenMMLab's as a
rule).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import UserError
from jobs.train import pretrained

if TYPE_CHECKING:
    # Launchers want the names below at once; requests and the like are imported where they are needed.
    from jobs.prepare.download import Patience
    from jobs.prepare.lock import Owner

DEFAULT = "open-mmlab://resnet50_v1c"
"""What the recipe's configs begin with."""

MIRRORS = {
    "resnet50_v1c-2cccc1ad.pth": (
        "https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_pretrained/"
        "resnet50_v1c-2cccc1ad.pth",
    ),
}
"""File name -> further addresses, tried in this order after the one that mmengine knows."""

STRICT = "https://download.pytorch.org/"
"""Where a name that is not the digest's means damage."""


def fetch(
    reference: str, data_root: Path, given: Path | None = None, patience: Patience | None = None
) -> Path | None:
    """The file for a reference (open-mmlab://NAME, torchvision://NAME, mmcls://NAME, an address), in its
    place; downloaded, or taken from the folder `given`. None, and said, if it is not in that folder.

    Raises UserError if no mirror has it, OSError if the disk refuses.
    """
    from jobs.prepare.lock import hold
    from jobs.prepare.progress import say

    url, name = name_of(reference)
    folder = data_root / "pretrained"
    target = folder / name
    if target.is_file():
        return target
    part = folder / f"{name}.part"
    if given is not None:
        if not (given / name).is_file():
            say(
                f"{name} is not in {given}: configs that begin with {reference} need it as {target}; "
                f"it comes from {url}"
            )
            return None
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given / name, part)
        check(part, name, url)
        os.replace(part, target)
        return target

    def wait_for(owner: Owner) -> None:
        say(f"{data_root} is being prepared by {owner}; waiting for it")

    folder.mkdir(parents=True, exist_ok=True)
    with hold(data_root, True, wait_for, done=target.is_file) as lock:
        if lock is not None and not target.is_file():
            transfer(name, (url, *MIRRORS.get(name, ())), part, patience)
            os.replace(part, target)
    say(f"{target} is ready")
    return target


def name_of(reference: str) -> tuple[str, str]:
    """The address and the file name of published weights. Raises UserError for what is neither a known name
    nor an address."""
    url = pretrained.address(reference)
    if url is None:
        raise UserError(f"--weights {reference}: give a name such as {DEFAULT}, or an address")
    return url, url.rsplit("/", 1)[-1]


def transfer(name: str, urls: tuple[str, ...], part: Path, patience: Patience | None) -> None:
    from jobs.prepare import download
    from jobs.prepare.archives import DamagedArchive
    from jobs.prepare.sources import Source

    patience = patience or download.Patience()
    reasons = []
    for url in urls:
        try:
            source = Source(name, download.length_of(url, patience), {}, (url,))
            download.check_room(part.parent, source.size - download.size_of(part))
            download.insist(url, source, part, patience)
            check(part, name, url)
        except (download.Unusable, download.Broken, DamagedArchive) as error:
            reasons.append(f"{url}: {error}")
        else:
            return
    raise UserError(
        f"{name} could not be downloaded ({'; '.join(reasons)}): get it elsewhere and place it as "
        f"{part.parent / name}, or prepare with --no-weights"
    )


def check(part: Path, name: str, url: str) -> None:
    """Holds the file against the digest in its name. Raises DamagedArchive (and removes it) where that is
    certain to be one; elsewhere a difference is said."""
    from jobs.prepare.archives import DamagedArchive, digest
    from jobs.prepare.progress import say

    found = digest(part, "sha256")
    promised = re.search(r"-([0-9a-f]{8,})\.", name)
    if promised is None or found.startswith(promised[1]):
        return
    if url.startswith(STRICT):
        part.unlink()
        raise DamagedArchive(f"its sha256 is {found}, not {promised[1]}…")
    say(
        f"WARNING: {name} has the sha256 {found}, not {promised[1]}… as its name says; "
        "it has arrived whole, so it is kept"
    )
