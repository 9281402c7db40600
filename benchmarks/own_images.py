"""The check of 20,000 images of one's own: seconds, and the memory of all its processes.

examples:
  python benchmarks/own_images.py               20,000 images of 500×375, 3 GB of scratch
  python benchmarks/own_images.py --n 500       small, to see that it runs
  python benchmarks/own_images.py --scratch /fast/dir

JPEG photographs' size and detail (80 KB each) are imitated by smooth noise; masks are PNG with blobs of 21
classes, as annotation tools write them. All is generated once and stays in the scratch folder. What is timed
is everything up to the table of findings: finding the files, both files of each pair read and decoded to
their end, digests, hashes, all checks.
"""

import io
import os
import tempfile
import threading
from pathlib import Path

import repository

import cv2
import numpy as np
from PIL import Image

from benchmarks import harness
from benchmarks.prepare import family, proportional
from jobs.catalog import classes
from jobs.prepare import workers
from jobs.prepare.own import judge, sources, splits
from jobs.prepare.own.scan import How, scan
from jobs.run.errors import run_command

ROOT: Path = repository.ROOT

WIDTH, HEIGHT, CLASSES = 500, 375, 21
DISTINCT = 400
"""Different pictures; each file gets its own bytes."""


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--n", type=int, default=20_000, metavar="IMAGES")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "baton-bench-own")
    args = parser.parse_args()
    harness.restart_with(OPENBLAS_NUM_THREADS="1")
    folder = generate(args.scratch / f"{args.n}", args.n)
    seconds, busy, peaks = [], [], []
    for _ in range(args.rounds):
        before = cpu_seconds()
        with Peak() as peak:
            seconds.append(harness.timed(lambda: check(folder, args.n)))
        busy.append(cpu_seconds() - before)
        peaks.append(peak.bytes / 2**20)
    harness.record(
        "own_images_check",
        f"check of {args.n:,} images of one's own and their masks, {WIDTH}×{HEIGHT}, {workers.cores()} cores",
        sorted(seconds)[len(seconds) // 2],
        against="",
        goal=60,
        better="lower",
        unit="s",
        raw={"seconds": seconds, "cpu_seconds": busy},
        note=f"{sorted(busy)[len(busy) // 2]:.0f} s of CPU time",
    )
    harness.record(
        "own_images_memory",
        "peak memory of that check, all processes",
        max(peaks),
        against="",
        goal=1024,
        better="lower",
        unit="MiB",
        raw={"peaks": peaks},
    )
    return 0


def check(folder: Path, count: int) -> None:
    known = classes.parse("\n".join(f"class{number}" for number in range(CLASSES)), "classes")
    items, _, found = sources.collect(folder / "images", [folder / "masks"], "auto", "", known)
    items, more = splits.split(items, 0.8, 0, "", ("", ""))
    how = How(known)
    pairs = list(scan(items, how, None, None))
    table, told = judge.values_table(pairs, how)
    _, unlike = judge.bands_of(pairs)
    found += more + told + unlike + judge.judge(pairs, how, table)
    if len(pairs) != count or any(one.level == "error" for one in found):
        raise AssertionError(f"{len(pairs)} images, {found[:3]}")


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def generate(folder: Path, count: int) -> Path:
    """`count` pairs; made once."""
    if (folder / "done").exists():
        return folder
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pictures = [(jpeg(random), png(random)) for _ in range(min(count, DISTINCT))]
    for number in range(count):
        image, mask = pictures[number % DISTINCT]
        # A comment behind the first marker: the same picture, another file.
        comment = b"\xff\xfe\x00\x0a" + f"{number:08d}".encode()
        (folder / "images" / f"{number:06d}.jpg").write_bytes(image[:2] + comment + image[2:])
        (folder / "masks" / f"{number:06d}.png").write_bytes(mask)
    (folder / "done").touch()
    return folder


def jpeg(random: np.random.Generator) -> bytes:
    small = random.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    smooth = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    pixels = np.clip(smooth + random.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)
    return encoded(pixels, "JPEG", quality=90)


def png(random: np.random.Generator) -> bytes:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(6):
        centre = (int(random.integers(WIDTH)), int(random.integers(HEIGHT)))
        axes = (int(random.integers(20, 120)), int(random.integers(20, 90)))
        label = int(random.integers(1, CLASSES))
        cv2.ellipse(labels, centre, axes, int(random.integers(180)), 0, 360, label, -1)
    return encoded(labels, "PNG")


def encoded(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


class Peak:
    """The most memory that this process and those below it have at once, seen every 50 ms."""

    def __enter__(self) -> "Peak":
        self.bytes = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.05):
            self.bytes = max(self.bytes, sum(proportional(pid) for pid in family(os.getpid())))

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


if __name__ == "__main__":
    run_command(main)
