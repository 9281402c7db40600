"""Stops the cluster in STATE_DIR, whatever state it is in, and leaves no process or mount of it behind.

python -m tests.support.cluster.down /tmp/cluster --wipe
"""

import argparse
import shutil
from pathlib import Path

from jobs.run.errors import UserError, run_command
from tests.support.cluster import daemons, ports
from tests.support.cluster.config import Layout
from tests.support.cluster.up import locked


def stop(state: Path | str, wipe: bool = False) -> None:
    """Ends every job and daemon of the cluster in `state`; mounts and namespaces go with the processes.

    `wipe` deletes the state directory too. No-op where nothing runs. Raises UserError where no cluster has
    ever been.
    """
    layout = Layout(state)
    if not layout.lock.exists():
        raise UserError(f"{layout.state} holds no test cluster")
    with locked(layout):
        daemons.stop_all(layout)
        ports.release(layout.state)
        if wipe:
            shutil.rmtree(layout.state)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state", type=Path, metavar="STATE_DIR")
    parser.add_argument("--wipe", action="store_true", help="delete STATE_DIR, accounting included")
    arguments = parser.parse_args()
    stop(arguments.state, arguments.wipe)


if __name__ == "__main__":
    run_command(main)
