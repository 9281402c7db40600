"""What reads files of others, each with a good file to mutate."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import xxhash
from PIL import Image
from scipy.io import savemat

from jobs.catalog import classes, manifest, owner
from jobs.catalog import own_images as own_options
from jobs.catalog import readiness as state
from jobs.engine import checkpoints
from jobs.mmseg import images
from jobs.prepare import __main__ as command
from jobs.prepare import verify
from jobs.prepare.archives import DamagedArchive, Stream, unpack_tar, walk
from jobs.prepare.converters import unpack
from jobs.prepare.own import findings, judge, masks, pipeline, scan, sources, splits
from jobs.prepare.own import images as own_images
from jobs.prepare.packed import convert
from jobs.prepare.voc import build
from jobs.prepare.voc import masks as voc_masks
from jobs.prepare.voc.sbd import BadMask, mask_of
from jobs.run import checkpoint_files, events, packed, png, records
from jobs.run import counts as counted
from jobs.run.deflate import content_digest
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.slurm import queries as slurm_queries
from launch.observe import efficiency, history, local_jobs, states
from launch.submit import profiles
from tests import own_images as made_images
from tests.unit.made_runs import interrupted_run, made_run, with_everything


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
    made: dict[str, Callable[[Path], Target]] = {
        "events": _events, "metrics": _metrics, "progress": _progress, "local job": _local,
        "run.yaml": _request, "profile": _profile,
        **{name: partial(_evaluation, name=name) for name in EVALUATION},
        "dataset manifest": _manifest, "dataset table": _table,
        "checkpoint manifest": _checkpoint, "best checkpoint": _best,
        "tar": lambda f: _tar(f, "w"), "tgz": lambda f: _tar(f, "w:gz"), "tar.xz": lambda f: _tar(f, "w:xz"),
        "pax tar": lambda f: _tar(f, "w", tarfile.PAX_FORMAT), "zip": _zip,
        "owner": _lock, "packed dataset": _packed, "COCO": lambda f: _annotations(f, "coco"),
        "Label Studio": lambda f: _annotations(f, "label-studio"),
        "LabelMe": lambda f: _annotations(f, "labelme"), "classes": _classes, "own list": _list,
        "own dataset": _description, "kept rows": _rows,
        "own mask": lambda f: _own(f, "PNG", masks.open_picture),
        **{f"own {kind}": partial(_own, kind=kind, look=own_images.look) for kind in KINDS},
        "weights": lambda f: _weights(f, True), "old weights": lambda f: _weights(f, False),
        "mat": lambda _: _mat(True), "plain mat": lambda _: _mat(False), "mask": _mask,
        **{kind: partial(_image, kind=kind) for kind in KINDS},
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
        report_data.kept_rows(records.read_lines(run.metrics), history.read(run))

    return Target(good, read, (), True)


EVALUATION = ("metrics.json", "confusion.csv", "per_image.csv", "per_image.npz")


def _evaluation(folder: Path, name: str) -> Target:
    """As a report, and a comparison with another run, show an evaluation of which one file is not as it was
    written: a spreadsheet saved it, a copy broke off."""
    from launch.observe.report import comparison, groups, page
    from launch.observe.report import data as report_data

    random = np.random.default_rng(0)
    found = []
    for lr in ("0.1", "0.2"):
        run = with_everything(folder / lr)
        run.write_request(msgspec.structs.replace(run.request(), set={"lr": lr}, executor="local"))
        (where,) = run.eval.iterdir()
        told = json.loads((where / "metrics.json").read_text())
        told |= {"asked": ["mIoU"], "intervals": {"mIoU": [1, 2]}, "not_computed": ["x: why"]}
        (where / "metrics.json").write_text(json.dumps(told))
        (where / "per_image.csv").write_text("place,image,mIoU,aAcc,picture\n1,/x,5,6,2007_000033.jpg\n")
        counts: dict[str, Any] = {
            kind: random.integers(1, 9, (4, 3)).astype(np.uint32) for kind in counted.KINDS
        }
        np.savez_compressed(where / "per_image.npz", names=np.array(list("abcd")), **counts)
        events_of = [line for line in run.events.read_text().splitlines() if '"slurm"' not in line]
        run.events.write_text("".join(line + "\n" for line in events_of).replace('"12"', '"local-1"'))
        found.append(run)
    file = where / name

    def read(content: bytes) -> None:
        file.write_bytes(content)
        both = report_data.gather(found)
        page.page(both[1])
        comparison.comparison(both)
        groups.FORMATS["csv"](groups.grouped(both))

    return Target(file.read_bytes(), read, (), text=name != "per_image.npz", share=0.3)


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
        local_jobs.local_chains(run)

    return Target(b'{"pid": 1, "start_time": 5, "job": "local-1"}', read, (), True)


def _request(folder: Path) -> Target:
    cluster = {
        "profile": "mine",
        "gpus": 2,
        "env": {"A": "b"},
        "sources": {"gpus": "x.yaml", "env.A": "x.yaml"},
    }
    run = made_run(
        folder / "run", cluster=cluster, set={"a.b": [1, None, 0.5], "a.c": (1, 2)}, nodes=2, seed=3
    )

    def read(content: bytes) -> None:
        run.request_file.write_bytes(content)
        run.request().overrides  # noqa: B018

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
            record: dict[str, Any] = dict.fromkeys(checkpoints.FIELDS, 1)
            record |= {"step": number, "epoch": number, "start": 1}
            record |= {"bytes": 100, "digest": checkpoints.digest(where / file), "validation_due": False}
            (where / f"{file}.json").write_text(json.dumps(record))
        (where / "best.json").write_text(json.dumps({"path": "epoch_1.pth", "value": 0.5}))

    where = folder / "checkpoints"

    def read(content: bytes) -> None:
        lay(where)
        (where / name).write_bytes(content)
        checkpoints.listed(where)
        checkpoint_files.last(where)
        checkpoints.best_figure(where)
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
        voc_masks.check_labels(voc_masks.decode_mask(content))
        verify.read_png(content)

    return Target(good, read, (BadMask, png.BadImage))


def _image(folder: Path, kind: str) -> Target:
    output = io.BytesIO()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
    Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8)).save(output, kind, **more)
    path = folder / "x.jpg"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if kind == "JPEG":
            png.jpeg_size(content)
        images.read(path)

    return Target(output.getvalue(), read, (UserError, png.BadImage))


def _lock(folder: Path) -> Target:
    """Of a preparation: who holds it, whether he lives."""
    file = folder / owner.NAME

    def read(content: bytes) -> None:
        file.write_bytes(content)
        found = owner.read(folder)
        assert found is not None
        owner.is_dead(found[0])
        assert str(found[0])

    return Target(json.dumps(asdict(owner.myself("mine"))).encode(), read, (), True)


def _packed(folder: Path) -> Target:
    root, made = _dataset(folder), folder / "packed"
    made.mkdir()
    convert.pack_tree(root, made)
    path, out = made / packed.NAME, folder / "in" / "out"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        shutil.rmtree(folder / "in", ignore_errors=True)
        out.mkdir(parents=True)
        packed._opened.cache_clear()
        problems = verify.quick(made) + verify.deep(made, 1)
        try:
            container = packed.Container(path)
            for name in container.files:
                container.read(name)
            assert "" in container.folders
            convert.unpack_tree(made, out)
            assert (out / "list.txt").read_bytes() == (root / "list.txt").read_bytes()
        except UserError:
            assert problems
            raise
        finally:
            assert [one.name for one in (folder / "in").iterdir()] == ["out"]

    return Target(path.read_bytes(), read, (UserError,))


def _annotations(folder: Path, kind: str) -> Target:
    """Of one image among two: as a preparation reads and judges them, with all that it writes about them."""
    made_images.write(folder, 2, masks=kind)
    known = classes.read(folder / "classes.txt")
    file = sorted((folder / "masks").glob("*.json"))[0]
    before = {path: path.read_bytes() for path in (folder / "images").iterdir()}
    how = scan.How(known)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        items, _, found = sources.collect(folder / "images", [folder / "masks"], kind, "", known)
        items, more = splits.split(items, None, 0, "", ("", ""))
        pairs = list(scan.scan(items, how, 1, folder / "rows"))
        found += more + judge.judge(pairs, how, known.values)
        findings.table(found)
        (folder / "rows").unlink()
        assert before == {path: path.read_bytes() for path in (folder / "images").iterdir()}
        findings.stop_at_errors(found, "x", "y")

    return Target(file.read_bytes(), read, (UserError,), True, share=0.5)


def _classes(folder: Path) -> Target:
    path = folder / "classes.txt"
    good = f"{made_images.CLASSES}road 1 2 3 value=7\nignore #102030 value=9\n"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        classes.read(path)

    return Target(good.encode(), read, (UserError,), True)


def _list(folder: Path) -> Target:
    path = folder / "list.txt"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        items = [sources.Item(f"a/{n}.jpg", f"a/{n}.jpg") for n in range(3)]
        findings.table(splits.split(items, None, 0, "", (str(path), ""))[1])

    return Target(b"a/0.jpg\na/1\n2\n", read, (UserError,), True)


def _description(folder: Path) -> Target:
    made_images.write(folder, 3)
    given = ["--data-root", folder, "--dataset", "mine", "--images", folder / "images", "--processes", "1"]
    given += ["--masks", folder / "masks", "--classes", folder / "classes.txt"]
    pipeline.prepare_own(command.parser().parse_args(list(map(str, given))))
    root = folder / "mine"
    file = root / own_options.DESCRIPTION

    def read(content: bytes) -> None:
        file.write_bytes(content)
        pipeline.description(root)

    return Target(file.read_bytes(), read, (UserError,), True)


def _rows(folder: Path) -> Target:
    """What an interrupted start has left."""
    made_images.write(folder, 2)
    known = classes.read(folder / "classes.txt")
    items = sources.collect(folder / "images", [folder / "masks"], "auto", "", known)[0]
    file, how = folder / "rows", scan.How(known)
    wanted = [row for _, row in scan.scan(items, how, 1, file)]

    def read(content: bytes) -> None:
        file.write_bytes(content)
        assert [row.key for _, row in scan.scan(items, how, 1, file)] == [row.key for row in wanted]

    return Target(file.read_bytes(), read, ())


def _own(folder: Path, kind: str, look: Callable[[bytes], object]) -> Target:
    good = _image(folder, kind).good

    def read(content: bytes) -> None:
        look(content)
        own_images.read(content)

    return Target(good, read, (own_images.BadPicture,))


def _weights(folder: Path, zipped: bool) -> Target:
    import torch

    from jobs.mmseg import model

    file = folder / "x.pth"
    content = {"state_dict": {"a.weight": torch.arange(6.0).reshape(2, 3)}, "meta": {"epoch": 3}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        model.weights_of(file)

    return Target(file.read_bytes(), read, (UserError,), share=0.5)
