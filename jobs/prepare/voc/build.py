"""Both archives, in one pass, to a dataset in a staging folder; nothing else of them touches the disk.

VOC's tar is indexed first (it is seekable), which yields the lists. SBD's stream is then inflated once, which
takes longest: its masks are converted on the way, while spare workers copy VOC's own files and the images of
those masks out of VOC's tar. At its end, its lists say what is still missing. Every file goes through `put`,
which keeps what an earlier, interrupted run wrote correctly: so a restart continues, and a torn or empty file
never counts as done.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.catalog import sources
from jobs.catalog.manifest import Entry
from jobs.prepare.archives import MOST_CONTENT, DamagedArchive, Member, Stream, walk, whole
from jobs.prepare.packed.writer import Placed, Writer
from jobs.prepare.progress import task
from jobs.prepare.voc import lists as voc
from jobs.prepare.voc.masks import Size, own_mask_size
from jobs.prepare.voc.sbd import BadMask, mask_of
from jobs.prepare.voc.writing import check_space, put, remove_strangers
from jobs.prepare.workers import Workers
from jobs.run.errors import UserError
from jobs.run.png import BadImage, encode_grey, jpeg_size

# Full prefixes: SBD has a decoy dataset below benchmark_code_RELEASE/demo.
VOC_ROOT = "VOCdevkit/VOC2012/"
SBD_ROOT = "benchmark_RELEASE/dataset/"
BATCH = 64


@dataclass(frozen=True)
class Written:
    entry: Entry
    size: Size
    """(width, height) of the image."""


def build(
    voc_tar: Path,
    sbd_tgz: Path,
    staging: Path,
    workers: Workers,
    look: Callable[[], None],
    pack: Writer | None = None,
) -> tuple[voc.Splits, list[Entry]]:
    """Writes the dataset below `staging`; returns the lists and every file written. With `pack`, the files go
    into that container, and the lists also below `staging`.

    `look` is called repeatedly, to raise errors found in the archives meanwhile.
    Raises UserError, in one line, for whatever is wrong with the archives; OSError for a full disk.
    """
    index = index_voc(voc_tar)
    train, val = (voc_list(voc_tar, index, name) for name in ("train", "val"))
    picking_up = (staging / "VOC2012").exists()
    trees = () if pack else ("JPEGImages", "SegmentationClass", "SegmentationClassAug")
    for folder in (*trees, "ImageSets/Segmentation"):
        (staging / "VOC2012" / folder).mkdir(parents=True, exist_ok=True)

    into = pack or staging
    copier = Copier(voc_tar, index, into, workers)
    own = sorted({*train, *val})
    names = [image_of(name) for name in own] + [own_mask_of(name) for name in own]
    size, files = room_for(voc_tar, index, names)
    check_space(staging, size, 0 if pack else files)
    copier.want(names)
    sbd_lists, converted = convert_sbd(sbd_tgz, set(own), copier, look)

    splits = voc.join(train, val, *sbd_lists)
    missing = [name for name in splits.aug if name not in converted]
    if missing:
        raise UserError(
            f"{sbd_tgz}: {len(missing):,} of {len(splits.aug):,} masks are missing, the first is "
            f"{SBD_ROOT}cls/{missing[0]}.mat: the release is incomplete"
        )
    ids = sorted({*splits.trainaug, *splits.val})
    copier.want([image_of(name) for name in ids])
    copier.copy_rest()
    written: dict[str, Written] = dict(one for batch in workers.results() for one in batch)

    masks = {name: written[mask_of_sbd(name)] for name in splits.aug}
    masks |= {name: written[own_mask_of(name)] for name in splits.trainval}
    images = {name: written[image_of(name)] for name in ids}
    for name, mask in masks.items():
        archive, member = (sbd_tgz, f"{name}.mat") if name in converted else (voc_tar, f"{name}.png")
        check_size(mask.size, images[name].size, f"{archive}: the mask {member}")
    entries = [one.entry for one in (*masks.values(), *images.values())]
    if pack:
        entries += repeat_own_masks(splits, masks, pack)
    else:
        entries += link_own_masks(splits, masks, staging)
    entries += write_lists(splits, staging, pack)
    if pack:
        pack.finish(entry for entry in entries if isinstance(entry, Placed))
        return splits, entries
    keep_only(staging, {entry.path for entry in entries}, written, picking_up)
    return splits, entries


def keep_only(staging: Path, kept: set[str], written: dict[str, Written], picking_up: bool) -> None:
    """Removes files that are in no list, and leftovers of an interrupted run."""
    if picking_up:
        remove_strangers(staging, kept)
    for one in written.values():
        if one.entry.path not in kept:
            (staging / one.entry.path).unlink()


def room_for(voc_tar: Path, index: dict[str, Member], names: list[str]) -> tuple[int, int]:
    """(bytes, files) of the dataset: at least VOC's own; for the real release, including SBD's."""
    if voc_tar.stat().st_size == sources.VOC.size:
        return sources.DATASET_BYTES, sources.DATASET_FILES
    return sum(find(index, name, voc_tar).size for name in names), len(names)


def check_size(mask: Size, image: Size, what: str) -> None:
    if mask != image:
        raise UserError(f"{what} is {mask[0]}×{mask[1]}, its image {image[0]}×{image[1]}")


def image_of(name: str) -> str:
    return f"JPEGImages/{name}.jpg"


def own_mask_of(name: str) -> str:
    return f"SegmentationClass/{name}.png"


def mask_of_sbd(name: str) -> str:
    return f"SegmentationClassAug/{name}.png"


# --- VOC's index and lists ---


def index_voc(voc_tar: Path) -> dict[str, Member]:
    """Every member that may be needed, by its path below VOCdevkit/VOC2012/."""
    wanted = ("ImageSets/Segmentation/", "JPEGImages/", "SegmentationClass/")
    index: dict[str, Member] = {}
    with Stream(voc_tar) as stream:
        if stream.size is None:
            raise DamagedArchive(
                f"{voc_tar} is compressed; the release is a plain tar: unpack it with gunzip"
            )
        for member in walk(stream):
            if not member.name.startswith(VOC_ROOT):
                continue
            name = member.name[len(VOC_ROOT) :]
            if (
                name.startswith(wanted)
                and not name.endswith("/")
                and member.name.count("/") == name.count("/") + 2
            ):
                add(index, name, member, voc_tar)
    return index


def add(index: dict[str, Member], name: str, member: Member, archive: Path) -> None:
    if name in index:
        raise DamagedArchive(f"{archive}: {member.name} occurs twice")
    index[name] = member


def voc_list(voc_tar: Path, index: dict[str, Member], name: str) -> list[str]:
    member = find(index, f"ImageSets/Segmentation/{name}.txt", voc_tar)
    with open(voc_tar, "rb") as file:
        return voc.parse(os.pread(file.fileno(), member.size, member.offset), f"{voc_tar}: {member.name}")


def find(index: dict[str, Member], name: str, voc_tar: Path) -> Member:
    try:
        member = index[name]
    except KeyError:
        raise UserError(f"{voc_tar}: {VOC_ROOT}{name} is missing: the release is incomplete") from None
    if not member.regular:
        raise DamagedArchive(f"{voc_tar}: {member.name} is not a plain file")
    if member.size > MOST_CONTENT:
        raise DamagedArchive(f"{voc_tar}: {member.name} has {member.size:,} bytes: this is not the release")
    return member


# --- SBD ---


def convert_sbd(
    sbd_tgz: Path, skip: set[str], copier: Copier, look: Callable[[], None]
) -> tuple[tuple[list[str], list[str]], set[str]]:
    """One pass: ((train, val) lists, ids of the masks converted). Skips the ids in `skip`, which VOC has."""
    lists: dict[str, list[str]] = {}
    seen: dict[str, Member] = {}
    converted: set[str] = set()
    batch: list[tuple[str, bytes]] = []
    folder = SBD_ROOT + "cls/"

    def submit() -> None:
        look()
        copier.workers.submit(write_masks, sbd_tgz, copier.into, batch)
        converted.update(name for name, _ in batch)
        # Their images are most likely needed; those that are in no list are removed at the end.
        copier.want([image_of(name) for name, _ in batch], required=False)

    with Stream(sbd_tgz) as stream, task(f"convert {sbd_tgz.name}", sbd_tgz.stat().st_size, "B") as advance:
        reported = 0
        for member in walk(stream):
            name = member.name
            now = stream.packed_position()
            advance(now - reported)
            reported = now
            copier.copy_some()
            if not name.startswith(SBD_ROOT) or not name.endswith((".mat", ".txt")):
                continue
            if name in (SBD_ROOT + "train.txt", SBD_ROOT + "val.txt"):
                add(seen, name, regular(member, sbd_tgz), sbd_tgz)
                lists[name[len(SBD_ROOT) : -4]] = voc.parse(content_of(stream, member), f"{sbd_tgz}: {name}")
            elif name.startswith(folder) and voc.ID.fullmatch(name[len(folder) : -4]):
                add(seen, name, regular(member, sbd_tgz), sbd_tgz)
                if name[len(folder) : -4] not in skip:
                    batch.append((name[len(folder) : -4], content_of(stream, member)))
            if len(batch) == BATCH:
                submit()
                batch = []
        submit()
    for name in ("train", "val"):
        if name not in lists:
            raise UserError(f"{sbd_tgz}: {SBD_ROOT}{name}.txt is missing: the release is incomplete")
    return (lists["train"], lists["val"]), converted


def regular(member: Member, archive: Path) -> Member:
    if not member.regular:
        raise DamagedArchive(f"{archive}: {member.name} is not a plain file")
    return member


def content_of(stream: Stream, member: Member) -> bytes:
    return whole(stream, member.size, MOST_CONTENT, member.name)


def write_masks(
    archive: Path, into: Path | Writer, batch: list[tuple[str, bytes]]
) -> list[tuple[str, Written]]:
    """Converts (id, .mat content) pairs and writes them to SegmentationClassAug; runs in a worker."""
    written = []
    for name, mat in batch:
        try:
            mask = mask_of(mat)
        except BadMask as error:
            raise UserError(f"{archive}: {SBD_ROOT}cls/{name}.mat {error}") from None
        entry = put(into, f"VOC2012/{mask_of_sbd(name)}", encode_grey(mask))
        written.append((mask_of_sbd(name), Written(entry, (mask.shape[1], mask.shape[0]))))
    return written


# --- VOC ---


class Copier:
    """Copies members of VOC's tar by name, each only once, in the workers."""

    def __init__(
        self, voc_tar: Path, index: dict[str, Member], into: Path | Writer, workers: Workers
    ) -> None:
        self.voc_tar = voc_tar
        self.index = index
        self.into = into
        self.workers = workers
        self.wanted: set[str] = set()
        self.batches: deque[list[tuple[Member, str]]] = deque()

    def want(self, names: list[str], required: bool = True) -> None:
        """Queues names for copying. Raises UserError for a missing one, if `required`."""
        fresh = [name for name in names if name not in self.wanted]
        if not required:
            fresh = [name for name in fresh if name in self.index and self.index[name].regular]
        self.wanted.update(fresh)
        jobs = [(find(self.index, name, self.voc_tar), name) for name in fresh]
        # In the archive's order, so that a disk reads it front to back.
        jobs.sort(key=lambda job: job[0].offset)
        self.batches += [jobs[at : at + BATCH] for at in range(0, len(jobs), BATCH)]

    def copy_some(self) -> None:
        """Copies just enough to keep the workers busy: inflating SBD takes longest, and must not wait."""
        while self.batches and self.workers.room():
            self.copy()

    def copy_rest(self) -> None:
        while self.batches:
            self.copy()

    def copy(self) -> None:
        self.workers.submit(copy_members, self.voc_tar, self.into, self.batches.popleft())


