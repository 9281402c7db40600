"""Segments images with a run's model, or one from export.py: masks and overlays, each the size of its image.

Images of more than 268 million pixels are segmented in tiles, with --tile all larger than a tile.
A GeoTIFF's mask keeps its georeference. The same command with the same --out continues where it stopped.
"""

import argparse
import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

import checkout

from jobs.run import files, output
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import from_export, large_images, options, profiles, runs, single_job

EXAMPLES = """\
  python launch/infer.py first photo.jpg
  python launch/infer.py first folder/ 'more/*.png' --out masks --wait
  python launch/infer.py first photo.jpg --checkpoint last --cluster local --wait
  python launch/infer.py exported/ photo.jpg --out masks
  python launch/infer.py first land.tif --tile 1024 --overlap 256
  python launch/infer.py first 100000-photos/ --gpus 8 --out masks
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="a run's name or path, or a folder of export.py")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders, glob patterns")
    parser.add_argument(
        "--out", metavar="DIR", help="where the masks go: a new, empty or earlier --out (default: in the run)"
    )
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help=options.WHICH)
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    large_images.add(parser)
    options.add_common(parser)
    arguments = parser.parse_args()

    large_images.check(arguments)
    folder = from_export.folder(arguments.run)
    known = None if folder else runs.find(arguments.run)
    images = [place(given) for given in arguments.images]
    if arguments.out:
        out = options.out_folder(arguments.out)
        over = [path for path in images if Path(path).resolve() == out.resolve()]
        if over:
            raise UserError(f"--out {out} holds what is to be segmented ({over[0]}): choose another folder")
    with contextlib.ExitStack() as stack:
        run, resolved, checkpoint = stack.enter_context(target(arguments, folder, known))
        large_images.check_job(arguments, run, resolved, images)
        if not arguments.out:
            out = stack.enter_context(runs.dated_folder(run.path / files.INFER(), not arguments.dry_run))
        given = ["--out", str(out), "--checkpoint", checkpoint, *large_images.as_given(arguments)]
        batch = single_job.batch(run.path, resolved, [*given, "--", *images], f"{run.name}-infer")
        if arguments.dry_run:
            return single_job.show(batch, arguments.json)
        job, process = single_job.submit(run, batch)
    if not arguments.json:
        print(f"masks    {out}")
    return single_job.tell(arguments, run, "infer", job, process)


@contextlib.contextmanager
def target(
    arguments: argparse.Namespace, folder: Path | None, run: Run | None
) -> Iterator[tuple[Run, profiles.Resolved, str]]:
    """The run, the job's settings and the checkpoint; for an exported model, a new run is made."""
    if run is None:
        assert folder is not None
        with from_export.new_run(arguments, folder) as made:
            yield made
        return
    checkpoint = options.checkpoint(arguments.checkpoint, run, address=False)
    yield run, options.settings(arguments, options.profile_of(arguments, run, "infer"), "infer"), checkpoint


def place(given: str) -> str:
    """What an IMAGE argument names, as an absolute path. Raises UserError if there is no such thing, or
    no image in it."""
    path = Path(given).expanduser().absolute()
    if output.special(path):
        raise UserError(f"{path} is a device or a pipe: give image files, folders or patterns")
    if path.is_dir():
        large_images.check_folder(path)
    if path.exists():
        return str(path)
    # A pattern that the shell did not expand. The job expands it: a batch script cannot hold 100,000 names.
    pattern = os.path.join(glob.escape(str(Path.cwd())), Path(given).expanduser())
    if next(glob.iglob(pattern, recursive=True), None) is None:
        raise UserError(f"there is no image, folder or match for {given!r}")
    return pattern


if __name__ == "__main__":
    checkout.run(main)
