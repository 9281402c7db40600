"""Are the datasets ready before anything trains on them, and if not, is a preparation on its way?

The datasets are those whose data roots the config (or `--set`) names below `data/`. A data root that the
config computes is checked by the job alone (jobs/mmseg/config.py, check_data). Missing pretrained weights,
which a preparation may fetch, are reported here, too.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.catalog import listing, pretrained
from jobs.catalog import readiness as state
from jobs.catalog.recipes import RECIPES, VOC_FOLDER, dataset_of, folder_of
from jobs.run import packed, story
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import configs, executors, runs, snapshot


@dataclass
class Prerequisites:
    """The preparations that a training waits for."""

    jobs: list[str] = field(default_factory=list)
    """Slurm's job ids."""
    stages: list[list[str]] = field(default_factory=list)
    """Arguments with which jobs.prepare waits for them in a local chain."""
    weights: set[str] = field(default_factory=set)
    """Pretrained weights that they will fetch, as configs refer to them."""

    @property
    def dependency(self) -> str:
        """The job ids as in `--dependency=afterok:…`; "" if there are none."""
        return ":".join(self.jobs)


def wait_for(data_root: Path, executor: str, chain: configs.Chain) -> Prerequisites:
    """The preparations that must end before everything the config reads is ready; usually none.

    Raises UserError, with the fix, if a dataset or a file of pretrained weights is neither there nor on its
    way.
    """
    prerequisites = Prerequisites()
    check_relative(chain)
    try:
        configs.check_weights(chain, data_root, set())
        whole = True
    except UserError:  # they may be on their way with a dataset
        whole = False
    for path in paths(chain):
        _look(data_root, path, executor, whole, prerequisites)
    if not prerequisites.jobs and not prerequisites.stages:
        _check_images(data_root, chain)
    configs.check_weights(chain, data_root, prerequisites.weights)
    return prerequisites


def check(data_root: Path, chain: configs.Chain) -> None:
    """Raises UserError, with the fix, unless every dataset that the config reads is ready now."""
    for path in paths(chain):
        prerequisites = Prerequisites()
        _look(data_root, path, "slurm", True, prerequisites)
        if prerequisites.jobs:
            raise UserError(
                f"the dataset in {data_root / path} is still being prepared, by {prerequisites.jobs[0]}: "
                "evaluate when it has ended (python launch/status.py shows it)"
            )


def check_run(run: Run, here: bool) -> None:
    """Raises UserError, with the fix, if what a run's config evaluates on is gone with its data root."""
    request = run.request()
    root = Path(request.data_root)
    if not root.is_dir():  # else the job itself sees what is missing, as the data may have changed since
        check(root, configs.check(run.code / request.config, request.overrides, here=here, code=run.code))


def check_relative(chain: configs.Chain) -> None:
    """Raises UserError for a relative data root that is neither below data/ nor part of the snapshot: it
    would be relative to the directory in which training was once started."""
    along = {"data", ".", *snapshot.FOLDERS, *(module.name for module in chain.modules)}
    for root, keys in configs.data_roots(chain).items():
        if posixpath.isabs(root) or posixpath.normpath(root).split("/")[0] in along:
            continue
        whole = Path(root).expanduser().absolute()
        path = shlex.quote(os.path.normpath(whole)) if whole.exists() else "/ITS/WHOLE/PATH"
        raise UserError(
            f"the config reads {root}, but a job runs in its own directory: put it below data/, or give "
            f"its absolute path: --set {' '.join(f'{key}={path}' for key in keys)}"
        )


def _check_images(data_root: Path, chain: configs.Chain) -> None:
    """Raises UserError for a BaseSegDataset (as most users' own datasets are) that would find no image; other
    classes have suffixes and lists of their own, which the job checks."""
    for key in ("train_dataloader", "val_dataloader"):
        loader = chain.values.get(key)
        one = loader.get("dataset") if isinstance(loader, dict) else None
        if not isinstance(one, dict) or one.get("type") != "BaseSegDataset":
            continue
        prefix, names = one.get("data_prefix"), one.get("ann_file")
        folder = _below(data_root, one, prefix.get("img_path") if isinstance(prefix, dict) else None)
        suffix = one.get("img_suffix", ".jpg")
        if folder is None or not isinstance(suffix, str) or packed.locate(folder) is not None:
            continue
        if not names:
            why = "" if listing.holds(folder, suffix) else listing.nothing_there(folder, suffix)
        else:
            file = _below(data_root, one, names)
            why = listing.wrong_list(file, folder, suffix) if file and not file.is_dir() else ""
        if why:
            raise UserError(f"{key}: {why}")


