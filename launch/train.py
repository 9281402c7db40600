"""Submits a training, and the evaluation that runs when it is finished.

Interrupted by whatever (a preemption, the time limit, a dead node), the training goes on by itself at the
very step where it was. If the dataset is still being prepared, it waits in the queue behind that.
"""

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import checkout

from jobs.run import events, files, story
from jobs.run.directory import MOST_SEED, Request, Run, check_seed
from jobs.run.errors import UserError
from jobs.run.stages import Stage
from launch.submit import batch_script as script
from launch.submit import (
    configs,
    data_ready,
    interpreters,
    job_environment,
    longer,
    machine,
    options,
    own_worker,
    profiles,
    runs,
    sweep,
    tracking,
)  # fmt: skip
from launch.submit import creation as requests
from launch.submit.profiles import Profile

DEFAULT_CONFIG = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"

EXAMPLES = """\
  python launch/train.py --nodes 1 --gpus 2
  python launch/train.py --nodes 2 --gpus 4 --config my_config.py --set train_dataloader.batch_size=4
  python launch/train.py --cluster mine --time 12:00:00 --qos preemptible --sbatch mail-type=END
  python launch/train.py --config mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py
  python launch/train.py --sweep optim_wrapper.optimizer.lr=0.01,0.02,0.04 --seeds 0,1,2
  python launch/train.py --resume first                    go on with a run that was cancelled or has failed
  python launch/train.py --resume first --set train_cfg.max_epochs=300    train a finished run for longer
  python launch/train.py --run first --dry-run | sbatch    the training without submitit
  python launch/train.py --cluster local --config configs/demo.py --gpus 2 --wait
  python launch/train.py --worker examples/plain_pytorch.py --gpus 2 -- --steps 2000
"""


