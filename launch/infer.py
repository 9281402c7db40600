"""Segments images with a run's model: palette masks and overlays, each of its image's size."""

import glob
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from jobs.run import environment, files

environment.enter()

from jobs.run import output
from jobs.run.errors import UserError, run_command
from launch.observe import tables
from launch.submit import options, runs
from launch.submit import single_job as single

EXAMPLES = """\
  python launch/infer.py first photo.jpg
  python launch/infer.py first folder/ 'more/*.png' --out masks --wait
  python launch/infer.py first photo.jpg --checkpoint last --cluster local --wait
"""


def main() -> int:
    parser = options.parser(__doc__ or "", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="a run's name or path")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders, glob patterns")
    parser.add_argument(
        "--out", metavar="DIR", help="a new or empty folder for the masks (default: one in the run)"
    )
    parser.add_argument(
        "--checkpoint", default="best", metavar="WHICH", help="best (default), last, or a path"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    options.add_common(parser, gpus=False)
    arguments = parser.parse_args()

    run = runs.find(arguments.run)
    images = [str(path) for given in arguments.images for path in places(given)]
    out = Path(arguments.out).expanduser().absolute() if arguments.out else fresh(run.path / files.INFER())
    if arguments.out:
        output.check(out, "--out")
        runs.check_path(out, "--out")
    over = next((path for path in images if Path(path).resolve() == out.resolve()), None)
    if over:
        raise UserError(f"--out {out} is what is to be segmented ({over}): choose another folder")
    checkpoint = options.checkpoint(arguments.checkpoint, run)
    resolved = options.settings(arguments, options.profile_of(arguments, run, "infer"), "infer")
    job_arguments = ["--out", str(out), "--checkpoint", checkpoint, "--", *images]
    batch = single.batch(run.path, resolved, job_arguments, f"{run.name}-infer")
    if arguments.dry_run:
        return single.show(batch)
    job, process = single.submit(run, batch)
    if not arguments.json:
        print(f"masks    {out}")
    return single.tell(arguments, run, "infer", job, process)


def places(given: str) -> list[Path]:
    """Absolute paths of what an IMAGE argument names. Raises UserError if that is nothing."""
    path = Path(given).expanduser().absolute()
    if path.exists():
        return [path]
    # A pattern that the shell did not expand. One match only for each, in an order that never changes.
    matches = sorted(set(glob.glob(str(path), recursive=True)))
    if not matches:
        raise UserError(f"there is no image, folder or match for {given!r}")
    return [Path(match) for match in matches]


def fresh(parent: Path) -> Path:
    """A folder's name that nothing has yet, by date."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    path, number = parent / stem, 2
    while path.exists():
        path, number = parent / f"{stem}-{number}", number + 1
    return path


if __name__ == "__main__":
    tables.guard()
    run_command(main)
