"""Submits the preparation, a CPU job: download, convert, verify PASCAL VOC 2012 with SBD; and fetch the
pretrained weights that the recipe begins with. With --images it makes a dataset of your own images, checks
all of it, and writes a config that trains on it (docs/own-images.md).

It can be run again at any time: what is ready is only checked, what was interrupted goes on. A training
submitted meanwhile waits for it in the queue.
"""

import argparse
import sys
from pathlib import Path

import checkout

from jobs.catalog import own_images as own_options
from jobs.catalog import pretrained
from jobs.catalog import recipes as datasets
from jobs.catalog.manifest import MANIFEST
from jobs.run import events
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from launch.submit import configs, data_ready, options, room, runs, snapshot
from launch.submit import creation as requests
from launch.submit import single_job as single

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
        help=f"pretrained weights to fetch, as configs name them (default {pretrained.DEFAULT})",
    )
    parser.add_argument(
        "--for-config", metavar="CONFIG", help="the dataset and the weights that this config needs"
    )
    parser.add_argument("--no-weights", action="store_true", help="no pretrained weights")
    parser.add_argument(
        "--partial", action="store_true", help="other datasets: take fewer files than the release has"
    )
    parser.add_argument(
        "--converter-args",
        metavar="ARGS",
        help="other datasets: the converter's arguments; {archives}, {out}, {processes} are filled in",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--pack", action="store_true", help="as one file, which trainings read as it is")
    form.add_argument("--unpack", action="store_true", help="make the files again of a packed dataset")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    # The script of a dry run makes its run directory by these.
    parser.add_argument("--no-submit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    own_options.add(parser)
    options.add_common(parser, gpus=False)
    arguments = parser.parse_args()

    resolved = options.settings(arguments, options.profile(arguments), "prepare")
    data_root = options.data_root(arguments)
    runs.check_root(runs.prepare_root())
    job_arguments = ["--data-root", str(data_root)]
    mounts = []
    if arguments.archives:
        archives = Path(arguments.archives).expanduser().absolute()
        if not archives.is_dir():
            raise UserError(f"--archives {arguments.archives}: there is no such folder")
        job_arguments += ["--archives", str(archives)]
        mounts.append(archives)
    if arguments.for_config:
        fit_to_config(arguments)
    own = own_options.asked(arguments)
    checked = check_of(arguments) if arguments.check else None
    if own:
        job_arguments += fit_own(arguments)
        mounts += own_options.folders(arguments)
        dataset = arguments.dataset
    elif arguments.verify and own_options.is_there(data_root, arguments.dataset or ""):
        dataset = arguments.dataset
    else:
        dataset = datasets.check_name(
            arguments.dataset or "voc", bool(arguments.verify) or arguments.converter_args is not None
        )
    if arguments.dataset:
        job_arguments += ["--dataset", dataset]
    if arguments.verify:
        job_arguments.append(f"--verify={arguments.verify}")
    if arguments.no_checksum:
        job_arguments.append("--no-checksum")
    if arguments.no_weights:
        job_arguments.append("--no-weights")
    elif arguments.weights:
        for reference in arguments.weights:
            pretrained.published(reference)
        job_arguments += ["--weights", *arguments.weights]
    job_arguments += ["--pack"] if arguments.pack else ["--unpack"] if arguments.unpack else []
    if arguments.partial:
        job_arguments.append("--partial")
    if arguments.converter_args is not None:
        datasets.split_arguments(arguments.converter_args)
        job_arguments.append(f"--converter-args={arguments.converter_args}")
    check_fitting(arguments, dataset)

    name = arguments.run or runs.free_name("prepare", runs.prepare_root())
    runs.check_name(name)
    path = runs.prepare_root() / name
    script_arguments = [*job_arguments, "--run", str(path)]
    if checked:  # the job reads the run's copy of the config
        job_arguments.append(f"--check={checked.files[0]}")
        script_arguments.append(f"--check={snapshot.place_of(checked)}")
    if arguments.dry_run:
        make = ["prepare", "--no-submit", "--run", name, *job_arguments, *options.as_given(arguments)]
        return single.show(single.batch(path, resolved, script_arguments, name, make, mounts))
    folder = datasets.folder_of(dataset)
    looks = arguments.no_submit or arguments.verify or checked
    busy = None if looks else data_ready.preparing(data_root, folder)
    if busy is not None:
        raise UserError(
            f"{data_root / folder} is being prepared by {busy.name}: python launch/status.py {busy.name}"
        )
    if not looks:
        room.warn_of_files(data_root / folder, dataset, arguments.pack, arguments.unpack)
    batch = single.batch(path, resolved, script_arguments, name, mounts=mounts)

    def fill(place: Run) -> None:
        config = snapshot.take(place.code, data_root, checked)
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
                dataset=dataset,
                verify=arguments.verify or ("config" if checked else ""),
                weights=weights_of(arguments, dataset),
            )
        )

    with runs.new_run(name, fill, runs.prepare_root()) as run:
        if arguments.no_submit:
            print(f"made {run.path}", file=sys.stderr)
            return 0
        job, process = single.submit(run, batch)
    return single.tell(arguments, run, "prepare", job, process)


