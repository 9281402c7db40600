"""What a job requests and how it behaves: the keys of a cluster profile, with their defaults.

docs/clusters.md explains every key; launch/submit/profiles.py says where each value comes from.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Container(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The container of the tasks; the batch shell and requeueing stay outside, where Slurm's commands are."""

    kind: Literal["apptainer", "singularity", "pyxis"]
    image: str
    mounts: list[str] = []
    """SOURCE:TARGET or SOURCE; the run and the data root are always mounted."""
    options: list[str] = []
    """Further flags of `apptainer exec`, or of srun for pyxis."""


class Notify(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whom to notify about a run (jobs/run/notify.py); a failure there never fails a job."""

    webhook: str = ""
    """An address to which JSON is POSTed, or $NAME: a variable of the job that holds it."""
    webhook_file: str = ""
    """A file of the user's that holds the address."""
    mail: list[str] = []
    """A command and its arguments, with `{subject}` replaced; it gets the text on standard input."""
    on: list[Literal["finished", "failed", "stopped", "evaluated"]] = []
    """Empty means finished, failed and stopped."""


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What one job requests. Empty values are not passed on: the cluster decides."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    time: str = ""
    """As Slurm writes it: minutes, HH:MM:SS, D-HH:MM:SS."""
    memory: str = ""
    """Per node, such as 64G."""
    nodes: str = "1"
    """N, or MIN-MAX to start with as many as are free."""
    gpus: int = 1
    """Per node; one rank each. CPU processes if `gres` is none."""
    cpus_per_gpu: int = 4
    """CPUs per rank."""
    gres: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How GPUs are requested: --gpus-per-node=N, --gres=gpu:N, or not at all."""
    gpu_type: str = ""
    exclude: list[str] = []
    setup: list[str] = []
    """Shell lines (module load …) that run first in the batch script; one that fails ends it."""
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    """Variables of the job -> the file of the user's that holds the value."""
    container: Container | None = None
    srun: list[str] = []
    """Further options of srun."""
    sbatch: dict[str, str] = {}
    """Further sbatch options, without the dashes; `true` for one without a value."""
    signal_delay: int = 120
    """Seconds before the time limit at which the job is told to save and exit (--signal=USR2@N)."""
    presubmit: bool = False
    """Submit the training's successor in advance, for partitions that kill without notice."""
    notify: Notify | None = None
    """Whom to notify when a run has finished, failed or stopped."""
    track: list[str] = []
    """Services that show the run's curves: wandb, mlflow, clearml, tensorboard (jobs/run/trackers.py)."""
    hang_minutes: int = 10
    """Minutes without a step after which a training counts as hanging."""
    stage: str = ""
    """A folder on the node's own disk ($TMPDIR, /local/$USER) for copies of packed datasets, in trainings."""
    environment: Literal["", "image"] = ""
    """image: the tasks run from a copy, in `stage`, of the environment's image (env/pack.sh)."""
    python: str = ""
    """The tasks' interpreter (inside the container, if there is one); by default the launcher's own."""

    @property
    def grace(self) -> float:
        """Seconds that a job can count on to save and exit once it is told to. Without our own signal
        (`signal_delay: 0`), the default: the cluster may still send one, with an unknown grace time."""
        return float(self.signal_delay or type(self)().signal_delay)


class JobSettings(Settings, forbid_unknown_fields=False, kw_only=True):
    """A job's settings as recorded in run.yaml. Settings of another version that this one does not know are
    ignored; those that it did not know have their defaults."""

    sources: dict[str, str] = {}
    """Source of each setting that was set; for env, secrets and sbatch under env.NAME and so on."""


class RunSettings(JobSettings, kw_only=True):
    """Settings of a run's own job (its training, or a preparation), and of its further jobs."""

    profile: str = ""
    evaluate: JobSettings | None = None
    infer: JobSettings | None = None
