"""One process's part of an inference: how each image is segmented, and the result of all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.engine import ranks
from jobs.infer import raster, stamp, whole
from jobs.infer.large import Large, Left, tiling_of
from jobs.mmseg import images, labels
from jobs.mmseg import model as models
from jobs.run import events, failure, output, windows
from jobs.run.directory import Run
from jobs.run.errors import UserError, one_line
from jobs.run.exit_codes import FAILED, RESUME, USER_ERROR
from jobs.run.task import job_id

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that has no space for any result."""
UNFINISHED = re.compile(r"\..+\.((png|jpg|json)\.\d+\.tmp|[0-9a-f]{8}\.tmp\.(tif|png)(\.aux\.xml)?)")
LOOKS = 30
"""Number of images, or tiles, for which a process checks that they are read as stored, which takes longer
than reading them."""
TOLD = 1000
"""The most problems of a process that are reported individually."""
MOST_SECONDS = 20 * 86400.0
"""How long a rank waits for the others, one of which may have the largest image. (Its death is noticed at
once.) epoll allows no longer time."""


@dataclass
class Done:
    """The results of a process's images."""

    segmented: int = 0
    before: int = 0
    """Number of images that were done already."""
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    defect: str = ""
    """The last error that is not known to be the image's own fault."""
    left: bool = False
    """Whether it was asked to exit before all was done."""
    full: bool = False
    """Whether no more results could be written; then the rest was not tried."""


class Segmenting:
    def __init__(
        self,
        run: Run,
        checkpoint: Path,
        device: str,
        out: Path,
        tile: tuple[int | None, int | None],
        asked_to_leave: Callable[[], bool],
    ) -> None:
        """`tile`: requested size and overlap. Raises UserError for a checkpoint that does not fit, and for a
        config that does not read images."""
        windows.check_tile(*tile)
        images.start_no_ghostscript()
        self.out, self.tile, self.asked_to_leave = out, tile[0], asked_to_leave
        cfg = models.config(run)
        self.model = models.load(cfg, checkpoint, device)
        labels.use_fast_labels(self.model)
        self.load, self.prepare = models.reading(cfg)
        self.turned = models.turns(cfg)
        tiling = tiling_of(cfg, *tile)
        self.large = Large(self.model, self.load, self.prepare, tiling, device, asked_to_leave, self._look)
        self.whole_stamp = stamp.common(run, cfg, checkpoint, None)
        self.tiled_stamp = stamp.common(run, cfg, checkpoint, tiling)
        self.done = Done()
        self.error: Exception | None = None
        self.looks = LOOKS

    def one(self, path: Path, name: Path) -> bool:
        """Segments an image; records what is wrong with it. Returns False if it was asked to exit, or if
        nothing can be written: there is no space, or the output folder has gone."""
        if self.done.segmented and not (self.out / output.MARK).exists():
            self.done.full = True
            self._failed(f"{self.out} was removed or renamed meanwhile: start again, with a new --out")
            return False
        # Not before something is done: a job that starts within its grace time would come back for ever.
        if self.asked_to_leave() and self.done.segmented:
            self.done.left = True
            return False
        try:
            new = self._segment(path, self.out / name)
        except Left:
            self.done.left = True
            return False
        except UserError as error:
            self._failed(str(error))
        except Exception as error:  # one that is too large, or so narrow that nothing of it is left
            if isinstance(error, OSError) and error.errno in FULL:
                self.done.full = True
                where = error.filename or self.out
                self._failed(
                    f"no space left at {where} (bytes, inodes or quota): make room, the same command goes on"
                )
                return False
            self.error = error
            self.done.defect = f"{type(error).__name__}: {one_line(error, 200)}"
            self._failed(f"{path} cannot be segmented: {one_line(error, 200)}")
        else:
            self.done.segmented += new
            self.done.before += not new
        return True

    def _failed(self, problem: str) -> None:
        self.done.failed += 1
        if len(self.done.problems) < TOLD:
            self.done.problems.append(problem)

    def _segment(self, path: Path, name: Path) -> bool:
        """Segments an image; False if it was done already."""
        tiled = self._in_tiles(path)
        try:
            stamped = stamp.of(self.tiled_stamp if tiled else self.whole_stamp, path)
        except OSError as error:
            raise images.unreadable(path, error) from None
        if stamp.is_on(whole.mask_of(name, path), stamped):
            return False
        if tiled:
            self.large.segment(path, name, stamped)
        else:
            self._look(path)
            found = whole.segment(self.model, self.prepare, images.loaded(self.load, path))
            whole.write(name, path, found, self.model.dataset_meta["palette"], self.turned, stamped)
        return True

    def _look(self, path: Path, named: str = "") -> None:
        """Warns of the first image, or tile of the image `named`, that is read differently from how it is
        stored; checks only the first few."""
        if not self.looks or path.suffix.lower() not in raster.GEOGRAPHIC:
            return
        from jobs.prepare.own import reading

        if reading.is_usual(path):
            return
        self.looks -= 1
        if reading.misread(self.load, path):
            self.looks = 0
            print(
                f"warning: {named or path}: the config's loading step does not give the pixels that are "
                "stored (because of alpha, or what its bands mean), which prepare.py --images would use: "
                "save it as RGB",
                flush=True,
            )

    def _in_tiles(self, path: Path) -> bool:
        size = images.size(path) or raster.size(path)
        if size is None:
            return False
        return size[0] * size[1] > windows.MOST_PIXELS or (self.tile is not None and max(size) > self.tile)


