"""Checkpoints on disk: complete or absent, searched newest first, pruned only after a newer one is verified.

`epoch_N.pth` or `iter_N.pth` can be read by plain mmengine tools; the manifest beside it (`epoch_N.pth.json`)
makes it valid: if size or digest differ, or without one, it does not count unless its own content proves that
it is complete. Writing, in this order: a temporary file, fsync, rename, the manifest (atomic), reading back,
pruning. A crash between any two leaves the previous checkpoints as they were.

Nothing here imports torch before it writes: launchers read manifests, too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from jobs.run import file_systems, files
from jobs.run.checkpoint_files import (
    DAMAGED,
    Checkpoint,
    beside,
    best,
    damage,
    digest,
    listed,
    read,
    told_best,
    wrong_size,
)
from jobs.run.directory import newest_start, write_atomically
from jobs.run.errors import UserError
from jobs.run.events import now
from jobs.run.metrics import Figure

KEEP = 2
"""Checkpoints that are always kept besides the best one: the newest could turn out to be damaged."""

FIELDS = (
    "step",
    "epoch",
    "position",
    "world_size",
    "global_batch",
    "config_digest",
    "why",
    "asked",
    "validation_due",
)
"""The manifest's fields about the state. The checkpoint's own `baton` part has the same."""

Report = Callable[..., None]
"""Takes an event's name and its fields, like `Session.report`."""


def on_phase(phase: str) -> None:
    """Called between the phases of a write; tests of crashes replace it with a function that kills."""


class FencedOff(RuntimeError):
    """A later start of the run exists: this one must no longer touch the checkpoints."""


# ----------------------------------------------------------------------------------------------- finding


def newest(directory: Path, report: Report | None = None) -> Checkpoint | None:
    """The newest valid checkpoint, with its digest verified; None if there has never been one.

    Damaged ones are renamed to *.damaged and reported as `checkpoint_damaged`, so that they are noticed and
    never tried again. Temporary files of dead writers stay: a live orphan may still be writing one.

    Raises OSError if something cannot be read: a file server that does not answer is not damage. Raises
    UserError if there are checkpoints, or traces of them, but no valid one: a run never starts again from 0
    by itself.
    """
    try:
        # Not glob, which treats an unreadable folder as empty.
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        if directory.is_symlink():
            raise OSError(errno.ENOENT, _link(directory), str(directory)) from None
        return None
    useless = [name for name in names if name.endswith(".damaged")]
    useless += [
        f"{name}: its file is gone"
        for name in names
        if name.endswith(".pth.json") and name.removesuffix(".json") not in names
    ]
    candidates = []
    for path in (directory / name for name in names if name.endswith(".pth")):
        with _naming(path):
            checkpoint = read(beside(path))
            wrong = wrong_size(checkpoint) if checkpoint else "its manifest is missing or unreadable"
            if wrong:
                # A crash between rename and manifest leaves a complete file.
                checkpoint = _rebuilt(path)
        if checkpoint:
            candidates.append(checkpoint)
        elif wrong and path.exists():
            useless.append(_set_aside(path, wrong, report))
        elif path.is_symlink():  # perhaps to a disk that is not mounted: leave it
            useless.append(f"{path.name}: {_link(path)}")
            if report:
                report("checkpoint_damaged", path=path.name, reason=_link(path))
    for checkpoint in sorted(candidates, key=lambda c: (c.step, c.epoch), reverse=True):
        path = checkpoint.path
        with _naming(path):
            if digest(path) == checkpoint.manifest.get("digest"):
                return checkpoint
            # The manifest may be from another writer.
            if rebuilt := _rebuilt(path):
                return rebuilt
        useless.append(_set_aside(path, "its content does not match its digest", report))
    if useless:
        some = ", ".join(useless[:3]) + (", …" if len(useless) > 3 else "")
        raise UserError(
            f"none of the checkpoints in {directory} is whole ({some}), and a run never starts over by "
            "itself: put a whole one there, or delete the folder to start from step 0"
        )
    return None


def _link(path: Path) -> str:
    return f"a link to {os.readlink(path)}, which is not there"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError of the block, which those of `read` lack."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _rebuilt(path: Path) -> Checkpoint | None:
    """The checkpoint of a file that is complete by its own content, with a new manifest; None if it is not.

    The state itself says which state it is.
    Raises OSError if the file cannot be read.
    """
    from jobs.engine import safe_load

    try:
        if damage(path):
            return None
        own = safe_load.load(path)["baton"]
        record = {key: own[key] for key in FIELDS}
    except OSError as error:
        # A damaged archive directory leads its reader to impossible offsets.
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    except Exception:
        # Readers may raise anything for a damaged file.
        return None
    record |= {"bytes": path.stat().st_size, "digest": digest(path), "time": now()}
    print(f"{path.name} is whole, but its manifest is missing or does not match: written again", flush=True)
    with contextlib.suppress(OSError):  # on a full disk, the next start checks again
        write_atomically(beside(path), json.dumps(record).encode())
    return Checkpoint(path, record)


