"""Starts a Slurm cluster of its own in STATE_DIR.

    python -m tests.support.cluster.up /tmp/cluster && . /tmp/cluster/env.sh && sinfo

Without root, where user namespaces are forbidden, all nodes report the machine's own hostname and a
`MASTER_ADDR=n1` does not resolve; everything else is the same.
"""

import argparse
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from jobs.run.directory import write_atomically
from jobs.run.errors import UserError, run_command
from tests.support.cluster import config, daemons, packages, ports
from tests.support.cluster.config import Cluster, Layout, Options


def start(state: Path | str, options: Options | None = None) -> Cluster:
    """Starts a cluster in `state` and returns when all its nodes are idle. What a crash left there is ended
    first; accounting and job numbers go on where they were.

    Raises UserError if packages lack, this machine's name does not resolve, `state` cannot hold a cluster or
    one runs there already, and
    StartError, with everything stopped again, if a daemon does not come up.
    """
    options = options or Options()
    layout = Layout(state)
    config.check(layout.state, options)
    config.check_names()
    packages.require(options.accounting)
    config.check_own(Path(state))
    for directory in layout.directories():
        directory.mkdir(parents=True, exist_ok=True)
        # Jobs of another user reach the configuration and munge's socket; munge wants no one else to write.
        directory.chmod(0o755)
    with locked(layout):
        if daemons.running(layout, "slurmctld") and layout.env.exists():
            raise UserError(
                f"a cluster runs in {layout.state}; "
                f"stop it: python -m tests.support.cluster.down {layout.state}"
            )
        daemons.stop_all(layout)
        for attempt in range(3):
            try:
                return _start(layout, options)
            except BaseException as error:
                daemons.stop_all(layout)
                ports.release(layout.state)
                # Another program may take a port between our looking and a daemon's listening.
                if attempt == 2 or "ddress already in use" not in str(error):
                    raise
    raise AssertionError("unreachable")


def _start(layout: Layout, options: Options) -> Cluster:
    try:
        name = config.load(layout.state).name  # accounting is by name
    except UserError:
        name = f"test{secrets.token_hex(4)}"
    cluster = Cluster(
        state=str(layout.state),
        name=name,
        options=options,
        ports=ports.claim(layout.state, options.nodes),
        version=packages.slurm_version(),
        namespaces=daemons.namespaces(),
    )
    write_atomically(layout.marker, msgspec.json.encode(cluster))
    config.write(cluster)
    daemons.start_all(cluster)
    return cluster


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """One command at a time on one state directory. Raises UserError if another is at work."""
    with layout.lock.open("w") as lock:
        os.set_inheritable(lock.fileno(), False)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another command is starting or stopping the cluster in {layout.state}"
            ) from None
        yield


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "state", type=Path, metavar="STATE_DIR", help="a folder of the cluster's own; made if missing"
    )
    parser.add_argument("--nodes", type=int, default=4, help="nodes, each with two fake GPUs (default 4)")
    parser.add_argument("--cpus", type=int, default=8, help="CPUs a node claims (default 8)")
    parser.add_argument("--user-signal", action="store_true", help="preempted jobs get their --signal too")
    parser.add_argument(
        "--grace", type=int, default=30, metavar="S", help="grace time of low and lowcan (default 30)"
    )
    parser.add_argument("--kill-wait", type=int, default=3, metavar="S", help="from TERM to KILL (default 3)")
    parser.add_argument("--no-requeue", action="store_true", help="no job can be requeued")
    parser.add_argument(
        "--max-requeues", type=int, default=5, metavar="N", help="Slurm's own of a job until it is held"
    )
    parser.add_argument("--no-accounting", action="store_true", help="no slurmdbd, no sacct")
    parser.add_argument("--preempt-mode", default="REQUEUE", choices=["REQUEUE", "CANCEL"])
    parser.add_argument(
        "--node-timeout", type=int, default=15, metavar="S", help="until a silent node is down"
    )
    arguments = parser.parse_args()
    options = Options(
        nodes=arguments.nodes,
        cpus=arguments.cpus,
        user_signal=arguments.user_signal,
        grace=arguments.grace,
        kill_wait=arguments.kill_wait,
        requeue=not arguments.no_requeue,
        max_requeues=arguments.max_requeues,
        accounting=not arguments.no_accounting,
        preempt_mode=arguments.preempt_mode,
        node_timeout=arguments.node_timeout,
    )
    cluster = start(arguments.state, options)
    if cluster.namespaces == "none":
        print("no namespaces for this user: all nodes report this machine's hostname", file=sys.stderr)
    print(f"{len(cluster.nodes)} nodes are idle. To use it:  . {cluster.layout.env}")


if __name__ == "__main__":
    run_command(main)
