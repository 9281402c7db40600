"""What reads files of others, each with a good file to mutate."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from PIL import Image
from scipy.io import savemat

from jobs.catalog import manifest
from jobs.catalog import readiness as state
from jobs.engine import checkpoints
from jobs.mmseg import images
from jobs.prepare import png, verify
from jobs.prepare.archives import DamagedArchive, Stream, unpack_tar, walk
from jobs.prepare.converters import unpack
from jobs.prepare.deflate import content_digest
from jobs.prepare.voc import build, masks
from jobs.prepare.voc.sbd import BadMask, mask_of
from jobs.run import checkpoint_files, events
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.slurm import queries as slurm_queries
from launch.observe import efficiency, history, states
from launch.submit import profiles
from tests.unit.made_runs import interrupted_run, made_run


class Target(NamedTuple):
    good: bytes
    read: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    text: bool = False
    share: float = 1.0
    """Of the mutations that are tried: reading one may take long."""


KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """Each target makes what it needs below `folder`."""
    made = {
        "events": _events, "metrics": _metrics, "progress": _progress, "local job": _local,
        "run.yaml": _request, "profile": _profile,
        "dataset manifest": _manifest, "dataset table": _table,
        "checkpoint manifest": _checkpoint, "best checkpoint": _best,
        "tar": lambda f: _tar(f, "w"), "tgz": lambda f: _tar(f, "w:gz"), "tar.xz": lambda f: _tar(f, "w:xz"),
        "pax tar": lambda f: _tar(f, "w", tarfile.PAX_FORMAT), "zip": _zip,
        "mat": lambda _: _mat(True), "plain mat": lambda _: _mat(False), "mask": _mask,
        **{kind: lambda f, kind=kind: _image(f, kind) for kind in KINDS},
    }  # fmt: skip

    def maker(name: str) -> Callable[[], Target]:
        def make() -> Target:
            place = folder / name.replace(" ", "-")
            place.mkdir(parents=True)
            return made[name](place)

        return make

    return {name: maker(name) for name in made}


def _look(run: Run) -> None:
    """As status, logs, clean and report look at a run."""
    past = history.read(run)
    now = time.time()
    answer = slurm_queries.Answer()
    states.jobs_to_ask(past)
    states.status(run, past, answer, now)
    efficiency.shares(past, now)
    efficiency.costs(past, now)


def _events(folder: Path) -> Target:
    run = interrupted_run(folder / "run")

    def read(content: bytes) -> None:
        run.events.write_bytes(content)
        events.read(run.events)
        _look(run)

    return Target(run.events.read_bytes(), read, (), True)


def _metrics(folder: Path) -> Target:
    from launch.observe.report import data as report_data

    run = interrupted_run(folder / "run")
    rows = [{"step": n, "epoch": 0, "start": 1 + n // 3, "kind": "train", "loss": 0.5} for n in range(1, 9)]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()

    def read(content: bytes) -> None:
        run.metrics.write_bytes(content)
        report_data.kept_rows(history.read_lines(run.metrics), history.read(run))

    return Target(good, read, (), True)


def _progress(folder: Path) -> Target:
    run = interrupted_run(folder / "run")
    file = run.path / "progress.json"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        _look(run)

    return Target(file.read_bytes(), read, (), True)


def _local(folder: Path) -> Target:
    run = made_run(folder / "run")

    def read(content: bytes) -> None:
        (run.job / "local.json").write_bytes(content)
        (run.job / "local-1.json").write_bytes(content)
        states.local_chains(run)

    return Target(b'{"pid": 1, "start_time": 5, "job": "local-1"}', read, (), True)


def _request(folder: Path) -> Target:
    cluster = {
        "profile": "mine",
        "gpus": 2,
        "env": {"A": "b"},
        "sources": {"gpus": "x.yaml", "env.A": "x.yaml"},
    }
    run = made_run(folder / "run", cluster=cluster, set={"a.b": [1, None, 0.5]}, nodes=2, seed=3)

    def read(content: bytes) -> None:
        run.request_file.write_bytes(content)
        run.request()

    return Target(run.request_file.read_bytes(), read, (UserError,), True)


def _profile(folder: Path) -> Target:
    good = (profiles.CLUSTERS / "example.yaml").read_bytes()

    def read(content: bytes) -> None:
        (folder / "mine.yaml").write_bytes(content)
        found = profiles.load(str(folder / "mine.yaml"))
        for stage in profiles.STAGES:
            profiles.resolve(found, stage, {})

    return Target(good + b"env: {A: b}\ncontainer: {kind: pyxis, image: x}\n", read, (UserError,), True)


def _dataset(folder: Path) -> Path:
    root = folder / "data" / "ade"
    root.mkdir(parents=True)
    content = b"2008_000051\n"
    (root / "list.txt").write_bytes(content)
    entries = [manifest.Entry("list.txt", len(content), content_digest(content))]
    table = manifest.files_text(entries)
    (root / manifest.FILES).write_bytes(table)
    made = manifest.Manifest(
        dataset="ade20k", created="2026-01-01T00:00:00+00:00", files=1, bytes=len(content),
        files_digest=manifest.table_digest(table), lists={"a": {"count": 1}},
        archives={"x.zip": {"bytes": 3, "sha256": "00"}},
    )  # fmt: skip
    (root / manifest.MANIFEST).write_bytes(manifest.to_json(made))
    return root


def _dataset_file(folder: Path, name: str) -> Target:
    root = _dataset(folder)

    def read(content: bytes) -> None:
        (root / name).write_bytes(content)
        verify.quick(root)
        state.state(root.parent, root.name)
        assert (root / "list.txt").is_file()

    return Target((root / name).read_bytes(), read, (UserError,), True)


def _manifest(folder: Path) -> Target:
    return _dataset_file(folder, manifest.MANIFEST)


def _table(folder: Path) -> Target:
    return _dataset_file(folder, manifest.FILES)


def _checkpoint_file(folder: Path, name: str) -> Target:
    """Two checkpoints; whatever a manifest says, no file of either is lost."""
    contents = {f"epoch_{n}.pth": bytes([n]) * 100 for n in (1, 2)}

    def lay(where: Path) -> None:
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        for number, (file, content) in enumerate(contents.items(), 1):
            (where / file).write_bytes(content)
            record = dict.fromkeys(checkpoints.FIELDS, 1) | {"step": number, "epoch": number, "start": 1}
            record |= {"bytes": 100, "digest": checkpoints.digest(where / file), "validation_due": False}
            (where / f"{file}.json").write_text(json.dumps(record))
        (where / "best.json").write_text(json.dumps({"path": "epoch_1.pth", "score": 0.5}))

    where = folder / "checkpoints"

    def read(content: bytes) -> None:
        lay(where)
        (where / name).write_bytes(content)
        checkpoints.listed(where)
        checkpoint_files.last(where)
        checkpoints.best(where)
        checkpoints.newest(where, lambda *_, **__: None)
        left = {xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in where.iterdir()}
        assert {xxhash.xxh3_64_hexdigest(one) for one in contents.values()} <= left

    lay(where)
    return Target((where / name).read_bytes(), read, (UserError,), True)


def _checkpoint(folder: Path) -> Target:
    return _checkpoint_file(folder, "epoch_2.pth.json")


def _best(folder: Path) -> Target:
    return _checkpoint_file(folder, "best.json")


def _tar(folder: Path, mode: str, format: int = tarfile.GNU_FORMAT) -> Target:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode=mode, format=format) as tar:  # type: ignore[call-overload]
        tar.addfile(entry := tarfile.TarInfo("d/"), None)
        for name in ("d/a.txt", "d/" + "long" * 40 + "/b.mat", "ä.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 700
            tar.addfile(entry, io.BytesIO(b"x" * 700))
    path, out = folder / "x.tar", folder / "in" / "out"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        shutil.rmtree(folder / "in", ignore_errors=True)
        out.mkdir(parents=True)
        try:
            with Stream(path) as stream:
                for member in walk(stream):
                    if member.regular:
                        build.content_of(stream, member)
            unpack_tar(path, out)
        finally:
            assert sorted(one.name for one in folder.iterdir()) == ["in", "x.tar"]
            assert [one.name for one in (folder / "in").iterdir()] == ["out"]

    return Target(output.getvalue(), read, (DamagedArchive,))


def _zip(folder: Path) -> Target:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("d/a.txt", "d/e/b.png"):
            packed.writestr(name, b"x" * 700)
    path, out = folder / "x.zip", folder / "in" / "out"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        shutil.rmtree(folder / "in", ignore_errors=True)
        out.mkdir(parents=True)
        try:
            unpack(path, out)
        finally:
            assert sorted(one.name for one in folder.iterdir()) == ["in", "x.zip"]
            assert [one.name for one in (folder / "in").iterdir()] == ["out"]

    return Target(output.getvalue(), read, (DamagedArchive,))


def _mat(packed: bool) -> Target:
    buffer = io.BytesIO()
    mask = np.arange(30, dtype=np.uint8).reshape(5, 6) % 21
    content = {"Boundaries": 0, "Segmentation": mask, "CategoriesPresent": 0}
    savemat(buffer, {"GTcls": content}, do_compression=packed)
    # Most are left to scipy, in a process of its own.
    return Target(buffer.getvalue(), mask_of, (BadMask,), share=0.05)


def _mask(_: Path) -> Target:
    good = png.encode_grey(np.arange(30, dtype=np.uint8).reshape(5, 6) % 21)

    def read(content: bytes) -> None:
        png.png_size(content)
        masks.check_labels(masks.decode_mask(content))
        verify.read_png(content)

    return Target(good, read, (BadMask, png.BadImage))


def _image(folder: Path, kind: str) -> Target:
    output = io.BytesIO()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
    Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8)).save(output, kind, **more)  # type: ignore[arg-type]
    path = folder / "x.jpg"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if kind == "JPEG":
            png.jpeg_size(content)
        images.read(path)

    return Target(output.getvalue(), read, (UserError, png.BadImage))