def _set_aside(path: Path, reason: str, report: Report | None) -> str:
    """Renames a damaged file; returns its new name."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
        beside(path).unlink(missing_ok=True)
    except OSError as error:
        reason += f" (and it could not be set aside: {error.strerror})"
        aside = path
    if report:
        report("checkpoint_damaged", path=path.name, reason=reason)
    return aside.name


# ----------------------------------------------------------------------------------------------- writing


def write(path: Path, content: dict[str, Any], manifest: dict[str, Any], job: Path, start: int) -> Checkpoint:
    """Writes `content` to `path` and makes it a valid checkpoint. Returns that, verified.

    `manifest` is completed with bytes, digest, start and time. `job`: the directory with the files start-N of
    all starts; raises FencedOff if there is a later one than `start`. Raises OSError if the disk is full,
    read-only, …; what existed before is then still there.
    """
    manifest_file = beside(path)
    old = read(manifest_file)
    if old and not wrong_size(old) and digest(path) == old.manifest.get("digest"):
        # The same step of the same run: equal by design, so do not replace it.
        return old
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{start}.{os.getpid()}.tmp")
    try:
        with _naming(path), temporary.open("wb") as file:
            on_phase("opened")
            hashing = _Hashing(file)
            _save(content, hashing)
            on_phase("written")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        on_phase("synced")
        check_fence(job, start)
        # That of a damaged file of the same name, which would not match the new file.
        manifest_file.unlink(missing_ok=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    on_phase("renamed")
    record = manifest | {"bytes": size, "digest": hashing.digest, "start": start, "time": now()}
    # A process that was suspended anywhere here may wake up long after a later start has taken over.
    check_fence(job, start)
    try:
        with _naming(path):
            _sync_directory(path.parent)
            write_atomically(manifest_file, json.dumps(record).encode())
            _sync_directory(path.parent)
            on_phase("manifest")
            if digest(path) != hashing.digest:
                raise OSError(f"{path.name} read back differs from what was written")
    except OSError:
        check_fence(job, start)
        # Half a checkpoint is useless, and takes the space of the next.
        manifest_file.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise
    on_phase("verified")
    return Checkpoint(path, record)


def _save(content: dict[str, Any], file: _Hashing) -> None:
    """torch.save, but raises the OSError itself if the disk is full, instead of anything at all."""
    import torch

    try:
        torch.save(content, file)  # type: ignore[arg-type]
    except Exception as error:
        if file.error and error is not file.error:
            raise file.error from error
        raise


class _Hashing:
    """A file for torch.save that computes the digest of what is written."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.hash = xxhash.xxh3_128()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.hash.update(data)
        try:
            return int(self.file.write(data))
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()

    @property
    def digest(self) -> str:
        return str(self.hash.hexdigest())


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        file_systems.sync_names(fd)
    finally:
        os.close(fd)


def check_fence(job: Path, start: int) -> None:
    """Raises FencedOff if there is a later start than `start`."""
    if (latest := newest_start(job)) > start:
        raise FencedOff(
            f"start {latest} of this run is under way: start {start} leaves the checkpoints alone"
        )


# ----------------------------------------------------------------------------------------------- keeping


def prune(directory: Path, most: int, job: Path, start: int) -> list[Path]:
    """Deletes what need not be kept, after a newer checkpoint was verified. Returns what was deleted.

    Keeps the newest `KEEP`, the newest of this start, the best, and of those that the config's interval asked
    for (`asked` in the manifest) the newest `most` (all if `most` < 1). Raises FencedOff as `write` does.
    """
    everything = listed(directory)
    keep = {checkpoint.path for checkpoint in everything[-KEEP:]}
    # The one that was verified: damaged ones that could not be renamed may claim to be newer.
    keep.update([checkpoint.path for checkpoint in everything if checkpoint.start == start][-1:])
    asked = [checkpoint.path for checkpoint in everything if checkpoint.manifest.get("asked")]
    keep.update(asked[-most:] if most > 0 else asked)
    if favourite := best(directory):
        keep.add(favourite.path)
    deleted = []
    for checkpoint in everything:
        if checkpoint.path not in keep:
            check_fence(job, start)
            # The manifest last: alone it means nothing, but a file without one counts as damaged.
            checkpoint.path.unlink(missing_ok=True)
            beside(checkpoint.path).unlink(missing_ok=True)
            deleted.append(checkpoint.path)
    return deleted


def clear(directory: Path, job: Path, start: int) -> None:
    """Deletes what writers of earlier starts left half-written or half-deleted, which takes the space of the
    next checkpoint.

    A writer that is still alive will be fenced off. Raises FencedOff as `write` does, and OSError.
    """
    check_fence(job, start)
    for path in directory.glob(".*.tmp"):
        mark = re.fullmatch(r"\..+\.(\d+)\.\d+\.tmp", path.name)
        if mark is None or int(mark[1]) < start:
            path.unlink(missing_ok=True)
    for path in directory.glob("*.pth.json"):
        if not path.with_name(path.name.removesuffix(".json")).exists():
            path.unlink(missing_ok=True)


def mark_best(directory: Path, checkpoint: Checkpoint, metric: str, metrics: dict[str, float | None]) -> None:
    """Records `checkpoint` as the best so far, according to `metric`."""
    record = metrics | {
        "path": checkpoint.path.name,
        "step": checkpoint.step,
        "metric": metric,
        "value": metrics[metric],
        "metrics": metrics,
    }
    write_atomically(directory / files.BEST, json.dumps(record).encode())


def best_figure(directory: Path) -> Figure | None:
    """The figure of the best validation so far whose checkpoint still exists; None if there is none."""
    if best(directory) is None:
        return None
    try:
        record = json.loads((directory / files.BEST).read_text())
        return Figure(str(record["metric"]), float(record["value"]))
    except DAMAGED:
        return told_best(directory)
