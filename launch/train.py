"""Submits a training, and the evaluation that runs when it is finished.

Interrupted by whatever (a preemption, the time limit, a dead node), the training goes on by itself at the
very step where it was. If the dataset is still being prepared, it waits in the queue behind that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs import events  # noqa: E402
from jobs.errors import UserError, run_command  # noqa: E402
from jobs.run_directory import Run  # noqa: E402
from launch import configs, data_ready, options, requests, runs, script, sweep  # noqa: E402
from launch.profiles import Profile  # noqa: E402

DEFAULT_CONFIG = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"

EXAMPLES = """\
  python launch/train.py --nodes 1 --gpus 2
  python launch/train.py --nodes 2 --gpus 4 --config my_config.py --set train_dataloader.batch_size=4
  python launch/train.py --cluster mine --time 12:00:00 --qos preemptible --sbatch mail-type=END
  python launch/train.py --sweep optim_wrapper.optimizer.lr=0.01,0.02,0.04
  python launch/train.py --resume first                    go on with a run that was cancelled or has failed
  python launch/train.py --run first --dry-run | sbatch    the training without submitit
  python launch/train.py --cluster local --config configs/demo.py --gpus 2 --wait
"""


def main() -> int:
    parser = options.parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--config", default=DEFAULT_CONFIG, help=f"an MMSegmentation config (default {DEFAULT_CONFIG})"
    )
    parser.add_argument("--run", metavar="NAME", help="the run's name (default: made from the config's)")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run instead of making a new one")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )
    parser.add_argument("--sweep", metavar="KEY=A,B,C", help="one run for each value, as one job array")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default 0)")
    parser.add_argument("--data-root", metavar="DIR", help="where the dataset lies (default data/)")
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="what is evaluated: best (default), last, or a path",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="only train")
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="train",
        choices=("train", "evaluate"),
        help="print the batch script (of the training, or of its evaluation), submit nothing",
    )
    parser.add_argument("--no-submit", action="store_true", help="make the run directory, submit nothing")
    options.add_common(parser)
    arguments = parser.parse_args()
    profile = options.profile(arguments)
    if arguments.resume:
        return resume(arguments, profile)
    wish = read_wish(arguments, profile)
    if arguments.run:
        runs.check_name(arguments.run)
    runs.check_root(runs.runs_root())
    if arguments.sweep:
        return sweep.main(arguments, wish)
    if arguments.dry_run:
        return dry_run(arguments, wish)
    return submit_new(arguments, wish)


def read_wish(arguments: argparse.Namespace, profile: Profile) -> requests.Wish:
    """Checks everything that can be checked before anything is made. Raises UserError."""
    if arguments.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {arguments.seed}")
    config = configs.locate(arguments.config)
    overrides = options.overrides(arguments.set)
    wish = requests.Wish(
        train=options.settings(arguments, profile, "train"),
        evaluate=options.settings(arguments, profile, "evaluate", first=False),
        config=config,
        chain=configs.check(config, overrides, not arguments.no_evaluation),
        data_root=options.data_root(arguments),
        seed=arguments.seed,
        checkpoint=arguments.checkpoint,
        overrides=overrides,
    )
    for hint in wish.train.hints:
        print(hint, file=sys.stderr)
    return wish


def batches(
    run: Path, wish: requests.Wish, made: bool = True, make: list[str] | None = None, elements: int = 0
) -> tuple[script.Batch, script.Batch]:
    """The two batch scripts of a run: training and evaluation."""
    name = run.name.rstrip("-") if elements else run.name
    common: dict[str, Any] = {"run": run, "checkout": runs.CHECKOUT, "elements": elements}
    return (
        script.Batch(resolved=wish.train, name=name, made=made, make=make or [], **common),
        script.Batch(
            resolved=wish.evaluate,
            name=f"{name}-evaluate",
            made=made,
            arguments=["--checkpoint", wish.checkpoint],
            **common,
        ),
    )


def submit_new(arguments: argparse.Namespace, wish: requests.Wish) -> int:
    name = arguments.run or runs.free_name(wish.config.stem)
    after = None
    if not arguments.no_submit:
        after = data_ready.wait_for(wish.data_root, wish.train.executor, wish.chain)
    with runs.new_run(name) as run:
        requests.fill(run, wish, requests.versions())
        requests.write_scripts(run, *batches(run.path, wish))
        if arguments.no_submit:
            print(f"made {run.path}; to submit it: sbatch {run.job / 'train.sbatch'}", file=sys.stderr)
            return 0
        jobs, process = submit(run, wish, after, not arguments.no_evaluation)
    return tell(arguments, run, jobs, process)


def submit(run: Run, wish: requests.Wish, after: str | None, evaluate: bool) -> tuple[dict[str, str], Any]:
    """Submits training and evaluation; returns each stage's job id, and the local process if there is one.

    Raises UserError with Slurm's message; then neither is in the queue.
    """
    if wish.train.executor == "local":
        return submit_locally(run, wish, after, evaluate)
    from launch import submission

    ranks = wish.train.nodes[1] * wish.train.settings.gpus
    train = submission.submit_script(run.job / "train.sbatch", run.name, after=after or "")
    jobs = {"train": train}
    try:
        if evaluate:
            jobs["evaluate"] = submission.submit_script(
                run.job / "evaluate.sbatch", f"{run.name}-evaluate", after=train
            )
    except BaseException:
        from launch import slurm

        slurm.call("scancel", train)
        raise
    noted = {"executor": "slurm", "nodes": wish.train.nodes[1]}
    events.append(run.events, "submitted", stage="train", job=train, ranks=ranks, after=after, **noted)
    if evaluate:
        events.append(
            run.events, "submitted", stage="evaluate", job=jobs["evaluate"], after=train, executor="slurm"
        )
    return jobs, None


def submit_locally(
    run: Run, wish: requests.Wish, after: str | None, evaluate: bool
) -> tuple[dict[str, str], Any]:
    from launch import submission

    settings = wish.train.settings
    stages = stages_of(run.path, wish, after is not None, evaluate)
    job, process = submission.submit_chain(run.path, stages, settings.env)
    jobs = {}
    for stage in stages:
        jobs[stage.name] = job
        events.append(
            run.events, "submitted", stage=stage.name, job=job, executor="local", nodes=1, ranks=stage.tasks
        )
    return jobs, process


def stages_of(run: Path, wish: requests.Wish, prepare: bool, evaluate: bool) -> list[Any]:
    """The chain of a local run. A preparation that is on its way is waited for by its own lock."""
    from jobs.local import Stage

    def stage(name: str, resolved: Any, tasks: int, *rest: str) -> Any:
        python = resolved.settings.python or sys.executable
        return Stage(name=name, command=[python, "-u", "-m", f"jobs.{name}", *rest], tasks=tasks)

    stages = []
    if prepare:
        stages.append(stage("prepare", wish.train, 1, "--data-root", str(wish.data_root)))
    stages.append(stage("train", wish.train, wish.train.settings.gpus, str(run)))
    if evaluate:
        gpus = wish.evaluate.settings.gpus
        stages.append(stage("evaluate", wish.evaluate, gpus, str(run), "--checkpoint", wish.checkpoint))
    return stages


def resume(arguments: argparse.Namespace, profile: Profile) -> int:
    """Submits an existing run again: same directory, same code and config, other resources if asked."""
    if arguments.run or arguments.set or arguments.sweep:
        raise UserError("--resume goes on with a run as it is: it takes no --run, --set or --sweep")
    run = runs.find(arguments.resume)
    old = run.request()
    if not arguments.cluster and old.executor != profile.executor:
        profile = options.profiles.load(old.executor)
    if arguments.nodes is None:
        arguments.nodes = str(old.cluster.get("nodes", old.nodes))
    if arguments.gpus is None:
        arguments.gpus = old.gpus
    wish = requests.Wish(
        train=options.settings(arguments, profile, "train"),
        evaluate=options.settings(arguments, profile, "evaluate", first=False),
        config=run.code / old.config,
        chain=configs.Chain(files=[]),
        data_root=Path(old.data_root),
        seed=old.seed,
        checkpoint=old.checkpoint,
        overrides=old.set,
    )
    check_resumable(run)
    train, evaluate = batches(run.path, wish)
    if arguments.dry_run:
        print(script.text(evaluate if arguments.dry_run == "evaluate" else train), end="")
        return 0
    after = data_ready.wait_for(wish.data_root, wish.train.executor)
    old.nodes, old.gpus, old.executor = wish.train.nodes[1], wish.train.settings.gpus, wish.train.executor
    old.cluster = requests.cluster(wish.train, wish.evaluate)
    run.write_request(old)
    requests.write_scripts(run, train, evaluate)
    (run.job / "cancelled").unlink(missing_ok=True)
    jobs, process = submit(run, wish, after, not arguments.no_evaluation)
    return tell(arguments, run, jobs, process)


def check_resumable(run: Run) -> None:
    """Raises UserError if the run's training is finished, or if a job of it lives."""
    for event in events.iterate(run.events):
        if event["event"] == "finished" and event.get("stage", "train") == "train":
            raise UserError(f"the training of {run.name} is finished: python launch/evaluate.py {run.name}")
    from launch import alive

    job = alive.newest_job(run, "train")
    if alive.is_alive(run, job):
        raise UserError(
            f"{run.name} is on its way as job {job}: python launch/cancel.py {run.name} ends that"
        )