def copy_members(
    archive: Path, into: Path | Writer, batch: list[tuple[Member, str]]
) -> list[tuple[str, Written]]:
    """Copies members to their places, checking each; runs in a worker."""
    written = []
    with open(archive, "rb", buffering=0) as file:
        for member, name in batch:
            content = read_at(file.fileno(), member.offset, member.size)
            try:
                size = jpeg_size(content) if name.endswith(".jpg") else own_mask_size(content)
            except (BadImage, BadMask) as error:
                raise UserError(f"{archive}: {member.name} {error}") from None
            written.append((name, Written(put(into, f"VOC2012/{name}", content), size)))
    return written


def read_at(fd: int, offset: int, size: int) -> bytes:
    content = os.pread(fd, size, offset)
    while len(content) < size:
        more = os.pread(fd, size - len(content), offset + len(content))
        if not more:
            raise DamagedArchive("the archive became shorter while it was read")
        content += more
    return content


def link_own_masks(splits: voc.Splits, masks: dict[str, Written], staging: Path) -> list[Entry]:
    """Links VOC's training masks into SegmentationClassAug, where trainaug.txt expects all its masks."""
    entries = []
    for name in splits.train:
        source = masks[name].entry
        path = f"VOC2012/SegmentationClassAug/{name}.png"
        target = staging / path
        if not (target.exists() and target.samefile(staging / source.path)):
            target.unlink(missing_ok=True)
            try:
                os.link(staging / source.path, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(staging / source.path, target)
        entries.append(Entry(path, source.size, source.digest))
    return entries


def repeat_own_masks(splits: voc.Splits, masks: dict[str, Written], pack: Writer) -> list[Entry]:
    """The same in a container, which has no links: stores them again; they are small."""
    entries: list[Entry] = []
    for name in splits.train:
        source = masks[name].entry
        assert isinstance(source, Placed)
        entries.append(pack.put(f"VOC2012/SegmentationClassAug/{name}.png", pack.content(source)))
    return entries


def write_lists(splits: voc.Splits, staging: Path, pack: Writer | None) -> list[Entry]:
    """Writes the lists, also into the container if there is one; then the entries are the container's."""
    entries = []
    for name, listed in splits.by_name().items():
        path = f"VOC2012/ImageSets/Segmentation/{name}.txt"
        entry = put(staging, path, voc.text(listed))
        entries.append(pack.put(path, voc.text(listed)) if pack else entry)
    return entries
