"""Segments an image in tiles, with memory only for some of them, and resumes after an interruption.

Labels go to .NAME.part beside the result as they are computed, and the progress to .NAME.part.json; when all
are there, the mask is written from them, read back, and gets its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.infer import raster, tiles, whole
from jobs.infer.tiles import Span, Tiling
from jobs.mmseg import images
from jobs.mmseg import model as models
from jobs.prepare import progress
from jobs.run import private
from jobs.run.directory import write_atomically
from jobs.run.errors import MALFORMED, UserError, one_line

DEFAULT_TILE = 1024
RECORD_SECONDS = 5.0
"""Seconds between records of an image's progress; what came after the last is repeated."""
SAY_SECONDS = 15.0
TILES = f"baton-tiles-of-{os.uname().nodename}-"
PREVIEW = 2048
"""The longer side of a large image's overlay."""
MOST_TILES = 32
"""The most tiles in a batch on a GPU."""


class Left(Exception):
    """The job was asked to exit; a later start continues."""


def tiling_of(cfg: Any, tile: int | None, overlap: int | None) -> Tiling:
    """The tiles as requested; else the crops of a config in slide mode; else the size of the config's Resize,
    or DEFAULT_TILE."""
    resized = resizes(cfg)
    test = cfg.model.get("test_cfg") or {}
    if tile is None and not resized and test.get("mode") == "slide":
        return Tiling(tuple(test["crop_size"]), tuple(test["stride"]), even=True)
    sides = [min(scale) if isinstance(scale, (list, tuple)) else int(scale) for scale in resized if scale]
    size = tile or (sides[0] if sides else DEFAULT_TILE)
    return tiles.overlapping(size, size // 4 if overlap is None else overlap)


def resizes(cfg: Any) -> list[Any]:
    """The sizes to which the config's test pipeline resizes an image of any size; None where it is resized by
    a factor."""
    steps = [
        step
        for step in models.test_pipeline(cfg)
        if (name := models.name_of(step.get("type"))).endswith("Resize") or name == "ResizeShortestEdge"
    ]
    return [step.get("scale") for step in steps if step.get("scale") or step.get("scale_factor", 1) != 1]


@dataclass
class Large:
    """Segments large images: what these have in common."""

    model: Any
    load: Any
    prepare: Any
    tiling: Tiling
    device: str
    asked_to_leave: Callable[[], bool]
    look: Callable[[Path, str], None] = lambda *_: None
    """Called with a tile's file, before it is read, and its image's name."""

    def __post_init__(self) -> None:
        self.classes = int(getattr(self.model, "out_channels", 0) or len(self.model.dataset_meta["classes"]))
        self.dtype = whole.dtype_of(self.model)

    def segment(self, path: Path, name: Path, stamped: str) -> None:
        """Writes the mask, and an overlay on the reduced image. Raises UserError for an image that cannot be
        segmented in tiles, Left between two rows of tiles."""
        if images.is_turned(path):
            raise UserError(
                f"{path} is rotated by its EXIF tag: to be segmented in tiles it must be saved upright"
            )
        name.parent.mkdir(parents=True, exist_ok=True)
        with raster.opened(path) as source:
            rows, _ = self.tiling.axes(source.height, source.width)
            cache = raster.cache_for(source, max(stop - start for start, stop in rows.spans))
        with raster.opened(path, cache) as source:
            if source.driver == "JPEG" and source.count == 4:
                raise UserError(f"{path} is a CMYK JPEG: save it as RGB")
            # What GDAL converts to RGB, OpenCV does, too, but others leave as it is, except JPEG's YCbCr.
            steps = getattr(self.load, "transforms", [self.load])
            other = [one for one in steps if getattr(one, "imdecode_backend", "cv2") != "cv2"]
            stored = source.tags(ns="IMAGE_STRUCTURE")
            colours = stored.get("SOURCE_COLOR_SPACE")
            if other and colours and stored.get("COMPRESSION") != "YCbCr JPEG":
                raise UserError(f"{path} is a TIFF in {colours}, which is not read in tiles: save it as RGB")
            with Part(name.with_name(f".{name.name}.part"), source, self.dtype, stamped) as part:
                self.labels(source, part, path)
                self.write(source, part, path, name, stamped)

    def labels(self, source: Any, part: Part, path: Path) -> None:
        rows, columns = self.tiling.axes(source.height, source.width)
        highest = max(stop - start for start, stop in rows.spans)
        every = tiles.panels(columns, self.classes, highest)
        say = Said(path, len(every) * source.height, part)
        with own_folder() as folder:
            for number, panel in enumerate(every[part.panel :], part.panel):
                reader = Reader(self, source, folder, part)
                found = tiles.blended(rows, columns, panel, part.row, self.classes, reader.scores)
                for top, scores in found:
                    part.put(top, panel[0], self.best(scores))
                    done = top + scores.shape[1] == source.height
                    part.reached(number + done, 0 if done else top + scores.shape[1])
                    say(part.panel * source.height + part.row)
                    if self.asked_to_leave() and part.panel < len(every):
                        part.record()
                        raise Left

    def best(self, scores: Any) -> np.ndarray:
        if len(scores) == 1:
            found = scores[0] > self.model.decode_head.threshold
        elif scores.device.type == "cpu":
            from jobs.mmseg import labels

            found = labels.best_class(scores)
        else:
            found = scores.argmax(0)
        return np.asarray(found.cpu().numpy().astype(self.dtype))

    def write(self, source: Any, part: Part, path: Path, name: Path, stamped: str) -> None:
        from jobs.mmseg import pictures

        part.record()
        palette = self.model.dataset_meta["palette"]
        mask, colours = whole.mask_of(name, path), pictures.table(palette)
        try:
            labels = part.reduced(-(-max(source.width, source.height) // PREVIEW))
            pictures.save(pictures.overlay(preview(source), labels, palette), whole.overlay_of(name))
        except (UserError, ValueError, ImportError) as error:
            print(f"no overlay: {one_line(error, 200)}", flush=True)
        raster.write_mask(mask, part.get, source, self.dtype, colours, stamped)
        part.remove()


def preview(source: Any) -> np.ndarray:
    """A large image, reduced, as people see it (h × w × 3, uint8)."""
    from jobs.prepare.own import images as prepared

    found = raster.reduced(source, PREVIEW)
    return prepared.for_eyes(found if found.ndim == 3 else found[..., None])


class Reader:
    """Computes the scores of tiles: the next batch is read while the model processes the last."""

    def __init__(self, large: Large, source: Any, folder: Path, part: Part) -> None:
        self.large, self.source, self.folder, self.part = large, source, folder, part

    def scores(self, wanted: Sequence[tuple[Span, Span]]) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as reading:
            todo = list(wanted)
            if todo and not self.part.batch:
                first = list(self.predicted([self.ready(todo.pop(0))]))
                self.part.batch = self.fitting()
                yield from first
            batches = self.batches(todo)
            ahead = None
            for batch in [*batches, []]:
                following = reading.submit(lambda some: [self.ready(one) for one in some], batch)
                if ahead is not None:
                    yield from self.predicted(ahead.result())
                ahead = following

    def batches(self, todo: list[tuple[Span, Span]]) -> list[list[tuple[Span, Span]]]:
        """The tiles in batches, in the same order, each with tiles of one size."""
        found: list[list[tuple[Span, Span]]] = []
        for one in todo:
            if found and len(found[-1]) < self.part.batch and shape(found[-1][0]) == shape(one):
                found[-1].append(one)
            else:
                found.append([one])
        return found

    def ready(self, tile: tuple[Span, Span]) -> Any:
        """Applies the config's own steps to a tile, which they read from a file like any image."""
        file = self.folder / f"tile.{'tif' if self.source.driver == 'GTiff' else 'png'}"
        raster.write_window(self.source, *tile, file)
        try:
            self.large.look(file, self.source.name)
            return self.large.prepare(images.loaded(self.large.load, file))
        except UserError as error:  # users do not know the tile's file
            raise UserError(str(error).replace(str(file), self.source.name)) from None
        finally:
            file.unlink()

    def predicted(self, ready: list[Any]) -> Iterator[Any]:
        from jobs.mmseg import labels

        if not ready:
            return
        with labels.scores_alone(self.large.model):
            results = whole.results_of(self.large.model, ready)
        for result in results:
            if "seg_logits" not in result:
                raise UserError("the model gives class numbers without scores, so it cannot be used in tiles")
            yield result.seg_logits.data.float()

    def fitting(self) -> int:
        """How many tiles fit on the device at once; 1 on the CPU, which gains nothing from more."""
        from jobs.engine import devices

        return max(1, min(MOST_TILES, devices.fitting(self.large.device)))


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder for tiles, locked until its process exits: so folders left on this machine by killed
    processes are recognised and removed. (Another machine's locks may not be visible here.)"""
    for left in Path(tempfile.gettempdir()).glob(f"{TILES}*"):
        with contextlib.suppress(OSError, UserError), locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(left)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix=TILES, ignore_cleanup_errors=True) as folder,
            contextlib.ExitStack() as held,
        ):
            with contextlib.suppress(OSError):  # without locks, none are removed either
                held.enter_context(locked(Path(folder), fcntl.LOCK_EX))
            if os.path.isdir(folder):  # no other process has removed it before it was locked
                yield Path(folder)
                return


@contextlib.contextmanager
def locked(folder: Path, how: int) -> Iterator[None]:
    """Locks a folder. Raises OSError if that is impossible, UserError for another user's."""
    file = private.open_folder(folder, make=False)
    try:
        fcntl.flock(file, how)
        yield
    finally:
        os.close(file)


def shape(tile: tuple[Span, Span]) -> tuple[int, int]:
    (top, bottom), (left, right) = tile
    return bottom - top, right - left


class Part:
    """The labels of an image computed so far, in a file, row by row, and the progress."""

    def __init__(self, path: Path, source: Any, dtype: np.dtype[Any], stamped: str) -> None:
        self.path, self.height, self.width = path, source.height, source.width
        self.note = path.with_name(f"{path.name}.json")
        self.dtype, self.stamped = dtype, stamped
        self.panel = self.row = self.batch = 0
        """All panels before `panel` are done, and in it all rows before `row`. `batch`: tiles per batch,
        which is kept, because a GPU may compute a batch of another size differently."""
        self.recorded = time.monotonic()

    def __enter__(self) -> Part:
        """Raises UserError if another process is working on this image."""
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not private.lock_alone(self.file):
                raise UserError(f"another job is segmenting into {self.path}")
            self._take_up()
        except BaseException:
            os.close(self.file)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Of an image that cannot be segmented, nothing is worth being kept.
        if not (self.panel or self.row) or (kind is not None and issubclass(kind, UserError)):
            self.remove()
        os.close(self.file)

    def _take_up(self) -> None:
        try:
            note = json.loads(self.note.read_text())
            if note["stamp"] == self.stamped and os.fstat(self.file).st_size == self._bytes():
                self.panel, self.row, self.batch = int(note["panel"]), int(note["row"]), int(note["batch"])
                return
        except (OSError, *MALFORMED):
            pass
        self.note.unlink(missing_ok=True)
        os.ftruncate(self.file, 0)
        os.ftruncate(self.file, self._bytes())

    def _bytes(self) -> int:
        return int(self.height * self.width * self.dtype.itemsize)

    def put(self, top: int, left: int, labels: np.ndarray) -> None:
        for number, row in enumerate(labels, top):
            place = (number * self.width + left) * self.dtype.itemsize
            data = memoryview(row.tobytes())
            while data:
                written = os.pwrite(self.file, data, place)
                data, place = data[written:], place + written

    def get(self, top: int, stop: int) -> np.ndarray:
        """The rows from `top` up to, but not including, `stop` (h × W)."""
        size = self.width * self.dtype.itemsize
        data = b"".join(os.pread(self.file, size, number * size) for number in range(top, stop))
        return np.frombuffer(data, self.dtype).reshape(stop - top, self.width)

    def reduced(self, step: int) -> np.ndarray:
        """Every `step`-th pixel of every `step`-th row."""
        middle = [min(start + step // 2, self.height - 1) for start in range(0, self.height, step)]
        across = [min(start + step // 2, self.width - 1) for start in range(0, self.width, step)]
        return np.stack([self.get(row, row + 1)[0][across] for row in middle])

    def reached(self, panel: int, row: int) -> None:
        self.panel, self.row = panel, row
        if time.monotonic() - self.recorded >= RECORD_SECONDS:
            self.record()

    def record(self) -> None:
        """Records the progress, after syncing the labels."""
        os.fdatasync(self.file)
        note = {"stamp": self.stamped, "panel": self.panel, "row": self.row, "batch": self.batch}
        write_atomically(self.note, json.dumps(note).encode())
        self.recorded = time.monotonic()

    def remove(self) -> None:
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


class Said:
    """Prints an image's progress occasionally."""

    def __init__(self, path: Path, total: int, part: Part) -> None:
        self.path, self.total, self.due = path, total, time.monotonic() + SAY_SECONDS
        begun = part.panel * part.height + part.row
        going_on = f", going on at {begun / total:.0%}" if begun else ""
        progress.say(f"{path.name}: {part.width:,} × {part.height:,} pixels, in tiles{going_on}")

    def __call__(self, reached: int) -> None:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + SAY_SECONDS
            progress.say(f"{self.path.name}: {100 * reached // self.total}%")
