"""Images and masks that are decoded once per node: with `baton = dict(stage_decoded=True)`, whoever first
decodes one of a packed dataset writes its pixels beside the dataset's copy (jobs/run/staged.py), and the
others read them from there, in a fraction of the time.

STAGE/baton-UID-data/KEY.pixels
    a slot for each file of the container, in its order: where its pixels begin, their height, width, channels
    (0 of a mask, which has no such axis) and CRC-32, and the slot's own CRC-32; zeros where there are none
    then the pixels (a byte for each, and for each of the channels B, G, R), in the order in which they came

KEY identifies one state of the container, the versions of OpenCV and Pillow, and the node's boot: what was
written before a crash may not have reached the disk. Any number of this user's processes can read and fill it
once the dataset's copy exists; it is evicted like copies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import PIL
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from jobs.mmseg import packed
from jobs.mmseg.transforms import LoadAnnotationsFast, swap_in
from jobs.run import file_systems, place, staged
from jobs.run import packed as containers
from jobs.run.deflate import crc32
from jobs.run.errors import UserError
from jobs.supervise import staging

Image = npt.NDArray[np.uint8]

SLOT = struct.Struct("<QIIIII")
LOCK = "lock-pixels"
KEPT_FREE = 0.2
"""Fraction of the file system that is left to others, including copies of other datasets."""


class Pixels:
    """The pixels of one container's images. Raises UserError or OSError if they cannot be kept.

    Forked processes may continue to use it. Two threads of one process that write at once corrupt what they
    write, which is detected on reading.
    """

    def __init__(self, container: containers.Container, stage: Path) -> None:
        self.numbers = {name: number for number, name in enumerate(container.files)}
        self.path = staged.folder(stage) / name(container)
        with staging.closing(staging.open_folder(stage)) as inside:
            kind = file_systems.kind(inside)
            if kind in file_systems.IN_MEMORY:
                raise UserError(f"{stage} is in memory ({kind}), which they would take away from the job")
            if kind in file_systems.OVER_A_NETWORK:
                raise UserError(f"{stage} is not a local disk of the node ({kind})")
            self._fd = _open(inside, self.path.name, len(self.numbers) * SLOT.size)
        self._over = mmap.mmap(-1, 1)
        """Shared flag: this process or one forked from it had to give up, so the others do not try either."""

    def __del__(self) -> None:
        if hasattr(self, "_fd") and os is not None:  # else the process ends, and its modules are gone
            os.close(self._fd)

    def read(self, name: str, channels: int) -> Image | None:
        """The pixels of a file, (height, width) or (height, width, `channels`); None if there are none."""
        if self._over[0]:
            return None
        try:
            offset, height, width, kept, check = self._slot(self.numbers[name])
            if not offset or kept != channels:
                return None
            if offset + height * width * max(1, channels) > os.fstat(self._fd).st_size:
                raise ValueError("it was cut off")
            image = np.empty((height, width, channels) if channels else (height, width), np.uint8)
            if os.preadv(self._fd, [image.data], offset) == image.nbytes and crc32(image.data) == check:
                return image
            trouble = "what is read is not what was written"
        except (OSError, struct.error, ValueError) as error:
            trouble = str(error)
        self._give_up(f"{trouble}: is the node's disk bad?")
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), os.lstat(self.path)):  # not a new one of another process
                self.path.unlink()
        return None

    def _slot(self, number: int) -> tuple[int, ...]:
        """Offset, height, width, channels and CRC-32 of a file's pixels; zeros if there are none, or if they
        are being written right now."""
        *fields, own = SLOT.unpack(os.pread(self._fd, SLOT.size, number * SLOT.size))
        return tuple(fields) if own == _check(*fields) else (0,) * len(fields)

    def write(self, name: str, image: Image) -> None:
        """Stores an image's pixels, if there is space, and unless another process is writing right now: it
        may be suspended."""
        if self._over[0]:
            return
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            try:
                trouble = self._append(self.numbers[name], image)
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return
        except OSError as error:
            trouble = str(error.strerror)
        if trouble:
            self._give_up(trouble)

    def _append(self, number: int, image: Image) -> str:
        """Why it was not stored; "" if it was, now or by another process meanwhile."""
        if self._slot(number)[0]:
            return ""
        offset, there = os.fstat(self._fd).st_size, os.fstatvfs(self._fd)
        room = there.f_bavail - int(KEPT_FREE * there.f_blocks)
        if room * there.f_frsize < image.nbytes:
            return "there is no more room"
        pixels = np.ascontiguousarray(image).data
        if os.pwrite(self._fd, pixels, offset) < image.nbytes:
            os.ftruncate(self._fd, offset)
            return "the disk is full"
        fields = (offset, *image.shape[:2], image.shape[2] if image.ndim == 3 else 0, crc32(pixels))
        os.pwrite(self._fd, SLOT.pack(*fields, _check(*fields)), number * SLOT.size)
        return ""

    def _give_up(self, why: str) -> None:
        self._over[0] = 1
        say(f"{self.path}: {why}; each image is decoded instead")


def name(container: containers.Container) -> str:
    of = f"{place.BOOT.read_text()} {cv2.getBuildInformation()} {PIL.__version__}"
    return staged.name(container.path, container.status, staged.PIXELS, of)


def _check(*fields: int) -> int:
    return crc32(SLOT.pack(*fields, 0))


def _open(inside: int, name: str, size: int) -> int:
    """A descriptor of the file in the open folder, created with empty slots if missing, locked against
    eviction and marked as used now."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with staging.closing(staging.open_lock(inside, LOCK)):
        while True:
            fd = os.open(name, flags, 0o600, dir_fd=inside)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
                    raise UserError(f"{name} there is not this user's own file")
                if status.st_nlink:
                    if status.st_size < size:
                        os.ftruncate(fd, size)
                    os.utime(fd)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # it was evicted between the two


