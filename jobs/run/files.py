"""The names of all files in a run directory, and what they hold: the only place that spells them out.

page.py makes the tables of docs/run-directory.md from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.run import image


@dataclass(frozen=True)
class File:
    """A file or folder of a run. Called with the parts in braces, it returns the name."""

    pattern: str
    meaning: str
    """For docs/run-directory.md."""
    writer: str = ""

    def __call__(self, **parts: object) -> str:
        return self.pattern.format(**parts)


LAUNCHER, TRAINING, BOTH = "the launcher", "the training", "launchers and jobs"

# --- the run directory

REQUEST = File(
    "run.yaml",
    "the request: config (a copy in `code/`, and where it was copied from; or the program of `--worker`), "
    "overrides, data root, seed, resources, resolved cluster profile, versions, the "
    "command that made it",
    "the launcher, once (again by `--resume`)",
)
CONFIG = File("config.py", "the resolved MMSegmentation config", "the first start")
CODE = File(
    "code",
    "snapshot of `jobs/`, `launch/` and `configs/`, your configs with all their bases (those from outside"
    " the checkout in `config_files/`, an installed package's in `package_configs/`; the "
    "program of `--worker` likewise; a `_base_` that "
    "would not lead to its copy is named anew), modules of yours that they import (of a package with data "
    "in it, a folder without code that holds more than 100 files or 10 MiB, or another file above 10 MiB, a "
    "link to that; nothing hidden, no virtual environment), and the link `data` to the data root; the "
    "working directory of every job, so edits after submission change nothing",
    LAUNCHER,
)
CODE_IMAGE = File(
    image.CODE,
    "`code/` as one file, with `environment: image`: what the nodes copy to their own disks",
    "the launcher, at every submission",
)
CHECKPOINTS = File(
    "checkpoints",
    "`epoch_N.pth`, `iter_N.pth`, beside each a manifest `….pth.json` (step, epoch, position, world size, "
    "global batch, digest, bytes, config digest); `best.json` names the best by the run's metric. A file "
    "that does not match its manifest counts only if its own content proves it whole; otherwise it is "
    "renamed to `….pth.damaged`",
    TRAINING,
)
EVENTS = File("events.jsonl", "what happened, see below", BOTH)
METRICS = File("metrics.jsonl", "training and validation scalars by step, see below", "the training, rank 0")
PROGRESS = File(
    "progress.json",
    "where the training is at this moment, overwritten every few seconds, at a constant size",
    "the training, rank 0",
)
JOB = File("job", "batch scripts (`train.sbatch`, …), one log a rank, marks, see below", BOTH)
EVAL = File(
    "eval",
    "`CHECKPOINT-DIGEST/` is an evaluation (`…-tta/` one with `--tta`): `metrics.json`, `per_class.csv`, "
    "`confusion.csv`, `per_image.csv` (each image's figures, the worst first), `per_image.npz` (per "
    "image and class the pixels that are right, of the truth and of the prediction, and the same near "
    "boundaries), `pictures/` (the place among the worst begins their names). "
    "`metrics.json` is written last: where it is, all is",
    "the evaluation",
)
INFER = File(
    "infer",
    "masks and overlays of inferences; `.NAME.part`, `.NAME.part.json`: a large image that is not done yet",
    "the inference",
)
EXPORT = File(
    "export",
    "`CHECKPOINT-DIGEST/` is an exported model: `weights.pth`, `config.py`, your modules that it names, "
    "`model.onnx`, `export.json` with all digests, written last",
    "the export",
)
TENSORBOARD = File("tensorboard", "TensorBoard files", TRAINING)
TRACK = File(
    "track",
    "of each service that shows the run's curves (`--track`): `SERVICE.json`, which run of the service it is "
    "and what that has; `SERVICE.log`, what its package said; W&B's and ClearML's folders where they are "
    "offline",
    "`launch/track.py`, which jobs start",
)
MMENGINE = File("mmengine", "the framework's own logs", TRAINING)
COMPILED = File(
    "compiled",
    "with `compile`: the kernels that torch made, a folder a rank, for its owner alone; without them a start "
    "makes them again",
    TRAINING,
)
REPORT = File(
    "report.html",
    "the report, one file that needs nothing else",
    "after every evaluation, and `launch/report.py`",
)

# --- in checkpoints/ and eval/CHECKPOINT-DIGEST/

BEST = "best.json"
EVAL_METRICS, EVAL_CLASSES, EVAL_CONFUSION = "metrics.json", "per_class.csv", "confusion.csv"
EVAL_IMAGES, EVAL_WORST = "per_image.npz", "per_image.csv"
EVAL_PICTURES = "pictures"

# --- in track/

TRACK_PICTURES = "pictures"

# --- in job/

SCRIPT = File(
    "{STAGE}.sbatch",
    "the batch script; like `run.yaml` readable by its owner alone",
)
ENVIRONMENT = File(
    "{STAGE}.env",
    "the environment that the profile gives the job; readable by its owner alone",
)
LOG = File("{JOB}_log.out", "what the batch script itself said")
RANK_LOG = File("{JOB}_{RANK}_log.out", "a rank's output; a requeue keeps the job id, so it is appended to")
LOCAL_LOG = File("{LOCALJOB}-{STAGE}_{RANK}_log.out", "the same of a local run, whose job is `local-PID`")
START = File(
    "start-{N}",
    "claims start N and says who holds it: a worker of an older start publishes and deletes no checkpoint"
    " any more",
)
ERROR = File("error-{START}-{RANK}.json", "the error of a worker, `error` in one line and its `traceback`")
MEETING = File(
    "meeting-{STEP}",
    "where rank 0 of this step (`JOB.RESTART.STEP`) listens, and the key that lets in, while its ranks come "
    "together; for the owner alone. `meeting-over` is its room on the disk afterwards",
)
LOCK = File("local.lock", "held by the local chain, whose process it names")
STACKS = File("stacks-{START}-{RANK}.txt", "the stacks of a rank at a hang")
CHAIN = File(
    "local.json",
    "`pid` and `start_time` of the process that runs a local chain, and `host`, `boot` and `pids` (the pid "
    "namespace) where that pid counts; all must match before anybody signals it",
)
OTHER_CHAIN = File(
    "{LOCALJOB}.json", "the same of an evaluation, inference or export by hand, `local-PID`, while it lives"
)
CONTROLLER = File("controller.out", "what submitit said that started a local chain")
SUBMITIT = File(
    "{PID}_{WHAT}.pkl", "submitit's own files of a local chain; what this one said is in `PID_0_log.out`"
)
SUCCESSOR = File("successor-{JOB}.sbatch", "a job's script as it was submitted again, for a successor")
PRESUBMITTED = File(
    "presubmitted-{JOB}", "the job that was submitted in advance, to go on if this one is killed"
)
CANCELLED = File(
    "cancelled",
    "by `launch/cancel.py`, or after a plain `scancel`: no requeue, no successor, no start. "
    "`train.py --resume` removes it",
)
TURN = File(
    "turn",
    "locked by a launcher that submits a job of the run, so that two commands do so one after the other",
)
GLOBAL_BATCH = File(
    "global-batch", "images a step on all ranks: a later start on another number of ranks keeps to it"
)
FAILURES_NOTED = File(
    "failures-noted",
    "how many failures the events had when the last one was counted, so that each is counted once",
)
TOLD = File(
    "told-{STAGE}-{JOB}-{RESTART}",
    "that somebody was notified of this job's failure: the other ranks do not notify again",
)


def of(section: str) -> list[File]:
    """The files of a section, `run` or `job`, in the order above."""
    everything = [value for value in globals().values() if isinstance(value, File)]
    first = everything.index(SCRIPT)
    return everything[:first] if section == "run" else everything[first:]


FOLDERS = (CODE, CHECKPOINTS, JOB, EVAL, INFER, EXPORT, TENSORBOARD, TRACK, MMENGINE, COMPILED)
