"""What a job asks for and how it is to behave: the keys of a cluster profile with their defaults.

docs/clusters.md explains every key; launch/submit/profiles.py says where each value comes from.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Container(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the tasks run; the batch shell and the requeueing stay outside, where Slurm's commands are."""

    kind: Literal["apptainer", "singularity", "pyxis"]
    image: str
    mounts: list[str] = []
    """SOURCE:TARGET or SOURCE; the run, the data root and the checkout are always there."""
    options: list[str] = []
    """Further flags of `apptainer exec`, or of srun for pyxis."""


class Notify(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whom to tell about a run (jobs/run/notify.py); what fails there never fails a job."""

    webhook: str = ""
    """An address that takes a JSON object by POST, or $NAME: a variable of the job that holds it."""
    webhook_file: str = ""
    """A file of yours that holds the address."""
    mail: list[str] = []
    """A command and its arguments, `{subject}` replaced; the text comes on its standard input."""
    on: list[Literal["finished", "failed", "stopped", "evaluated"]] = []
    """Empty: finished, failed and stopped."""


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What one job asks for. Empty means: say nothing, let the cluster decide."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    time: str = ""
    """As Slurm writes it: minutes, HH:MM:SS, D-HH:MM:SS."""
    memory: str = ""
    """A node, as 64G."""
    nodes: str = "1"
    """N, or MIN-MAX: start with what is free."""
    gpus: int = 1
    """A node; one rank each. Processes on the CPU where `gres` is none."""
    cpus_per_gpu: int = 4
    """CPUs per rank."""
    gres: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How GPUs are asked for: --gpus-per-node=N, --gres=gpu:N, or not at all."""
    gpu_type: str = ""
    exclude: list[str] = []
    setup: list[str] = []
    """Shell lines of your own (module load …) that run first in the batch script; one that fails ends it."""
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    """Variables of the job, each with the file of yours that holds its value."""
    container: Container | None = None
    srun: list[str] = []
    """Further options of srun."""
    sbatch: dict[str, str] = {}
    """Any further sbatch option, without the dashes; `true` for one that takes no value."""
    signal_delay: int = 120
    """Seconds before the time limit at which the job is told to save and leave (--signal=USR2@N)."""
    presubmit: bool = False
    """Submit the training's successor when it starts, for partitions that kill without notice."""
    notify: Notify | None = None
    """Whom to tell when a run has finished, failed or stopped."""
    track: list[str] = []
    """Services that show the run's curves: wandb, mlflow, clearml, tensorboard (jobs/run/trackers.py)."""
    hang_minutes: int = 10
    """A training that makes no step for so long is taken for hanging."""
    stage: str = ""
    """A folder of the node's own ($TMPDIR, /local/$USER), for a copy of the packed dataset. Of a training."""
    environment: Literal["", "image"] = ""
    """image: the tasks run from a copy of the environment's image (env/pack.sh) in `stage`."""
    python: str = ""
    """The interpreter of the tasks (inside the container, if there is one); default: the launcher's own."""

    @property
    def grace(self) -> float:
        """Seconds that a job may count on to save and leave, once it is told to. Without a signal of our own
        (`signal_delay: 0`) there may still be the cluster's, whose grace time is not known."""
        return float(self.signal_delay or type(self)().signal_delay)


class JobSettings(Settings, forbid_unknown_fields=False, kw_only=True):
    """A job's settings as run.yaml remembers them. What another version had that this one does not know is
    passed over, and what that did not know has its default."""

    sources: dict[str, str] = {}
    """Where each setting that was set came from; one of env, secrets and sbatch as env.NAME."""


class RunSettings(JobSettings, kw_only=True):
    """Those of a run's own job (its training, or a preparation), and of the jobs behind it."""

    profile: str = ""
    evaluate: JobSettings | None = None
    infer: JobSettings | None = None
