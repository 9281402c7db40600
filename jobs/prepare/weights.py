"""Pretrained weights of a backbone into DATA/pretrained/, where the training looks for them.

Published names end with the first eight digits of the file's sha256; `DIGESTS` has the exceptions.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.catalog import pretrained
from jobs.run.errors import UserError, one_line

if TYPE_CHECKING:
    # Commands need the names below at once; requests and the like are imported where they are used.
    from jobs.catalog.owner import Owner
    from jobs.prepare.download import Patience

MIRRORS = {
    "resnet50_v1c-2cccc1ad.pth": (
        "https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_pretrained/"
        "resnet50_v1c-2cccc1ad.pth",
    ),
}
"""File name -> further URLs, tried in this order after mmengine's own."""

PUBLISHERS = (
    "https://download.pytorch.org/", "https://download.openmmlab.com/", pretrained.TIMM,
    "https://dl.fbaipublicfiles.com/deit/",
)  # fmt: skip
"""Hosts whose file names contain the digest: a file with another is damaged, whichever mirror sent it."""

DIGESTS = {
    # Published with digests of other files in their names (https://github.com/open-mmlab/mmcv/issues/600).
    "resnext50_32x4d_gn-c7e8b754.pth": "f29c35b885c70395dfee2e509420cb0d9fd31508bc457810abee1189b2682381",
    "resnext101_32x4d_gn-ac3bb84e.pth": "bf34560d",
}
"""File name -> its sha256, or a prefix of it, if more is known than the name says. For the recipe's file,
only the eight digits in its name were published; the whole digest belongs here once it is known.
"""


def fetch(
    reference: str, data_root: Path, given: Path | None = None, patience: Patience | None = None
) -> Path | None:
    """Puts the file for a reference (open-mmlab://NAME, torchvision://NAME, mmcls://NAME, a URL, a path that
    stands for a converted one) into its place: downloads it, or takes it from the folder `given`. None, with
    a message, if it is not in that folder.

    An existing file that is not what its name says is renamed, and fetched again. Raises UserError if no
    mirror has it, or if the one given is damaged; OSError if the disk refuses.
    """
    from jobs.prepare.disk import sync
    from jobs.prepare.lock import hold
    from jobs.prepare.progress import say

    url, name = pretrained.published(reference)
    folder = data_root / "pretrained"
    if made := pretrained.converted(reference):
        return converted(url, made[1], folder / Path(reference).name, given, patience)
    target = folder / name
    if target.is_file():
        if not difference(target, name, url):
            return target
        with hold(data_root, True, partial(say_who, data_root)):  # another process may be doing this
            if target.is_file() and (wrong := difference(target, name, url)):
                set_aside(target, wrong)
    part = folder / f"{name}.part"
    if given is not None:
        if not (given / name).is_file():
            say(
                f"{name} is not in {given}: configs that begin with {reference} need it as {target}; "
                f"it comes from {url}"
            )
            return None
        check_file(given / name, name, url)
    folder.mkdir(parents=True, exist_ok=True)
    with hold(data_root, True, partial(say_who, data_root), target.is_file) as lock:
        if lock is not None and not target.is_file():
            if given is None:
                transfer(name, (url, *MIRRORS.get(name, ())), part, patience)
            else:
                shutil.copyfile(given / name, part)
            sync(folder)
            os.replace(part, target)
    say(f"{target} is ready")
    return target


def converted(
    url: str, kind: str, target: Path, given: Path | None, patience: Patience | None
) -> Path | None:
    """`target`, converted by mmsegmentation's KIND2mmseg.py from the file at `url`. None, errors: as `fetch`.

    An existing one is used as it is, unless its digest shows that it is still the published one.
    """
    from jobs.prepare import weight_converters
    from jobs.prepare.lock import hold
    from jobs.prepare.progress import say

    name, data_root = pretrained.file_name(url), target.parent.parent

    def is_ready() -> bool:
        return target.is_file() and not (target.name == name and not difference(target, name, url))

    if is_ready():
        return target
    there = (target.parent / name).is_file()
    source = fetch(url, data_root, given, patience)
    if source is None:
        return None
    check_content(source)
    with hold(data_root, True, partial(say_who, data_root), is_ready) as lock:
        if lock is not None and not is_ready():
            weight_converters.convert(kind, source, target)
            if not there and source != target:
                source.unlink()
    say(f"{target} is ready: {name}, converted")
    return target


