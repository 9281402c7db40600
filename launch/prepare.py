"""Submits the preparation, a CPU job: download, convert, verify PASCAL VOC 2012 with SBD; and fetch the
pretrained weights that the recipe begins with.

It can be run again at any time: what is ready is only checked, what was interrupted goes on. A training
submitted meanwhile waits for it in the queue.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs import events  # noqa: E402
from jobs.errors import UserError, run_command  # noqa: E402
from jobs.prepare import weights  # noqa: E402
from jobs.run_directory import Request, Run  # noqa: E402
from launch import data_ready, options, requests, runs, single, snapshot  # noqa: E402

EXAMPLES = """\
  python launch/prepare.py
  python launch/prepare.py --archives /scratch/archives    nothing is downloaded
  python launch/prepare.py --weights open-mmlab://resnet101_v1c     for a config of your own
  python launch/prepare.py --verify deep --wait            looks at every byte of what is there
  python launch/prepare.py --cluster mine --time 02:00:00
"""


def main() -> int:
    parser = options.parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--data-root", metavar="DIR", help="where datasets lie (default data/)")
    parser.add_argument("--archives", metavar="DIR", help="take the archives from this folder")
    parser.add_argument("--dataset", metavar="NAME", help="voc (default), or a converter of mmsegmentation's")
    parser.add_argument(
        "--verify",
        nargs="?",
        const="quick",
        choices=("quick", "deep"),
        help="only look whether what is there is sound",
    )
    parser.add_argument(
        "--no-checksum",
        action="store_true",
        help="take archives that are not the release, without a checksum",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="REFERENCE",
        help=f"pretrained weights to fetch, as configs name them (default the recipe's, {weights.DEFAULT})",
    )
    parser.add_argument("--no-weights", action="store_true", help="no pretrained weights")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    # The script of a dry run makes its run directory by these.
    parser.add_argument("--no-submit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options.add_common(parser, gpus=False)
    arguments = parser.parse_args()

    resolved = options.settings(arguments, options.profile(arguments), "prepare")
    data_root = options.data_root(arguments)
    runs.check_root(runs.prepare_root())
    job_arguments = ["--data-root", str(data_root)]
    if arguments.archives:
        archives = Path(arguments.archives).expanduser().absolute()
        if not archives.is_dir():
            raise UserError(f"--archives {arguments.archives}: there is no such folder")
        job_arguments += ["--archives", str(archives)]
    if arguments.dataset:
        job_arguments += ["--dataset", arguments.dataset]
    if arguments.verify:
        job_arguments.append(f"--verify={arguments.verify}")
    if arguments.no_checksum:
        job_arguments.append("--no-checksum")
    if arguments.no_weights:
        job_arguments.append("--no-weights")
    elif arguments.weights:
        for reference in arguments.weights:
            weights.name_of(reference)
        job_arguments += ["--weights", *arguments.weights]

    name = arguments.run or runs.free_name("prepare", runs.prepare_root())
    runs.check_name(name)
    path = runs.prepare_root() / name
    script_arguments = [*job_arguments, "--run", str(path)]
    if arguments.dry_run:
        make = ["prepare", "--no-submit", "--run", name, *job_arguments, *options.as_given(arguments)]
        return single.show(single.batch(path, resolved, script_arguments, name, make))
    busy = None if arguments.no_submit else data_ready.preparing(data_root)
    if busy is not None:
        raise UserError(f"{data_root} is being prepared by {busy.name}: python launch/status.py {busy.name}")
    batch = single.batch(path, resolved, script_arguments, name)

    def fill(place: Run) -> None:
        config = snapshot.take(place.code, data_root)
        place.write_request(
            Request(
                name=name,
                config=config,
                data_root=str(data_root),
                created=events.now(),
                executor=resolved.executor,
                cluster=requests.cluster(resolved),
                python=resolved.settings.python or sys.executable,
                command=sys.argv,
                versions=requests.versions(),
            )
        )

    with runs.new_run(name, fill, runs.prepare_root()) as run:
        if arguments.no_submit:
            print(f"made {run.path}", file=sys.stderr)
            return 0
        job, process = single.submit(run, batch)
    return single.tell(arguments, run, "prepare", job, process)


if __name__ == "__main__":
    run_command(main)
