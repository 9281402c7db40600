"""A real Slurm cluster on one machine, for tests and for trying things by hand.

    python -m tests.support.cluster.up STATE_DIR        all daemons, nodes n1.. with fake GPUs
    . STATE_DIR/env.sh                                  sbatch, squeue, scontrol now speak to it
    python -m tests.support.cluster.status STATE_DIR
    python -m tests.support.cluster.down STATE_DIR      leaves no process and no mount behind

Nothing outside STATE_DIR is written, nothing listens beyond loopback save slurmdbd (whose address no setting
changes), and any number of clusters run side by side. In story order: `config` (what the cluster is, and its
configuration files), `packages`, `ports`, `processes`, `daemons`, and the commands.
"""