def say_who(data_root: Path, owner: Owner) -> None:
    from jobs.prepare.progress import say

    say(f"{data_root} is being prepared by {owner}; waiting for it")


def transfer(name: str, urls: tuple[str, ...], part: Path, patience: Patience | None) -> None:
    from jobs.catalog.sources import Source
    from jobs.prepare import download
    from jobs.prepare.archives import DamagedArchive

    patience = patience or download.Patience()
    reasons = []
    for url in urls:
        try:
            source = Source(name, download.length_of(url, patience), {}, (url,))
            download.check_room(part.parent, source.size - download.size_of(part))
            download.transfer_all(url, source, part, patience)
            if wrong := difference(part, name, urls[0]):
                part.unlink()
                raise DamagedArchive(wrong)
        except (download.Unusable, download.Broken, DamagedArchive) as error:
            reasons.append(f"{url}: {error}")
        else:
            return
    raise UserError(
        f"{name} could not be downloaded ({'; '.join(reasons)}): fetch it on another machine and place it as "
        f"{part.parent / name}, or prepare with --no-weights"
    )


def difference(file: Path, name: str, url: str) -> str:
    """What is wrong with a file that was published at `url` as `name`; "" if nothing is.

    For an unknown host, a digest that differs from the name is only printed.
    """
    from jobs.prepare.progress import say
    from jobs.run.digests import digest

    promised = DIGESTS.get(name) or of_name(name)
    if not promised:
        return ""
    found = digest(file, "sha256")
    if found.startswith(promised):
        return ""
    wrong = f"its sha256 is {found}, not {promised}{'' if len(promised) == 64 else '…'}"
    if name in DIGESTS or url.startswith(PUBLISHERS):
        return wrong
    say(f"WARNING: {name}: {wrong} as its name says; it arrived complete, so it is kept")
    return ""


def of_name(name: str) -> str:
    """The digest prefix at the end of a file's name; "" if there is none, or if it is a date."""
    found = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z]+$", name)
    return "" if found is None or re.fullmatch(r"20\d\d[01]\d[0-3]\d", found[1]) else found[1]


def set_aside(file: Path, why: str) -> Path:
    """Renames a file that is not what its name says, so that it is not loaded, but not lost either."""
    from jobs.prepare.progress import say

    aside = file.with_name(f"{file.name}.damaged")
    os.replace(file, aside)
    say(f"{file} is damaged ({why}): it is now {aside.name}")
    return aside


def check_file(file: Path, name: str, url: str) -> None:
    """Checks a user's file against the checksums file beside it, and against its own name. Raises
    UserError."""
    from jobs.prepare.local_archives import listed_digest
    from jobs.run.digests import digest

    wrong = ""
    if listed := listed_digest(file):
        algorithm, expected = listed
        if (found := digest(file, algorithm)) != expected:
            wrong = f"its {algorithm} is {found}, not {expected} as listed beside it"
    if wrong := wrong or difference(file, name, url):
        raise UserError(f"{file} is damaged: {wrong}: download it again, from {url}")


def check_content(file: Path) -> None:
    """Renames a file that contains more than weights, or cannot be read, and then raises UserError.

    Reading it executes no code from it. Does nothing without torch: the training, which has it, checks, too.
    """
    from jobs.prepare.progress import say

    try:
        from jobs.mmseg import compat

        compat.load(file)
    except ImportError as error:
        say(f"{file} is not looked into: {error}")
    except OSError:
        raise
    except Exception as error:  # a damaged file may make the reader raise anything
        reason = one_line(error, 200)
        aside = set_aside(file, reason)
        raise UserError(
            f"{aside} holds more than weights, or is damaged ({reason}): no training loads it; fetch the "
            "file from elsewhere"
        ) from None
