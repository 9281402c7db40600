"""Submits the preparation, a CPU job: download, convert, verify PASCAL VOC 2012 with SBD; and fetch the
pretrained weights that the recipe begins with. With --images it makes a dataset of your own images, checks
all of it, and writes a config that trains on it (docs/own-images.md).

It can be run again at any time: what is ready is only checked, what was interrupted continues. A training
submitted in the meantime waits for it in the queue.
"""

import argparse
import copy
import json
import sys

import checkout

from jobs.catalog import prepare_options
from jobs.catalog import recipes as datasets
from jobs.run import events
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from launch.submit import code_image, data_ready, options, preparation, room, runs, single_job, snapshot
from launch.submit import creation as requests

EXAMPLES = """\
  python launch/prepare.py
  python launch/prepare.py --archives /scratch/archives    nothing is downloaded
  python launch/prepare.py --weights open-mmlab://resnet101_v1c     for a config of your own
  python launch/prepare.py --for-config mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py
  python launch/prepare.py --dataset cityscapes --archives /scratch/archives
  python launch/prepare.py --pack                          one file instead of 25,000 (docs/packed.md)
  python launch/prepare.py --dataset mine --images photos/ --masks masks/ --classes classes.txt
  python launch/prepare.py --check configs/mine.py --wait  finds mistakes in whatever a config reads
  python launch/prepare.py --verify deep --wait            looks at every byte of what is there
  python launch/prepare.py --cluster mine --time 02:00:00
"""


def read_arguments() -> argparse.Namespace:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("--data-root", metavar="DIR", help="where the datasets are (default data/)")
    parser.add_argument(
        "--for-config", metavar="CONFIG", help="the dataset and the weights that this config needs"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    # With these the script of a dry run makes its run directory.
    parser.add_argument("--no-submit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    prepare_options.add(parser)
    options.add_common(parser, gpus=False)
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    return runs.named(
        arguments.run,
        lambda: runs.free_name("prepare", runs.prepare_root()),
        lambda name: submit(copy.copy(arguments), name),
    )


def submit(arguments: argparse.Namespace, name: str) -> int:
    resolved = options.settings(arguments, options.profile(arguments), "prepare")
    data_root = options.data_root(arguments)
    runs.check_root(runs.prepare_root())
    job = preparation.read(arguments, data_root)
    runs.check_name(name)
    path = runs.prepare_root() / name
    argv = job.argv + ([f"--check={snapshot.place_of(job.checked)}"] if job.checked else [])
    argv += ["--run", str(path)]
    if arguments.dry_run:
        made = job.argv + ([f"--check={job.checked.files[0]}"] if job.checked else [])
        make = ["prepare", "--no-submit", "--run", name, *made, *options.command_line(arguments)]
        batch = single_job.batch(path, resolved, argv, name, make, job.mounts)
        return single_job.show(batch, arguments.json)
    folder = datasets.folder_of(job.dataset)
    looks = arguments.no_submit or arguments.verify or job.checked
    busy = None if looks else data_ready.preparing(data_root, folder)
    if busy is not None:
        raise UserError(
            f"{data_root / folder} is being prepared by {busy.name}: python launch/status.py {busy.name}"
        )
    if not looks:
        room.warn_of_files(data_root / folder, job.dataset, arguments.pack, arguments.unpack)
    batch = single_job.batch(path, resolved, argv, name, mounts=job.mounts)

    def fill(place: Run) -> None:
        config = snapshot.take(place.code, data_root, job.checked)
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
                dataset=job.dataset,
                verify=arguments.verify or ("config" if job.checked else ""),
                weights=prepare_options.weights_of(arguments, job.dataset),
            )
        )

    with runs.new_run(name, fill, runs.prepare_root()) as run:
        if arguments.no_submit:
            if resolved.settings.environment:
                code_image.write(run)
            print(f"made {run.path}", file=sys.stderr)
            if arguments.json:
                print(json.dumps(requests.summary(run, {})))
            return 0
        number, process = single_job.submit(run, batch)
    return single_job.tell(arguments, run, "prepare", number, process)


if __name__ == "__main__":
    checkout.run(main)