def dry_run(arguments: argparse.Namespace, wish: requests.Wish) -> int:
    """Prints what would be submitted. The script makes the run directory itself, for plain sbatch."""
    name = arguments.run or runs.free_name(wish.config.stem)
    if runs.is_taken(name):
        raise UserError(f"the run name {name!r} is taken ({runs.runs_root() / name}): choose another")
    path = runs.runs_root() / name
    if wish.train.executor == "local":
        from launch import submission

        print(f"# in {path / 'code'}, one after the other:")
        print(submission.shown(stages_of(path, wish, False, not arguments.no_evaluation)))
        return 0
    make = make_arguments(arguments, name)
    train, evaluate = batches(path, wish, made=False, make=make)
    if arguments.json:
        print(json.dumps({"run": str(path), "train": script.text(train), "evaluate": script.text(evaluate)}))
        return 0
    path.parent.parent.mkdir(parents=True, exist_ok=True)  # Slurm makes no directory for its log
    print(script.text(evaluate if arguments.dry_run == "evaluate" else train), end="")
    print(
        f"nothing submitted. By hand: … --run {name} --dry-run | sbatch, then "
        f"… --run {name} --dry-run=evaluate | sbatch --dependency=afterok:JOB --kill-on-invalid-dep=yes",
        file=sys.stderr,
    )
    return 0


