"""Sends a run's curves to the services that it names (W&B, MLflow, ClearML), as far as these lack them.

A training does so by itself while it runs (--track in launch/train.py). Use this by hand where compute nodes
have no network, after a service was down, or to send a run that did not ask for it.
"""

import argparse
import select
import subprocess
import sys
import time
from collections.abc import Callable

import checkout

from jobs.run import files, records, trackers
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.observe import history, states
from launch.observe.tracking import content, sending
from launch.submit import runs

EXAMPLES = """\
  python launch/track.py first                       what the run's services lack
  python launch/track.py first --to wandb            to W&B, whether the run asked for it or not
  python launch/track.py first --to mlflow --follow  until the run has ended
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="a run's name or path")
    parser.add_argument(
        "--to", choices=trackers.SENT, metavar="SERVICE", help=f"one of {', '.join(trackers.SENT)}"
    )
    parser.add_argument("--follow", action="store_true", help="keep sending until the run has ended")
    # For the process beside a training: it runs until this file descriptor reaches its end.
    parser.add_argument("--beside", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run = runs.find(arguments.run)
    names = [arguments.to] if arguments.to else trackers.wanted(run)
    if not names:
        raise UserError(f"{run.name} names no service: give --to {' or '.join(trackers.SENT)}")
    if len(names) > 1 and (arguments.follow or arguments.beside is not None):
        raise UserError(f"--follow sends to one service at a time: give --to {' or '.join(names)}")
    states.past_of(run)
    if len(names) > 1:  # a service that does not answer is given up together with its process
        command = [sys.executable, __file__, str(run.path), "--to"]
        return max(subprocess.call([*command, name]) for name in names)
    once = arguments.beside is None and not arguments.follow
    code = sending.send(run, names[0], ending(arguments, run), once)
    if arguments.beside is None:
        print(summary(run, names[0], code), flush=True)
    return code


def ending(arguments: argparse.Namespace, run: Run) -> Callable[[float], bool]:
    """See sending.send."""
    if arguments.beside is not None:
        return lambda seconds: bool(select.select([arguments.beside], [], [], seconds)[0])
    if arguments.follow:

        def over(seconds: float) -> bool:
            if content.state(history.read(run)) != "going":
                return True
            time.sleep(seconds)
            return False

        return over
    return lambda _: True


def summary(run: Run, name: str, code: int) -> str:
    folder = run.path / files.TRACK()
    if code:
        return f"{name} does not have all of {run.name} yet{sending.said_by(folder / f'{name}.log')}"
    state = records.read_json(folder / f"{name}.json")
    if not state:
        return f"{run.name} has nothing to send yet: a step is sent when it is saved in a checkpoint"
    where = f"; offline, in {state['folder']}" if state.get("folder") and "offline" in state["folder"] else ""
    return f"{name} has {run.name} as {state.get('id')}, up to step {max(0, state.get('sent', 0))}{where}"


if __name__ == "__main__":
    checkout.run(main)
