"""Is the dataset there before anything trains on it, and if not, is a preparation on its way?"""

from __future__ import annotations

from pathlib import Path

from jobs import events
from jobs.errors import UserError
from jobs.prepare import state, weights
from jobs.run_directory import Run
from launch import configs, runs

VOC = "VOCdevkit"

ENDS = {"prepared", "failed", "cancelled", "stopped"}


def wait_for(data_root: Path, executor: str, chain: configs.Chain | None = None) -> str | None:
    """None if what the config `chain` reads is ready (without one: VOC), else the job to wait for (the local
    chain waits by the data root's lock).

    Raises UserError, with the mend, if the dataset or the pretrained weights are neither there nor on their
    way.
    """
    job = _job_of_dataset(data_root, executor, configs.dataset_folder(chain) if chain else "")
    if chain:
        on_its_way = preparing(data_root) if job else None
        asked = on_its_way.request().command if on_its_way else []
        coming = {weights.DEFAULT, *asked} if job and "--no-weights" not in asked else set()
        configs.check_weights(chain, data_root, coming)
    return job


def _job_of_dataset(data_root: Path, executor: str, folder: str) -> str | None:
    found = state.state(data_root, folder or VOC)
    # Other datasets may have been laid there by hand: the job looks for the config's lists of images.
    by_hand = folder not in ("", VOC) and found.kind == "missing" and (data_root / folder).is_dir()
    if found.ready or by_hand:
        return None
    from launch import alive  # with all that reads histories; not needed where the dataset is ready

    on_its_way = preparing(data_root)
    job = alive.newest_job(on_its_way, "prepare") if on_its_way else ""
    if not job and found.owner:
        job = found.owner.job or f"process {found.owner.pid} on {found.owner.host}"
    if executor == "local" and job:
        return job
    if job.isdigit():
        return job
    if job:
        raise UserError(
            f"the dataset in {data_root} is still being prepared, by {job}, which no Slurm job can wait for: "
            "submit when it has ended (python launch/status.py shows it)"
        )
    why = f" ({found.reason})" if found.reason else ""
    if folder not in ("", VOC):
        raise UserError(
            f"there is no {data_root / folder}, which the config reads: place it there "
            "(python launch/prepare.py --dataset NAME makes those that MMSegmentation has a converter for)"
        )
    raise UserError(
        f"there is no prepared dataset in {data_root}{why}: "
        f"python launch/prepare.py --data-root {data_root} makes it"
    )


def preparing(data_root: Path) -> Run | None:
    """The run of prepare.py that is queued or running for this data root, if there is one."""
    from launch import alive

    found = [run for run in runs.all_runs(runs.prepare_root()) if run.events.exists()]
    for run in sorted(found, key=lambda run: run.events.stat().st_mtime_ns, reverse=True):
        if Path(run.request().data_root) != data_root or _has_ended(run):
            continue
        if alive.is_alive(run, alive.newest_job(run, "prepare")):
            return run
    return None


def _has_ended(run: Run) -> bool:
    ended = False
    for event in events.iterate(run.events):
        if event["event"] == "submitted":
            ended = False
        ended = ended or event["event"] in ENDS
    return ended
