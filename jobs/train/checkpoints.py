"""Checkpoints on disk: whole or absent, found again newest first, pruned only behind a verified newer one.

`epoch_N.pth` or `iter_N.pth` is what plain mmengine tools read; the manifest beside it (`epoch_N.pth.json`)
makes it valid: without one, or if size or digest differ, it does not count. Writing, in this order: a
temporary file, fsync, rename, the manifest (atomic), reading back, pruning. A crash between any two leaves
the previous checkpoints as they were.

Nothing here imports torch before it writes: launchers read manifests, too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from jobs.events import now
from jobs.run_directory import write_atomically

KEEP = 2
"""Checkpoints that are always kept, beside the best one: the newest could turn out damaged."""

Report = Callable[..., None]
"""Takes an event's name and its fields, as `Session.report`."""


def on_phase(phase: str) -> None:
    """Called between the phases of a write; the tests for crashes put a function here that kills."""


class FencedOff(RuntimeError):
    """A later start of the run is alive: this one must not touch the checkpoints any more."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def epoch(self) -> int:
        return int(self.manifest["epoch"])


# ----------------------------------------------------------------------------------------------- finding


def listed(directory: Path) -> list[Checkpoint]:
    """Checkpoints with a readable manifest and a file of the right size, oldest first. Cheap: no digests."""
    found = []
    for path in directory.glob("*.pth.json"):
        checkpoint = _read(path)
        if checkpoint and not _wrong_size(checkpoint):
            found.append(checkpoint)
    return sorted(found, key=lambda c: (c.step, c.manifest.get("start", 0)))


def last(directory: Path) -> Checkpoint | None:
    """The newest checkpoint, by its manifest and size."""
    return next(reversed(listed(directory)), None)


def best(directory: Path) -> Checkpoint | None:
    """The checkpoint with the best validation so far; None if there was none, or if its file is gone."""
    try:
        record = json.loads((directory / "best.json").read_text())
        checkpoint = _read(directory / f"{Path(record['path']).name}.json")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return checkpoint if checkpoint and not _wrong_size(checkpoint) else None


def newest(directory: Path, report: Report | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, digest and all.

    Damaged ones are renamed to *.damaged, and told to `report` as `checkpoint_damaged`, so that they are seen
    and never tried again. Temporary files of writers that died stay: a live orphan may still hold one.
    """
    if not directory.is_dir():
        return None
    candidates = []
    for path in sorted(directory.glob("*.pth")):
        manifest = path.with_name(f"{path.name}.json")
        checkpoint = _read(manifest)
        if checkpoint is None:
            # Between rename and manifest a crash leaves a file without one; it may be whole, but who knows.
            _set_aside(path, "its manifest is missing or unreadable", report)
        elif wrong := _wrong_size(checkpoint):
            _set_aside(path, wrong, report)
        else:
            candidates.append(checkpoint)
    for checkpoint in sorted(candidates, key=lambda c: (c.step, c.epoch), reverse=True):
        try:
            actual = digest(checkpoint.path)
        except OSError as error:
            _set_aside(checkpoint.path, f"it cannot be read: {error.strerror}", report)
            continue
        if actual == checkpoint.manifest.get("digest"):
            return checkpoint
        _set_aside(checkpoint.path, "its content does not match its digest", report)
    return None