@TRANSFORMS.register_module()
class LoadImageFromFileOnce(LoadImageFromFile):
    """mmcv's LoadImageFromFile, but 8-bit colour images decoded by OpenCV come from `Pixels`, or go there.

    The name has to start like that of a loading transform (data.py, model.py).
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        plain = self.imdecode_backend == "cv2" and self.color_type == "color"
        plain = plain and not self.to_float32 and not self.ignore_empty
        place = _Place.of(results["img_path"]) if plain else None
        image = place.pixels.read(place.name, 3) if place else None
        if image is not None:
            results["img"] = image
            results["img_shape"] = results["ori_shape"] = image.shape[:2]
            return results
        loaded: dict[str, Any] | None = super().transform(results)
        if place and loaded is not None:
            place.write(loaded["img"])
        return loaded


@TRANSFORMS.register_module()
class LoadAnnotationsOnce(LoadAnnotationsFast):
    """mmseg's LoadAnnotations, but the same for masks whose labels are used as they are in the file."""

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        place = _Place.of(results["seg_map_path"]) if self.as_they_are(results) else None
        mask = place.pixels.read(place.name, 0) if place else None
        if mask is not None:
            self.take(results, mask)
            return
        super()._load_seg_map(results)
        if place and results["gt_seg_map"].ndim == 2:
            place.write(results["gt_seg_map"])


ONCE: dict[type, type] = {
    LoadImageFromFile: LoadImageFromFileOnce,
    LoadAnnotations: LoadAnnotationsOnce,
    LoadAnnotationsFast: LoadAnnotationsOnce,
}


class _Place(NamedTuple):
    """Where the pixels of a file are kept."""

    pixels: Pixels
    container: containers.Container
    name: str

    @classmethod
    def of(cls, path: str) -> _Place | None:
        """The place of a path's pixels; None if they are not kept."""
        container, name = packed.find(path) or (None, "")
        pixels = _pixels_of(container) if container else None
        return cls(pixels, container, name) if pixels and container and name in pixels.numbers else None

    def write(self, image: Image) -> None:
        if self.container.local:  # the copy has priority: it needs the space
            self.pixels.write(self.name, image)


_kept: dict[Path, Pixels | None] = {}
"""Container path -> Pixels; None if there can be none. A forked process uses its parent's; a spawned one
opens its own."""


def decode_once(loaders: Sequence[Any], cores: int) -> int:
    """Makes the transforms of data loaders' configs that read packed images (packed.read_packed) keep their
    pixels, in place; returns how many. Prints a message if none can be kept.

    Such a loader gets at most `cores` workers: they never wait for I/O, so more would only compete. The
    samples do not depend on that.
    """
    swapped = 0
    for loader in loaders:
        count = swap_in(loader.get("dataset"), ONCE, _reads_packed)
        swapped += count
        kept = [_pixels_of(container) for container in packed.containers_of(loader.dataset)] if count else []
        if any(kept) and loader.get("num_workers", 0) > cores:
            say(f"{cores} loader workers, not {loader.num_workers}: one per CPU")
            loader.num_workers = cores
    if not swapped:
        say("nothing is loaded from a packed dataset here")
    return swapped


def _pixels_of(container: containers.Container) -> Pixels | None:
    if container.path not in _kept:
        _kept[container.path] = None
        try:
            if (stage := staged.place()) is None:
                raise UserError("there is no `stage`")
            _kept[container.path] = pixels = Pixels(container, stage)
            say(f"images decoded from {container.path} are kept in {pixels.path}")
        except (UserError, OSError) as error:
            say(f"{error}; each image is decoded every time")
    return _kept[container.path]


def say(text: str) -> None:
    print(f"baton: stage_decoded: {text}", flush=True)


def _reads_packed(step: Any) -> bool:
    return bool(step.get("backend_args") == {"backend": packed.BACKEND})
