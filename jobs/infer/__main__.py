"""`python -m jobs.infer RUN --out DIR -- IMAGE…`: segments images with a run's model.

Each is read and made ready by the steps of the config's test pipeline, whatever they are (16 bits, one
channel, many bands). For each image NAME it writes DIR/NAME.png, a mask in the image's size whose pixel
values are the class numbers (with the dataset's colours as palette; 16-bit grey with more than 256 classes),
and DIR/NAME_overlay.jpg, if people can look at the image at all. A TIFF that says where on the earth it lies
gets a mask that says so too, DIR/NAME.tif. What is too large to be read whole is segmented in tiles.

One process a rank; each takes every N-th image. An image that cannot be read or segmented is named, the
others are done all the same, and the exit code is 2. An image that this model has a mask of in DIR already is
not segmented again: what was interrupted goes on. Nothing else that is there is overwritten, but for what an
inference wrote. 85: it was asked to leave, and the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import socket
from pathlib import Path

from jobs.engine import ranks
from jobs.infer import whole
from jobs.infer.listing import Listing
from jobs.mmseg import compat
from jobs.mmseg import model as models
from jobs.prepare import progress
from jobs.run import events, failure, files, output, story, windows
from jobs.run.directory import Run
from jobs.run.errors import UserError, run_command
from jobs.run.task import job_id
from jobs.run.task import read as read_task


def main() -> int:
    leave = Leave()
    arguments = parse()
    run = Run(arguments.run.resolve())
    if has_done(run, job_id()):
        print("this job has already segmented its images", flush=True)
        return 0
    with failure.reported(run, "infer", read_task().rank):
        return infer(run, arguments, leave)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.infer", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a path")
    parser.add_argument("--out", type=Path, help="output folder (default RUN/infer)")
    parser.add_argument("--tile", type=int, metavar="N", help="tiles of N pixels, for whatever is larger")
    parser.add_argument("--overlap", type=int, metavar="N", help="of two tiles (default a quarter)")
    parser.add_argument(
        "--part", default="1/1", metavar="I/N", help="only every N-th image, from the I-th on"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, globs")
    return parser.parse_args()


class Leave:
    """Whether USR2 or TERM has arrived. What is on the disk may be gone on with at any moment; a mask that
    is nearly done is worth waiting for."""

    def __init__(self) -> None:
        self.signal = ""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number).name

    def asked(self) -> bool:
        return bool(self.signal)


def has_done(run: Run, job: str | None) -> bool:
    """Whether this very job has come to its end before: Slurm may requeue one that ends well within the grace
    time of a preemption."""
    return job is not None and bool(story.read(run.events).finishes_of("infer", job))


def infer(run: Run, arguments: argparse.Namespace, leave: Leave) -> int:
    part, parts = windows.share_of(arguments.part)
    out = (arguments.out or run.path / files.INFER()).resolve()
    listing = Listing(arguments.images, out)
    total, checksum = listing.counted()
    passed = str(listing.passed)
    output.claim(out, run.path / files.INFER())
    output.check_apart(
        (path for path, _ in listing), (file for _, name in listing for file in whole.targets(out / name))
    )
    checkpoint = models.chosen_checkpoint(run, arguments.checkpoint)

    # Only now what takes seconds to import.
    compat.prepare()
    from jobs.infer.segmenting import Segmenting, conclude

    us = ranks.join(run)
    check_same(us, checksum)
    if us.rank == 0 and passed:
        print(passed, flush=True)
    work = Segmenting(run, checkpoint, us.device, out, (arguments.tile, arguments.overlap), leave.asked)
    # Of the job's part, whatever the number of ranks that other jobs have.
    ours, of = part - 1 + us.rank * parts, parts * us.size
    said = f"segmenting with {checkpoint.name}"
    with output.held(out), progress.task(said, len(range(ours, total, of))) as advance:
        for path, name in itertools.islice(listing, ours, None, of):
            if not work.one(path, name):
                break
            advance(1)
    if work.done.left:
        events.append(
            run.events, "signal", stage="infer", signal=leave.signal, rank=us.rank, host=socket.gethostname()
        )
    return conclude(run, us, work, out, parts == 1)


def check_same(us: ranks.Ranks, checksum: int) -> None:
    """Raises UserError where the ranks have not seen the same list, of which each takes its part."""
    seen = ranks.gather(us, str(checksum).encode())
    if ranks.share(us, b"" if seen is None or len(set(seen)) == 1 else b"changed"):
        raise UserError("the images' folders changed while the ranks listed them: start again")


if __name__ == "__main__":
    run_command(main)
