"""A small (or full-size) stand-in for PASCAL VOC 2012 + SBD: two archives in the formats of the real ones.

    python -m jobs.prepare.synthetic OUT --train 60 --val 20 --size 128
    python -m jobs.prepare.synthetic OUT --full --lists DIR

OUT gets `VOCtrainval_11-May-2012.tar`, `benchmark.tgz` and `SHA256SUMS`, which `python -m jobs.prepare
--archives OUT` verifies them by. Everything that makes the real archives awkward is there: palette masks with
255 around every object, GTcls as struct with sparse boundaries before the mask, validation images that are
in SBD too, VOC training images that are not, and the decoy dataset below `benchmark_code_RELEASE/demo`.
Every class has its own colour and stripes, so that a small network learns them within minutes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from jobs.prepare.local_archives import listed_digest
from jobs.prepare.synthetic_scene import Scene, cls_mat, inst_mat, make_scene
from jobs.run.digests import digest
from jobs.run.errors import UserError, run_command

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
SBD_ARCHIVE = "benchmark.tgz"

REAL_IMAGES = 17_125
"""JPEGs (and Annotations) in the real VOC archive, most of them without a mask."""
JPEG_BYTES = 110_000
"""Size of a typical JPEG in the real archive."""


@dataclass(frozen=True)
class Lists:
    """The four id lists of the real archives."""

    voc_train: list[str]
    voc_val: list[str]
    sbd_train: list[str]
    sbd_val: list[str]

    @property
    def voc(self) -> list[str]:
        return sorted({*self.voc_train, *self.voc_val})

    @property
    def sbd(self) -> list[str]:
        return sorted({*self.sbd_train, *self.sbd_val})

    @property
    def trainaug(self) -> list[str]:
        return sorted(({*self.voc_train, *self.sbd}) - {*self.voc_val})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.prepare.synthetic",
        description="Writes stand-ins for the VOC 2012 and SBD archives, in the real formats.",
    )
    parser.add_argument("out", type=Path, help="folder that gets the two archives and SHA256SUMS")
    parser.add_argument("--train", type=int, default=60, metavar="N", help="images in trainaug (default 60)")
    parser.add_argument("--val", type=int, default=20, metavar="N", help="images in val (default 20)")
    parser.add_argument("--size", type=int, default=500, metavar="PX", help="longer side (default 500)")
    parser.add_argument(
        "--classes", type=int, default=4, metavar="N", help="classes drawn, 1 to 20 (default 4)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="as many files and bytes as the real archives")
    parser.add_argument(
        "--lists", type=Path, metavar="DIR", help="ids from real lists (voc12_seg_train.txt …)"
    )
    parser.add_argument("--pool", type=int, default=0, metavar="K", help="draw only K scenes and repeat them")
    args = parser.parse_args()
    for name in (VOC_ARCHIVE, SBD_ARCHIVE):
        # Ours are listed in the SHA256SUMS beside them.
        if (args.out / name).exists() and listed_digest(args.out / name) is None:
            raise UserError(f"{args.out / name} already exists: choose another folder for the stand-ins")
    lists = read_lists(args.lists) if args.lists else make_lists(args.train, args.val)
    write_archives(
        args.out,
        lists,
        size=args.size,
        classes=20 if args.full else args.classes,
        seed=args.seed,
        pool=args.pool or (64 if args.full else 0),
        full=args.full,
    )
    print(
        f"{args.out}: {len(lists.voc) + len(set(lists.sbd) - set(lists.voc))} images, "
        f"{len(lists.trainaug)} in trainaug, {len(lists.voc_val)} in val"
    )


def make_lists(train: int, val: int) -> Lists:
    """Ids in every combination that the real lists have, for `train` trainaug and `val` validation images.

    A third of trainaug is VOC's own training set (a quarter of that without an SBD mask); three quarters of
    VOC val are in SBD too, half in its train list: the leak to guard against.
    """
    if train < 4 or val < 2:
        raise ValueError("at least 4 training and 2 validation images are needed")
    ids = [f"{2007 + i % 5}_{i:06d}" for i in range(train + val)]
    in_train, in_val = ids[:train], ids[train:]
    voc_train = in_train[: max(2, train // 3)]
    only_voc = voc_train[: max(1, len(voc_train) // 4)]
    sbd_train = [i for i in in_train if i not in only_voc]
    sbd_val = [sbd_train.pop()]
    in_sbd = in_val[: max(1, 3 * val // 4)]
    return Lists(
        voc_train=sorted(voc_train),
        voc_val=sorted(in_val),
        sbd_train=sorted(sbd_train + in_sbd[::2]),
        sbd_val=sorted(sbd_val + in_sbd[1::2]),
    )


def read_lists(folder: Path) -> Lists:
    def read(name: str) -> list[str]:
        return (folder / name).read_text(encoding="ascii").split()

    return Lists(
        read("voc12_seg_train.txt"), read("voc12_seg_val.txt"), read("sbd_train.txt"), read("sbd_val.txt")
    )


def write_archives(
    out: Path,
    lists: Lists,
    *,
    size: int = 500,
    classes: int,
    seed: int = 0,
    pool: int,
    full: bool,
) -> None:
    """Writes both archives and SHA256SUMS into `out`.

    `full` adds what the pipeline never reads but an extraction has to write: JPEGs of up to 110 kB, images
    without masks, XML annotations.
    """
    out.mkdir(parents=True, exist_ok=True)
    jpeg_bytes = JPEG_BYTES if full else 0
    pooled = [make_scene(seed, k, size, classes, jpeg_bytes) for k in range(pool)]

    def scene(number: int) -> Scene:
        return pooled[number % pool] if pool else make_scene(seed, number, size, classes, jpeg_bytes)

    ids = sorted({*lists.voc, *lists.sbd})
    numbers = {name: number for number, name in enumerate(ids)}
    with (out / VOC_ARCHIVE).open("wb") as file:
        write_tar(file, voc_members(lists, ids, numbers, scene, full), tarfile.USTAR_FORMAT)
    with gzip_writer(out / SBD_ARCHIVE) as stream:
        write_tar(stream, sbd_members(lists, numbers, scene), tarfile.GNU_FORMAT)
    lines = [f"{digest(out / name, 'sha256')}  {name}\n" for name in (VOC_ARCHIVE, SBD_ARCHIVE)]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="ascii")


# --- members, in the order of the real archives ---

Members = Iterator[tuple[str, bytes]]
Scenes = Callable[[int], Scene]


def voc_members(lists: Lists, ids: list[str], numbers: dict[str, int], scene: Scenes, full: bool) -> Members:
    root = "VOCdevkit/VOC2012"
    extra = [f"2012_{900_000 + i:06d}" for i in range(REAL_IMAGES - len(ids))] if full else []
    if full:
        for name in ids + extra:
            yield f"{root}/Annotations/{name}.xml", annotation(name)
    segmentation = f"{root}/ImageSets/Segmentation"
    yield f"{segmentation}/train.txt", lines_of(lists.voc_train)
    yield f"{segmentation}/trainval.txt", lines_of(lists.voc)
    yield f"{segmentation}/val.txt", lines_of(lists.voc_val)
    for number, name in enumerate(ids + extra):
        yield f"{root}/JPEGImages/{name}.jpg", scene(numbers.get(name, number)).jpeg
    for name in lists.voc:
        yield f"{root}/SegmentationClass/{name}.png", scene(numbers[name]).class_png
    for name in lists.voc:
        yield f"{root}/SegmentationObject/{name}.png", scene(numbers[name]).object_png


def sbd_members(lists: Lists, numbers: dict[str, int], scene: Scenes) -> Members:
    root = "benchmark_RELEASE"
    yield f"{root}/README", b"Synthetic stand-in for the Semantic Boundaries Dataset.\n"
    # The decoy: a second dataset with its own lists, its ids among the real ones but its labels wrong.
    decoys = lists.sbd[:2] + lists.voc_val[:1]
    demo = f"{root}/benchmark_code_RELEASE/demo/datadir"
    for name in decoys:
        wrong = np.full_like(scene(numbers[name]).mask, 20)
        yield f"{demo}/cls/{name}.mat", cls_mat(wrong)
        yield f"{demo}/inst/{name}.mat", inst_mat(np.ones_like(wrong), [20])
    yield f"{demo}/train.txt", lines_of(decoys[:1])
    yield f"{demo}/val.txt", lines_of(decoys[1:])
    for name in lists.sbd:
        yield f"{root}/dataset/cls/{name}.mat", scene(numbers[name]).cls_mat
    for name in lists.sbd:
        yield f"{root}/dataset/img/{name}.jpg", scene(numbers[name]).jpeg
    for name in lists.sbd:
        yield f"{root}/dataset/inst/{name}.mat", scene(numbers[name]).inst_mat
    yield f"{root}/dataset/train.txt", lines_of(lists.sbd_train)
    yield f"{root}/dataset/val.txt", lines_of(lists.sbd_val)


def lines_of(ids: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in ids).encode()


def annotation(name: str) -> bytes:
    return (
        f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>\n"
        "\t<segmented>1</segmented>\n</annotation>\n"
    ).encode()


# --- archives ---


def write_tar(file: IO[bytes], members: Members, tar_format: int) -> None:
    """Writes regular files after their folders, with fixed owner and times: equal seeds yield equal bytes."""
    folders: set[str] = set()
    with tarfile.open(fileobj=file, mode="w|", format=tar_format, bufsize=1 << 20) as tar:
        for name, content in members:
            for depth in range(1, name.count("/") + 1):
                folder = "/".join(name.split("/")[:depth])
                if folder not in folders:
                    folders.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_336_000_000
                    tar.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 1_336_000_000
            tar.addfile(entry, io.BytesIO(content))


def gzip_writer(path: Path) -> IO[bytes]:
    # isal compresses the full-size stand-in several times faster. Neither stream has a name or time.
    try:
        from isal import igzip
    except ImportError:
        return cast(IO[bytes], gzip.GzipFile(path, "wb", compresslevel=6, mtime=0))
    return cast(IO[bytes], igzip.IGzipFile(str(path), "wb", compresslevel=2, mtime=0))


if __name__ == "__main__":
    run_command(main)
