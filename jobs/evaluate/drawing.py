"""The pictures of an evaluation: image, truth and prediction side by side, the worst images first."""

from __future__ import annotations

import heapq
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.evaluate import results
from jobs.mmseg import images
from jobs.run import files
from jobs.run.errors import UserError, one_line


class Pictures:
    """Draws the requested pictures of one process's images. The worst are only known once all have been
    counted: until then, the predictions of candidates are kept, compressed."""

    def __init__(self, where: Path, dataset: Any, asked: list[str], palette: Any, turned: bool) -> None:
        """`asked`: a number (the worst), `all`, or image ids. Raises UserError for an id that the dataset
        does not have."""
        self.where, self.dataset, self.palette, self.turned = where, dataset, palette, turned
        self.worst = how_many(asked, len(dataset))
        self.chosen = {} if self.worst is not None else pictures_of(dataset, asked)
        self.drawn: set[int] = set()
        self.kept: list[tuple[float, int, str, tuple[int, ...], bytes]] = []

    def seen(self, index: int, score: float, source: str, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Handles an image of this process that has been counted; `score`: its mIoU, `source`: its path."""
        if index in self.chosen:
            if self.draw(self.chosen[index], source, truth, prediction):
                self.drawn.add(index)
        elif self.worst:
            # A heap with the best of those kept first, which is dropped if there are too many.
            full = len(self.kept) == self.worst
            if full and (-score, -index) < self.kept[0][:2]:
                return
            both = np.stack([truth, prediction]).astype(np.uint16)
            kept = (-score, -index, source, both.shape, zlib.compress(both.tobytes(), 1))
            heapq.heappush(self.kept, kept)
            if len(self.kept) > self.worst:
                heapq.heappop(self.kept)

    def finish(self, order: Sequence[int]) -> dict[int, str]:
        """Names this process's pictures, by their image's place in `order` (worst first), and draws those of
        the worst. Returns image number -> name of its picture."""
        if self.worst is not None:
            self.chosen = pictures_of(self.dataset, [], list(order[: self.worst]))
        place = {index: number for number, index in enumerate(order, 1)}
        found = {
            index: f"{place[index]:0{len(str(len(order)))}d}_{name}" for index, name in self.chosen.items()
        }
        folder = self.where / files.EVAL_PICTURES
        for index in self.drawn:
            os.replace(folder / f"{self.chosen[index]}.jpg", folder / f"{found[index]}.jpg")
        for _, negative, source, shape, content in self.kept:
            if -negative in found:
                truth, prediction = np.frombuffer(zlib.decompress(content), np.uint16).reshape(shape)
                self.draw(found[-negative], source, truth, prediction)
        return found

    def draw(self, name: str, source: str, truth: np.ndarray, prediction: np.ndarray) -> bool:
        """Draws a picture. Prints a message and returns False if that fails: the figures need none."""
        from jobs.mmseg import packed
        from jobs.prepare.own import images as prepared

        try:
            with packed.local(Path(source)) as path:
                image = prepared.shown(Path(path), self.turned)
            results.picture(self.where, name, image, truth, prediction, self.palette)
        except Exception as error:  # a decoder raises anything; and the disk may be full
            print(f"no picture of {Path(source).name}: {one_line(error, 200)}", flush=True)
            return False
        return True


def how_many(asked: list[str], count: int) -> int | None:
    """The number of worst images requested; None if images are requested in another way."""
    if len(asked) != 1 or not asked[0].isdecimal():
        return None
    if int(asked[0]) > count and len(asked[0]) >= 5:
        return None  # an id
    return min(int(asked[0]), count)


def pictures_of(dataset: Any, asked: list[str], chosen: list[int] | None = None) -> dict[int, str]:
    """Index -> picture's name of the images to draw (`chosen`, or `all`, or ids): an image's stem, with its
    folders where that is not enough. Raises UserError for an id that the dataset does not have."""
    if chosen is None and asked == ["all"]:
        chosen = list(range(len(dataset)))
    elif chosen is None:
        ids: dict[str, list[int]] = {}
        for index in range(len(dataset)):
            ids.setdefault(path_of(dataset, index).stem, []).append(index)
        if unknown := [name for name in asked if name not in ids]:
            raise UserError(f"--pictures: the dataset has no image {', '.join(unknown)}")
        chosen = sorted({index for name in asked for index in ids[name]})
    paths = [path_of(dataset, index) for index in chosen]
    stems = Counter(path.stem for path in paths)
    taken: set[str] = set()  # a/b_c and a_b/c would be one
    return {
        index: images.distinct(path.stem if stems[path.stem] == 1 else "_".join(name.parts), taken)
        for index, path, name in zip(chosen, paths, images.names(paths), strict=True)
    }


def path_of(dataset: Any, index: int) -> Path:
    return Path(dataset.get_data_info(index)["img_path"])