def weights_of(arguments: argparse.Namespace, dataset: str) -> list[str]:
    """The pretrained weights that the job will fetch, as configs refer to them."""
    if arguments.no_weights or arguments.verify:
        return []
    if arguments.weights:
        return list(arguments.weights)
    return [pretrained.DEFAULT] if dataset == "voc" else []


def fit_own(arguments: argparse.Namespace) -> list[str]:
    """Checks the options of a dataset of the user's own, sets --weights to those of the config's base, and
    returns the options for the job. Raises UserError."""
    if arguments.for_config or arguments.verify or arguments.converter_args is not None:
        raise UserError(
            "--images makes a dataset of your own: leave out --for-config, --verify, --converter-args"
        )
    own_options.check(arguments)
    base = arguments.base or own_options.DEFAULT_BASE
    located = configs.locate(base)
    chain = configs.check(located, here=False)
    arguments.base = base if "::" in base else str(located)
    target = arguments.write_config or runs.CHECKOUT / "configs" / f"{arguments.dataset}.py"
    arguments.write_config = own_options.absolute(str(target))
    if not arguments.write_config.endswith(".py"):
        raise UserError(f"--write-config {arguments.write_config}: a config's name ends in .py")
    if not arguments.weights and not arguments.no_weights:
        fit_weights(arguments, chain, base)
    return own_options.as_given(arguments)


def check_of(arguments: argparse.Namespace) -> configs.Chain:
    """What --check looks at. Raises UserError for a config that is none, or for other options beside it."""
    if (
        arguments.dataset
        or arguments.verify
        or arguments.weights
        or arguments.for_config
        or arguments.archives
    ):
        raise UserError("--check says which datasets, and makes nothing: leave out the other options")
    arguments.no_weights = True
    return configs.check(configs.locate(arguments.check), evaluated=False, here=False)


def fit_to_config(arguments: argparse.Namespace) -> None:
    """Sets --dataset and --weights to what a config needs, and says what of it cannot be fetched.

    Raises UserError unless it reads one dataset, and one that is prepared here.
    """
    if arguments.dataset or arguments.weights or arguments.no_weights or arguments.verify:
        raise UserError("--for-config says which dataset and weights: leave out those options")
    name = arguments.for_config
    chain = configs.check(configs.locate(name), evaluated=False, here=False)
    paths = data_ready.paths(chain)
    found = {data_ready.recipe_of(path) for path in paths}
    if len(found) != 1 or "" in found:
        read = ", ".join(f"data/{path}" for path in paths) or "no dataset below data/"
        raise UserError(
            f"{name} reads {read}: what can be prepared is one of the datasets that --dataset names (its "
            f"weights: --weights {' '.join(configs.weights(chain))})"
        )
    (arguments.dataset,) = found
    fit_weights(arguments, chain, name)


def fit_weights(arguments: argparse.Namespace, chain: configs.Chain, name: str) -> None:
    """Sets --weights to those that a config begins with, and says which of them cannot be fetched."""
    arguments.weights = []
    for reference in configs.weights(chain):
        if pretrained.address(reference):
            arguments.weights.append(reference)
        else:
            print(f"{name} begins with {reference}, which has no address: place it by hand", file=sys.stderr)
    arguments.no_weights = not arguments.weights


def check_fitting(arguments: argparse.Namespace, dataset: str) -> None:
    """Raises UserError, before anything is queued, for options that the job could only refuse."""
    if arguments.verify and (arguments.pack or arguments.unpack):
        raise UserError("--verify only looks: leave out --pack or --unpack")
    root = options.data_root(arguments) / datasets.folder_of(dataset)
    if arguments.unpack and not (root / MANIFEST).exists():
        raise UserError(f"--unpack: {root} has no {MANIFEST}: there is no prepared dataset to unpack")
    if dataset == "voc" and (arguments.partial or arguments.converter_args is not None):
        option = "--partial" if arguments.partial else "--converter-args"
        raise UserError(f"{option} is for other datasets; VOC 2012 + SBD is made whole or not at all")


if __name__ == "__main__":
    checkout.run(main)
