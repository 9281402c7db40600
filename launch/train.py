"""Submits a training, and the evaluation that runs when it is finished.

Whatever interrupts it (a preemption, the time limit, a dead node), the training resumes by itself at exactly
the step where it stopped. If the dataset is still being prepared, it waits for that in the queue.
"""

import argparse
import gc
import sys

import checkout

from jobs.run.directory import MOST_SEED
from jobs.run.errors import UserError
from launch.submit import (
    options,
    own_worker,
    ranges,
    resuming,
    runs,
    sweep,
    sweep_options,
    tracking,
    training,
)
from launch.submit.training import DEFAULT_CONFIG

EXAMPLES = """\
  python launch/train.py --nodes 1 --gpus 2
  python launch/train.py --nodes 2 --gpus 4 --config my_config.py --set train_dataloader.batch_size=4
  python launch/train.py --cluster mine --time 12:00:00 --qos preemptible --sbatch mail-type=END
  python launch/train.py --config mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py
  python launch/train.py --sweep optim_wrapper.optimizer.lr=0.01,0.02,0.04 --seeds 0,1,2
  python launch/train.py --resume first                    continue a run that was cancelled or has failed
  python launch/train.py --resume first --set train_cfg.max_epochs=300    train a finished run for longer
  python launch/train.py --run first --dry-run | sbatch    the training without submitit
  python launch/train.py --cluster local --config configs/demo.py --gpus 2 --wait
  python launch/train.py --worker examples/plain_pytorch.py --gpus 2 -- --steps 2000
"""


def make_parser() -> argparse.ArgumentParser:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--config",
        help=f"an MMSegmentation config, or mmseg::PATH of the model zoo (default {DEFAULT_CONFIG})",
    )
    parser.add_argument(
        "--worker",
        metavar="FILE",
        help="a Python program that trains instead (docs/worker-protocol.md); its arguments follow after --",
    )
    parser.add_argument("--run", metavar="NAME", help="the run's name (default: made from the config's)")
    parser.add_argument("--resume", metavar="RUN", help="continue this run instead of creating a new one")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )
    parser.add_argument(
        "--unset",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="with --resume: take overrides of the run back, as long as it has no checkpoint",
    )
    sweep_options.add(parser)
    parser.add_argument(
        "--seed", type=ranges.whole("--seed", 0, MOST_SEED), help="of all randomness (default 0)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="where the dataset is (default data/)")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help=f"what is evaluated: {options.WHICH}",
    )
    tracking.add_option(parser)
    parser.add_argument("--no-evaluation", action="store_true", help="only train")
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="train",
        choices=("train", "evaluate"),
        help="print the batch script (of the training, or of its evaluation), submit nothing",
    )
    parser.add_argument("--no-submit", action="store_true", help="create the run directory, submit nothing")
    # With --no-submit: makes only this run of a sweep, for the script of a dry run.
    parser.add_argument("--element", type=ranges.whole("--element", 0, 10**6), help=argparse.SUPPRESS)
    options.add_common(parser)
    options.add_training(parser)
    return parser


def main() -> int:
    gc.disable()  # the imports from here on make no garbage either
    given, arguments_of_worker = own_worker.split(sys.argv[1:])
    arguments = make_parser().parse_args(given)
    own_worker.check_options(arguments, arguments_of_worker)
    training.check_evaluated(arguments, arguments.worker is not None)
    if arguments.resume:
        return resuming.resume(arguments)
    if arguments.unset:
        raise UserError("--unset takes back overrides of a run, so it needs --resume RUN")
    spec = training.read_spec(arguments, options.profile(arguments), arguments_of_worker)
    if arguments.run:
        runs.check_name(arguments.run)
    runs.check_root(runs.runs_root())
    if arguments.sweep or arguments.seeds is not None:
        return sweep.main(arguments, spec)
    if arguments.zip:
        raise UserError("--zip pairs the values of several --sweep, or of --sweep and --seeds")
    if arguments.run and arguments.dry_run != "evaluate":
        training.check_no_sweep(arguments.run)
    if arguments.dry_run:
        return training.dry_run(arguments, spec)
    return training.submit_new(arguments, spec)


if __name__ == "__main__":
    checkout.run(main)
