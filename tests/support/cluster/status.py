"""Says which daemons and job processes of the cluster in STATE_DIR run, and what its nodes are doing.

python -m tests.support.cluster.status /tmp/cluster      exit code 0: all daemons run; 1: some do not
"""

import argparse
from pathlib import Path

from jobs.run.errors import run_command
from tests.support.cluster import config, daemons, processes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state", type=Path, metavar="STATE_DIR")
    cluster = config.load(parser.parse_args().state)
    names = ["munged", *(["mariadbd", "slurmdbd"] if cluster.options.accounting else []), "slurmctld"]
    names += [f"slurmd-{node}" for node in cluster.nodes]
    whole = True
    for name in names:
        process = daemons.running(cluster.layout, name)
        whole = whole and process is not None
        print(f"{name:12} {f'pid {process.pid}' if process else 'not running'}")
    for process in processes.jobs(cluster.layout):
        print(f"{'job':12} pid {process.pid} {processes.command(process)[:90]}")
    if daemons.running(cluster.layout, "slurmctld"):
        print(daemons.tool(cluster.layout, "sinfo").stdout, end="")
        print(daemons.tool(cluster.layout, "squeue").stdout, end="")
    return 0 if whole else 1


if __name__ == "__main__":
    run_command(main)
