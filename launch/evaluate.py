"""Submits an evaluation of a run on its own: figures with intervals, the table by class, the worst images.

With --config instead of a run: of a checkpoint from elsewhere, such as one that the model zoo publishes.
"""

import argparse

import checkout

from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import configs, data_ready, interpreters, options, profiles, programs, runs, single_job
from launch.submit import creation as requests
from launch.submit.batch_script import Batch
from launch.submit.ranges import whole

EXAMPLES = """\
  python launch/evaluate.py first
  python launch/evaluate.py first --checkpoint last --gpus 2 --wait
  python launch/evaluate.py first --pictures all --tta
  python launch/evaluate.py first --cluster mine --dry-run
  python launch/evaluate.py --config mmseg::upernet/upernet_r50_4xb4-20k_voc12aug-512x512.py \\
      --checkpoint https://download.openmmlab.com/mmsegmentation/v0.5/upernet/NAME.pth
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name or path")
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help=f"{options.WHICH}; or an address, which is downloaded into data/pretrained by the job, or "
        "beforehand by `prepare.py --weights ADDRESS`",
    )
    parser.add_argument(
        "--config", help="without a run: a config, or mmseg::PATH of the model zoo, that fits --checkpoint"
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="with --config: where the dataset is (default data/)"
    )
    parser.add_argument(
        "--pictures", nargs="+", metavar="WHICH", help="all, a number of the worst (default 20), or image ids"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: the config's tta_model and tta_pipeline, or 6 scales, each flipped too",
    )
    parser.add_argument(
        "--batch",
        type=whole("--batch", 1, 1024),
        default=1,
        metavar="N",
        help="images of one size at once (default 1): faster on a GPU, the last digit of a figure may differ",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    options.add_common(parser, leaves=False)
    arguments = parser.parse_args()

    if bool(arguments.run) == bool(arguments.config):
        raise UserError("name a run to evaluate, or a config with --config: one of the two")
    if arguments.tta and arguments.batch > 1:
        raise UserError("--batch does not work with --tta (several passes an image): leave out one")
    options.check_pictures(arguments.pictures or [])
    if arguments.config:
        return evaluate_new(arguments)
    if arguments.data_root:
        raise UserError("--data-root is for --config: a run already has its data root")
    run = runs.find(arguments.run)
    if arguments.tta:
        programs.require(run, "jobs/evaluate/augmentation.py", "--tta")
    if arguments.batch > 1:
        programs.require(run, "jobs/evaluate/batches.py", "--batch")
    resolved = options.settings(arguments, options.profile_of(arguments, run, "evaluate"), "evaluate")
    job = batch(arguments, run, resolved, options.checkpoint(arguments.checkpoint, run))
    data_ready.check_run(run, interpreters.is_this(resolved))
    if arguments.dry_run:
        return single_job.show(job, arguments.json)
    number, process = single_job.submit(run, job)
    return single_job.tell(arguments, run, "evaluate", number, process)


def evaluate_new(arguments: argparse.Namespace) -> int:
    """Evaluates a checkpoint from elsewhere, in a new run without a training."""
    checkpoint = options.checkpoint(arguments.checkpoint)
    if not checkpoint.startswith(("/", *options.ADDRESSES)):
        raise UserError(
            "--config needs --checkpoint with the path or the URL of a file, as nothing is trained"
        )
    resolved = options.settings(arguments, options.profile(arguments), "evaluate")
    config = configs.locate(arguments.config)
    chain = configs.check(config, here=interpreters.is_this(resolved), trained=False)
    data_root = options.data_root(arguments)
    data_ready.check(data_root, chain)
    spec = requests.TrainingSpec(
        train=resolved, evaluate=resolved, infer=resolved, config=config, chain=chain, data_root=data_root
    )
    if arguments.dry_run:
        raise UserError(
            "--dry-run needs a run: train.py --config … --no-submit makes one without training it"
        )
    with requests.untrained(spec, config.stem) as run:
        number, process = single_job.submit(run, batch(arguments, run, resolved, checkpoint))
    return single_job.tell(arguments, run, "evaluate", number, process)  # a Ctrl-C here leaves the run


def batch(arguments: argparse.Namespace, run: Run, resolved: profiles.Resolved, checkpoint: str) -> Batch:
    more = ["--tta"] if arguments.tta else []
    more += ["--batch", str(arguments.batch)] if arguments.batch > 1 else []
    more += ["--pictures", *arguments.pictures] if arguments.pictures else []
    return single_job.batch(
        run.path, resolved, ["--checkpoint", checkpoint, "--again", *more], f"{run.name}-evaluate"
    )


if __name__ == "__main__":
    checkout.run(main)