def make_arguments(arguments: argparse.Namespace, name: str) -> list[str]:
    """The options with which the batch script of a dry run makes its run directory."""
    dropped = {"--run": 1, "--config": 1, "--data-root": 1, "--dry-run": 0, "--wait": 0, "--json": 0}
    given, kept = sys.argv[1:], []
    while given:
        argument = given.pop(0)
        option, _, value = argument.partition("=")
        if option not in dropped:
            kept.append(argument)
        elif (dropped[option] and not value) or (
            option == "--dry-run" and not value and given and given[0] in ("train", "evaluate")
        ):
            given.pop(0)
    places = [
        "--config",
        str(configs.locate(arguments.config)),
        "--data-root",
        str(options.data_root(arguments)),
    ]
    if not arguments.cluster:
        places += ["--cluster", "slurm"]
    return ["--no-submit", "--run", name, *places, *kept]


def tell(arguments: argparse.Namespace, run: Run, jobs: dict[str, str], process: Any) -> int:
    """Prints where the run lies and what comes next; with --wait follows it to its end."""
    if arguments.json:
        print(json.dumps({"run": run.name, "path": str(run.path), "jobs": jobs}), flush=True)
    else:
        print(f"run      {run.path}")
        print(f"jobs     {'  '.join(f'{stage} {id}' for stage, id in jobs.items())}")
        for word, command in (("status", ""), ("logs", " -f"), ("cancel", "")):
            print(f"{word:8} python launch/{word}.py {run.name}{command}", flush=True)
    if not arguments.wait:
        return 0
    from launch import waiting

    last = list(jobs)[-1]
    return waiting.wait(run, last, jobs[last], process)


if __name__ == "__main__":
    run_command(main)