def _below(data_root: Path, dataset: dict[str, Any], place: Any) -> Path | None:
    """Where a dataset's file or folder lies; None if that is not below data/."""
    given = [dataset.get("data_root", ""), place]
    found = posixpath.normpath(posixpath.join(*given)) if all(isinstance(x, str) for x in given) else ""
    return data_root / found.removeprefix("data/") if found.startswith("data/") else None


def paths(chain: configs.Chain) -> list[str]:
    """The config's data roots below `data/`, as sorted paths relative to it."""
    normal = (posixpath.normpath(root) for root in configs.data_roots(chain))
    return sorted(path.removeprefix("data/") for path in normal if path.startswith("data/"))


def to_pack(data_root: Path, chain: configs.Chain) -> str:
    """How to pack one of the config's datasets, if none of its data roots is in a packed one; else ""."""
    found = paths(chain)
    if any(packed.locate(data_root / path) for path in found):
        return ""
    for folder in (path.split("/")[0] for path in found):
        if state.state(data_root, folder).ready:
            return f"{_command(data_root, dataset_of(folder))} --pack packs one"
    return "prepare.py --pack packs those that it has made (docs/packed.md)"


def recipe_of(path: str) -> str:
    """The dataset, as named for `prepare.py --dataset`, that is prepared to this path below a data root; ""
    for a user's own."""
    folder = path.split("/")[0]
    dataset = dataset_of(folder)
    # The same folder may hold VOC 2010 and the like, which are not prepared.
    ours = path.startswith(f"{VOC_FOLDER}/VOC2012") if folder == VOC_FOLDER else dataset in RECIPES
    return dataset if ours else ""


def _look(data_root: Path, path: str, executor: str, whole: bool, prerequisites: Prerequisites) -> None:
    """Adds what is to be waited for. Not `whole`: weights are missing, and are fetched after the dataset."""
    folder = path.split("/")[0]
    dataset = dataset_of(folder)
    ours = bool(recipe_of(path))
    found = state.state(data_root, folder)
    ready = found.ready and (
        ours or (data_root / path).exists() or (data_root / folder / packed.NAME).exists()
    )
    if ready and whole:
        return
    run = preparing(data_root, folder)
    if ready and run is None:
        return
    job = story.read(run.events).newest.get("prepare", "") if run else ""
    if not job and found.owner:
        job = found.owner.job or f"process {found.owner.pid} on {found.owner.host}"
    if job:
        asked = run.request().weights if run else None
        if asked is None:  # not given: what a preparation fetches by default
            asked = [pretrained.DEFAULT] if dataset == "voc" else []
        prerequisites.weights |= set(asked)
    if not job:
        _not_there(data_root, path, dataset if ours else "", found.reason)
        return
    arguments = ["--data-root", str(data_root), "--dataset", dataset]
    if not executors.named(executor).wait_behind(job, bool(found.owner), arguments, prerequisites):
        what = {"slurm": "Slurm job"}.get(executor, f"{executor} run")
        raise UserError(
            f"the dataset in {data_root / folder} is still being prepared, by {job}, which no {what} can "
            "wait for: submit when it has ended (python launch/status.py shows it)"
        )


def _not_there(data_root: Path, path: str, dataset: str, reason: str) -> None:
    """Raises UserError, unless the user's own data is there; `dataset`: what prepare.py could make."""
    place = data_root / path
    if place.exists() and dataset != "voc":
        if dataset:
            print(f"{place} was not made by launch/prepare.py: it is used unverified", file=sys.stderr)
        return
    if not dataset:
        raise UserError(f"the config reads data/{path}, and there is no {place}: put it there")
    why = f" ({reason})" if reason else ""
    raise UserError(
        f"there is no prepared dataset in {data_root / folder_of(dataset)}{why}: "
        f"{_command(data_root, dataset)} makes it"
    )


def _command(data_root: Path, dataset: str) -> str:
    which = "" if dataset == "voc" else f" --dataset {dataset}"
    return f"python launch/prepare.py --data-root {shlex.quote(str(data_root))}{which}"


def preparing(data_root: Path, folder: str) -> Run | None:
    """The run of prepare.py that is queued or running for this folder of a data root, if any."""
    from launch.observe import liveness

    found = []
    for run in runs.all_runs(runs.prepare_root()):
        with contextlib.suppress(OSError):
            found.append((run.events.stat().st_mtime_ns, run))
    for _, run in sorted(found, key=lambda one: one[0], reverse=True):
        try:
            request, past = run.request(), story.read(run.events)
        except (OSError, UserError):  # damaged, or another user's, whom the data root's lock names
            continue
        if request.verify or folder_of(request.dataset) != folder or past.preparation_has_ended:
            continue
        if Path(request.data_root).resolve() != data_root.resolve():
            continue
        if liveness.is_alive(run, past.newest.get("prepare", "")):
            return run
    return None