def _read(manifest: Path) -> Checkpoint | None:
    try:
        record = json.loads(manifest.read_text())
        int(record["step"]), int(record["epoch"]), int(record["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(manifest.with_name(manifest.name.removesuffix(".json")), record)


def _wrong_size(checkpoint: Checkpoint) -> str | None:
    try:
        size = checkpoint.path.stat().st_size
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    expected = checkpoint.manifest["bytes"]
    return None if size == expected else f"it has {size} bytes instead of {expected}"


def _set_aside(path: Path, reason: str, report: Report | None) -> None:
    try:
        os.replace(path, path.with_name(f"{path.name}.damaged"))
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    except OSError as error:
        reason += f" (and it could not be set aside: {error.strerror})"
    if report:
        report("checkpoint_damaged", path=path.name, reason=reason)


def digest(path: Path) -> str:
    """XXH3 of a file's content, 128 bits: against bit rot and torn writes, at memory speed."""
    h = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            h.update(chunk)
    return str(h.hexdigest())


# ----------------------------------------------------------------------------------------------- writing


def write(path: Path, content: dict[str, Any], manifest: dict[str, Any], job: Path, start: int) -> Checkpoint:
    """Writes `content` to `path` and makes it valid. Returns it, verified.

    `manifest` is completed with bytes, digest, start and time. `job` is the directory with the marks start-N
    of all starts: raises FencedOff if there is a later one than `start`. Raises OSError if the disk is full,
    read-only, …; what was there before is then still there.
    """
    old = _read(path.with_name(f"{path.name}.json"))
    if old and not _wrong_size(old) and digest(path) == old.manifest.get("digest"):
        # The same step of the same run: equal by design, and never worth a moment without it.
        return old
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{start}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            on_phase("opened")
            hashing = _Hashing(file)
            _save(content, hashing)
            on_phase("written")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        on_phase("synced")
        _check_fence(job, start)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    on_phase("renamed")
    record = manifest | {"bytes": size, "digest": hashing.digest, "start": start, "time": now()}
    beside = path.with_name(f"{path.name}.json")
    try:
        _sync_directory(path.parent)
        write_atomically(beside, json.dumps(record).encode())
        _sync_directory(path.parent)
        on_phase("manifest")
        if digest(path) != hashing.digest:
            raise OSError(f"{path.name} read back differs from what was written")
    except OSError:
        # Half a checkpoint is of no use, and takes the room of the next.
        path.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        raise
    on_phase("verified")
    return Checkpoint(path, record)


def _save(content: dict[str, Any], file: _Hashing) -> None:
    """torch.save, which raises whatever it likes when the disk is full: here it is the OSError."""
    import torch

    try:
        torch.save(content, file)  # type: ignore[arg-type]
    except Exception as error:
        if file.error and error is not file.error:
            raise file.error from error
        raise


class _Hashing:
    """A file for torch.save that keeps the digest of all that passes."""

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
        os.fsync(fd)
    finally:
        os.close(fd)


def newest_start(job: Path) -> int:
    """The highest N of the marks `start-N` in a run's job directory; 0 if there is none."""
    marks = (re.fullmatch(r"start-(\d+)", entry.name) for entry in job.glob("start-*"))
    return max((int(mark[1]) for mark in marks if mark), default=0)


def _check_fence(job: Path, start: int) -> None:
    if (latest := newest_start(job)) > start:
        raise FencedOff(
            f"start {latest} of this run is under way: start {start} leaves the checkpoints alone"
        )


# ----------------------------------------------------------------------------------------------- keeping


def prune(directory: Path, most: int, job: Path, start: int) -> list[Path]:
    """Deletes what need not be kept, after a newer checkpoint was verified. Returns what was deleted.

    Kept are: the newest `KEEP`, the best, and of those that the config's interval asked for (`asked` in the
    manifest) the newest `most` (all if `most` < 1). Raises FencedOff as `write` does.
    """
    everything = listed(directory)
    keep = {checkpoint.path for checkpoint in everything[-KEEP:]}
    asked = [checkpoint.path for checkpoint in everything if checkpoint.manifest.get("asked")]
    keep.update(asked[-most:] if most > 0 else asked)
    if favourite := best(directory):
        keep.add(favourite.path)
    deleted = []
    for checkpoint in everything:
        if checkpoint.path not in keep:
            _check_fence(job, start)
            # The manifest last: without its file it is nothing, but a file without it counts as damaged.
            checkpoint.path.unlink(missing_ok=True)
            checkpoint.path.with_name(f"{checkpoint.path.name}.json").unlink(missing_ok=True)
            deleted.append(checkpoint.path)
    for path in directory.glob(".*.tmp"):
        mark = re.fullmatch(r"\..+\.(\d+)\.\d+\.tmp", path.name)
        if mark and int(mark[1]) < start:
            path.unlink(missing_ok=True)
    return deleted


def mark_best(directory: Path, checkpoint: Checkpoint, metric: str, metrics: dict[str, float]) -> None:
    """Records `checkpoint` as the best so far, by `metric`."""
    record = {
        "path": checkpoint.path.name,
        "step": checkpoint.step,
        "metric": metric,
        "value": metrics[metric],
        "mIoU": metrics.get("mIoU"),
        "metrics": metrics,
    }
    write_atomically(directory / "best.json", json.dumps(record).encode())


def best_value(directory: Path) -> float | None:
    """The value of the best validation so far, whose checkpoint is still there."""
    if best(directory) is None:
        return None
    return float(json.loads((directory / "best.json").read_text())["value"])