def conclude(run: Run, us: ranks.Ranks, work: Segmenting, out: Path, alone: bool) -> int:
    """Waits for the other ranks, and reports the result of all images. Returns the exit code: rank 0's tells
    the outcome; the others, which exit before, have 0. `alone`: no other job writes here. Raises the error
    that kept all images from being segmented."""
    heard = ranks.gather(us, json.dumps(asdict(work.done)).encode(), MOST_SECONDS)
    ranks.rank_0_ends_last(us)
    if heard is None:
        return 0
    every = [Done(**json.loads(part)) for part in heard]
    done = Done(
        segmented=sum(one.segmented for one in every),
        before=sum(one.before for one in every),
        failed=sum(one.failed for one in every),
        problems=[problem for one in every for problem in one.problems],
        defect=next((one.defect for one in every if one.defect), ""),
        left=any(one.left for one in every),
        full=any(one.full for one in every),
    )
    nothing = not done.segmented and not done.before
    if done.left:
        code = RESUME
    elif done.defect and nothing:
        code = FAILED
    else:
        code = USER_ERROR if done.failed else 0
    if alone and code != RESUME:
        sweep(out)
    if code == FAILED:  # not the images', but ours or the model's
        raise work.error or RuntimeError(done.defect)
    tell(run, done, code, out)
    return code


def tell(run: Run, done: Done, code: int, out: Path) -> None:
    total = done.segmented + done.before + done.failed
    before = f" ({done.before} of them before)" if done.before else ""
    if code == RESUME:
        print(
            f"leaving; {done.segmented + done.before} image(s) done{before}; the same command goes on "
            "from there"
        )
        return
    of = "" if done.full else f" of {total}"
    print(f"{total - done.failed}{of} images segmented{before}: masks and overlays in {out}", flush=True)
    for problem in done.problems:
        print(f"error: {problem}", file=sys.stderr)
    if len(done.problems) < done.failed:
        print(f"error: and {done.failed - len(done.problems)} more", file=sys.stderr)
    if code:
        others = f" ({done.failed - 1} more like this)" if done.failed > 1 else ""
        failure.tell(run, "infer", f"{done.problems[0]}{others}", USER_ERROR)
    elif run.events.exists():
        events.append(run.events, "finished", stage="infer", job=job_id())


def sweep(out: Path) -> None:
    """Removes temporary files of killed processes (directory.write_atomically, raster.write_mask), unless
    another inference is writing there. All ranks have exited."""
    with contextlib.suppress(OSError), output.held(out, alone=True):
        for folder, _, names in os.walk(out):
            for name in names:
                if UNFINISHED.fullmatch(name):
                    Path(folder, name).unlink(missing_ok=True)