def main() -> int:
    gc.disable()  # the modules that are read from here on make no garbage either
    parser = options.parser(__doc__ or "", EXAMPLES)
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
    parser.add_argument("--resume", metavar="RUN", help="go on with this run instead of making a new one")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )
    sweep.add_options(parser)
    parser.add_argument(
        "--seed", type=options.whole("--seed", 0, MOST_SEED), help="of all randomness (default 0)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="where the dataset lies (default data/)")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="what is evaluated: best (default), last, a path, or a name such as epoch_50.pth",
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
    parser.add_argument("--no-submit", action="store_true", help="make the run directory, submit nothing")
    # With --no-submit: of a sweep only this run, for the script of a dry run.
    parser.add_argument("--element", type=options.whole("--element", 0, 10**6), help=argparse.SUPPRESS)
    options.add_common(parser)
    options.add_training(parser)
    given, arguments_of_worker = own_worker.split(sys.argv[1:])
    arguments = parser.parse_args(given)
    own_worker.check_options(arguments, arguments_of_worker)
    arguments.no_evaluation |= arguments.worker is not None
    if arguments.resume:
        return resume(arguments)
    wish = read_wish(arguments, options.profile(arguments), arguments_of_worker)
    if arguments.run:
        runs.check_name(arguments.run)
    runs.check_root(runs.runs_root())
    if arguments.sweep or arguments.seeds is not None:
        return sweep.main(arguments, wish)
    if arguments.zip:
        raise UserError("--zip is about the values of several --sweep, or --sweep and --seeds")
    if arguments.dry_run:
        return dry_run(arguments, wish)
    return submit_new(arguments, wish)


def read_wish(
    arguments: argparse.Namespace, profile: Profile, arguments_of_worker: list[str]
) -> requests.Wish:
    """Checks everything that can be checked before anything is made. Raises UserError."""
    seed = arguments.seed or 0
    overrides = options.overrides(arguments.set)
    train = options.settings(arguments, profile, "train")
    if arguments.worker:
        chain = own_worker.read(arguments.worker)
        config = chain.files[0]
    else:
        config = configs.locate(arguments.config or DEFAULT_CONFIG)
        chain = configs.check(config, overrides, not arguments.no_evaluation, interpreters.is_this(train))
    wish = requests.Wish(
        train=train,
        evaluate=options.settings(arguments, profile, "evaluate", first=False),
        infer=options.settings(arguments, profile, "infer", first=False),
        config=config,
        chain=chain,
        data_root=options.data_root(arguments),
        seed=seed,
        checkpoint=options.checkpoint(arguments.checkpoint or "best"),
        overrides=overrides,
        worker=arguments_of_worker if arguments.worker else None,
    )
    interpreters.check(wish.train, wish.evaluate)
    tracking.check(wish.train)
    randomness = wish.chain.values.get("randomness")
    if isinstance(randomness, dict):
        check_seed(randomness.get("seed"), str(config))
    for hint in wish.train.hints:
        print(hint, file=sys.stderr)
    return wish


def batches(
    run: Path, wish: requests.Wish, make: list[str] | None = None, elements: int = 0
) -> tuple[script.Batch, script.Batch]:
    """The two batch scripts of a run: training and evaluation. `make`: see script.Batch."""
    name = run.name.rstrip("-") if elements else run.name
    common: dict[str, Any] = {
        "run": run,
        "checkout": runs.CHECKOUT,
        "elements": elements,
        "made": make is None,
    }
    return (
        script.Batch(resolved=wish.train, name=name, make=make or [], **common),
        script.Batch(
            resolved=wish.evaluate,
            name=f"{name}-evaluate",
            arguments=["--checkpoint", wish.checkpoint],
            **common,
        ),
    )


def submit_new(arguments: argparse.Namespace, wish: requests.Wish) -> int:
    name = arguments.run or runs.free_name(wish.config.stem)
    ahead = data_ready.Ahead() if arguments.no_submit else requests.data_ahead(wish)
    versions = requests.versions()

    def fill(place: Run) -> None:
        requests.fill(place, name, wish, versions)
        requests.write_scripts(place, *batches(runs.runs_root() / name, wish))

    with runs.new_run(name, fill) as run:
        if arguments.no_submit:
            local = wish.train.executor == "local"
            how = (
                f"python launch/train.py --resume {name}"
                if local
                else f"sbatch {run.job / files.SCRIPT(STAGE='train')}"
            )
            print(f"made {run.path}; to submit it: {how}", file=sys.stderr)
            return 0
        jobs, process = submit(run, wish, ahead, not arguments.no_evaluation)
    return tell(arguments, run, jobs, process)


def submit(
    run: Run, wish: requests.Wish, ahead: data_ready.Ahead, evaluate: bool
) -> tuple[dict[str, str], Any]:
    """Submits training and evaluation; returns each stage's job id, and the local process if there is one.

    Raises UserError with Slurm's message; then neither is in the queue.
    """
    if wish.train.executor == "local":
        return submit_locally(run, wish, ahead, evaluate)
    from launch.submit import submission

    ranks = wish.train.nodes[1] * wish.train.settings.gpus
    train = submission.submit_script(run.job / files.SCRIPT(STAGE="train"), after=ahead.dependency)
    jobs = {"train": train}
    if evaluate:
        with submission.withdrawn_on_error(train):
            jobs["evaluate"] = submission.submit_script(run.job / files.SCRIPT(STAGE="evaluate"), after=train)
    noted = {"executor": "slurm", "cluster": machine.cluster_name() or None}
    events.append(
        run.events,
        "submitted",
        stage="train",
        job=train,
        ranks=ranks,
        nodes=wish.train.nodes[1],
        after=ahead.dependency or None,
        **noted,
    )
    if evaluate:
        events.append(run.events, "submitted", stage="evaluate", job=jobs["evaluate"], after=train, **noted)
    return jobs, None


def submit_locally(
    run: Run, wish: requests.Wish, ahead: data_ready.Ahead, evaluate: bool, element: int | None = None
) -> tuple[dict[str, str], Any]:
    from launch.submit import submission

    settings = wish.train.settings
    stages = stages_of(run.path, wish, ahead, evaluate)
    job, process = submission.submit_chain(run.path, stages, job_environment.local(settings))
    jobs = {}
    for stage in stages:
        jobs[stage.name] = job
        events.append(
            run.events, "submitted", stage=stage.name, job=job, executor="local", nodes=1, ranks=stage.tasks,
            element=element,
        )  # fmt: skip
    return jobs, process


def stages_of(run: Path, wish: requests.Wish, ahead: data_ready.Ahead, evaluate: bool) -> list[Stage]:
    """The chain of a local run. Preparations that are on their way are waited for, not done by it."""

    def stage(name: str, resolved: Any, tasks: int, *rest: str) -> Stage:
        python = resolved.settings.python or sys.executable
        return Stage(name=name, command=[python, "-u", "-m", f"jobs.{name}", *rest], tasks=tasks)

    stages = [stage("prepare", wish.train, 1, *arguments) for arguments in ahead.stages]
    stages.append(stage("train", wish.train, wish.train.settings.gpus, str(run)))
    if evaluate:
        gpus = wish.evaluate.settings.gpus
        stages.append(stage("evaluate", wish.evaluate, gpus, str(run), "--checkpoint", wish.checkpoint))
    return stages


def check_unchanged(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that would make a resumed run another one."""
    fixed = (
        *("run", "sweep", "seeds", "zip", "config", "worker"),
        *("seed", "data_root", "checkpoint", "no_submit"),
    )
    values = {name: getattr(arguments, name) for name in fixed}
    given = [name for name, value in values.items() if value or type(value) is int]
    if given:
        option = given[0].replace("_", "-")
        raise UserError(f"--resume goes on with a run as it is: it takes no --{option}")


def resume(arguments: argparse.Namespace) -> int:
    """Submits an existing run again: same directory, same code and config, other resources if asked, and a
    longer training (--set)."""
    check_unchanged(arguments)
    run = runs.find(arguments.resume)
    old = run.request()
    overrides = longer.of_resumed(run, old, options.overrides(arguments.set))
    keep_size(arguments, old)

    def settings(stage: str) -> profiles.Resolved:
        profile = options.profile_of(arguments, run, stage)
        return options.settings(arguments, profile, stage, first=stage == "train")

    train = settings("train")
    arguments.no_evaluation |= bool(old.worker)
    config = run.code / (old.worker[0] if old.worker else old.config)
    evaluated = not arguments.no_evaluation
    wish = requests.Wish(
        train=train,
        evaluate=settings("evaluate"),
        infer=settings("infer"),
        config=config,
        chain=(
            own_worker.read(str(config))
            if old.worker
            else configs.check(config, overrides, evaluated, interpreters.is_this(train))
        ),
        data_root=Path(old.data_root),
        seed=old.seed,
        checkpoint=old.checkpoint,
        overrides=overrides,
        worker=old.worker[1:] if old.worker else None,
    )
    interpreters.check(wish.train, wish.evaluate)
    tracking.check(wish.train)
    check_resumable(run, longer.trains_on(old, overrides))
    scripts = batches(run.path, wish)
    if arguments.dry_run:
        print(script.text(scripts[arguments.dry_run == "evaluate"]), end="")
        for batch in scripts:
            job_environment.write(run, batch.resolved)
        return 0
    ahead = requests.data_ahead(wish)
    old.nodes, old.gpus, old.executor = wish.train.nodes[1], wish.train.settings.gpus, wish.train.executor
    old.set = overrides
    old.cluster = requests.cluster(wish.train, wish.evaluate, wish.infer)
    mark = run.job / files.CANCELLED()
    written = [run.job / files.SCRIPT(STAGE=batch.resolved.stage) for batch in scripts]
    written += [job_environment.place(run, batch.resolved.stage) for batch in scripts]
    with requests.restored_on_error(run.request_file, mark, *written):
        run.write_request(old)
        requests.write_scripts(run, *scripts)
        mark.unlink(missing_ok=True)
        jobs, process = submit(run, wish, ahead, not arguments.no_evaluation)
    return tell(arguments, run, jobs, process)


def keep_size(arguments: argparse.Namespace, old: Request) -> None:
    """Another profile does not change the size of a run that is resumed."""
    if not options.remembers(arguments, old):
        if arguments.nodes is None:
            arguments.nodes = str(old.cluster.get("nodes", old.nodes))
        if arguments.gpus is None:
            arguments.gpus = old.gpus


def check_resumable(run: Run, trains_on: bool = False) -> None:
    """Raises UserError if the run's training is finished (unless it `trains_on` for longer), or if a job of
    it lives."""
    told = story.read(run.events)
    if told.finished() and not trains_on:
        command = "report" if run.request().worker else "evaluate"
        raise UserError(f"the training of {run.name} is finished: python launch/{command}.py {run.name}")
    from launch.observe import liveness as alive

    job = told.newest_job("train")
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
        from launch.submit import submission

        print(f"# in {path / files.CODE()}, one after the other:")
        print(submission.shown(stages_of(path, wish, data_ready.Ahead(), not arguments.no_evaluation)))
        return 0
    train, evaluate = batches(path, wish, make=make_command(arguments, wish, name))
    if arguments.json:
        print(json.dumps({"run": str(path), "train": script.text(train), "evaluate": script.text(evaluate)}))
        return 0
    show(arguments, train, evaluate, name)
    return 0


def show(arguments: argparse.Namespace, train: script.Batch, evaluate: script.Batch, name: str) -> None:
    """Prints the script that --dry-run asks for."""
    print(script.text(evaluate if arguments.dry_run == "evaluate" else train), end="")
    script.make_log_folder(train)
    how = "aftercorr" if train.elements else "afterok"
    then = (
        f", then … --run {name} --dry-run=evaluate | sbatch --dependency={how}:JOB --kill-on-invalid-dep=yes"
    )
    by_hand = f"… --run {name} --dry-run | sbatch{'' if arguments.worker else then}"
    print(f"nothing submitted. By hand: {by_hand}", file=sys.stderr)


def make_command(arguments: argparse.Namespace, wish: requests.Wish, name: str) -> list[str]:
    """This launcher and the options with which the batch script of a dry run makes its run directory."""
    words = [
        "train",
        "--no-submit",
        "--run",
        name,
        f"--{'config' if wish.worker is None else 'worker'}={wish.config}",
        f"--data-root={wish.data_root}",
    ]
    words += [f"--seed={wish.seed}", *options.as_given(arguments)]
    if wish.worker is not None:
        return [*words, "--", *wish.worker]
    words.append(f"--checkpoint={wish.checkpoint}")
    words += [f"--set={pair}" for pair in arguments.set]
    return [*words, *sweep.as_given(arguments)]


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
    from launch.observe import waiting

    gc.enable()
    return waiting.wait(run, jobs, process)


if __name__ == "__main__":
    checkout.run(main)
