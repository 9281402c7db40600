"""The preparation against the guide's way: CPU of one mask, and archives to dataset.

examples:
  python benchmarks/prepare.py                full size: 11,355 annotations, the real lists, 27 GB of scratch
  python benchmarks/prepare.py --n 300        small, to see that it runs
  python benchmarks/prepare.py --scratch /fast/dir
  python benchmarks/prepare.py --n 1500 --packed    packed against unpacked only

The guide's way: md5sum of both archives, `tar x` of both, mmsegmentation's voc_aug.py with as many processes
as there are cores. Stand-ins of the real sizes are made on demand in the scratch folder and stay there.

Every run begins in the same state: in a folder of its own (ext4 is slow to give out inodes that were freed in
the last minutes), with nothing left to be written, with memory that is the machine's already (a virtual one
may have to get it from its host at the first touch, slower than from the disk), the archives in the cache.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import repository

import numpy as np
from PIL import Image

from benchmarks import harness
from jobs.catalog import sources
from jobs.catalog.recipes import converters
from jobs.prepare import verify, workers
from jobs.prepare.synthetic import Lists, make_lists, read_lists, write_archives
from jobs.prepare.voc.build import write_masks
from jobs.run.errors import UserError, run_command

ROOT: Path = repository.ROOT

SCARCE = 1 << 30
REAL_LISTS = ROOT / "tests/data/voc"


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument("--n", type=int, metavar="IMAGES", help="that many training images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "baton-bench-prepare")
    parser.add_argument("--packed", action="store_true", help="only packed against unpacked")
    args = parser.parse_args()
    if "voc_aug" not in converters():
        raise UserError("the installed mmsegmentation has no voc_aug.py to compare with")
    workers.no_inner_threads()
    args.scratch.mkdir(parents=True, exist_ok=True)
    archives, lists = stand_ins(args.scratch, args.n)
    with tempfile.TemporaryDirectory(prefix="packed-", dir=args.scratch) as folder:
        as_one_file(Path(folder), archives, lists, args.rounds)
    if args.packed:
        return 0
    masks(args.scratch, archives, lists, args.rounds)
    with tempfile.TemporaryDirectory(prefix="datasets-", dir=args.scratch) as folder:
        datasets(Path(folder), archives, lists, args.rounds)
    peak_memory(args.scratch, archives)
    return 0


def stand_ins(scratch: Path, n: int | None) -> tuple[Path, Lists]:
    """(folder with both archives, their lists); made once."""
    lists = make_lists(n, max(2, n // 7)) if n else read_lists(REAL_LISTS)
    folder = scratch / f"archives-{n or 'full'}"
    if not (folder / "SHA256SUMS").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_archives(folder, lists, classes=20, pool=64, full=not n)
    # The guide's checksum is md5; both ways read both archives once for it.
    names = [sources.VOC.name, sources.SBD.name]
    if not (folder / "MD5SUMS").exists():
        sums = subprocess.run(["md5sum", *names], cwd=folder, check=True, capture_output=True, text=True)
        (folder / "MD5SUMS").write_text(sums.stdout)
    return folder, lists


# --- one mask ---


def masks(scratch: Path, archives: Path, lists: Lists, rounds: int) -> None:
    """CPU of one .mat file, from file to file, each way in a process of its own; then every pixel."""
    folder = Path(shutil.copytree(extracted(scratch, archives), memory(scratch) / "cls"))
    names = lists.sbd[:: max(1, len(lists.sbd) // 1500)]
    theirs, ours = folder.parent / "theirs", folder.parent / "ours"

    def cpu(work: Callable[..., float], target: Path) -> Callable[[], float]:
        def measure() -> float:
            shutil.rmtree(target, ignore_errors=True)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                return process.submit(work, folder, names, target).result()

        return measure

    try:
        harness.compare(
            "prepare-mask",
            f"mask conversion, CPU per mask ({len(names):,} masks, pixel-equal)",
            cpu(convert_ours, ours),
            cpu(convert_theirs, theirs),
            against="mmseg voc_aug.py",
            goal=0.1,
            unit="µs",
            better="lower",
            rounds=rounds,
        )
        for name in names:
            mask = ours / f"VOC2012/SegmentationClassAug/{name}.png"
            with Image.open(mask) as one, Image.open(theirs / f"{name}.png") as other:
                if not np.array_equal(np.asarray(one), np.asarray(other)):
                    raise AssertionError(f"{name}: the masks differ")
    finally:
        shutil.rmtree(folder.parent)


def convert_ours(folder: Path, names: list[str], target: Path) -> float:
    (target / "VOC2012/SegmentationClassAug").mkdir(parents=True)
    workers.keep_memory()
    begin = time.process_time()
    for name in names:
        write_masks(folder, target, [(name, (folder / f"{name}.mat").read_bytes())])
    return (time.process_time() - begin) / len(names) * 1e6


def convert_theirs(folder: Path, names: list[str], target: Path) -> float:
    target.mkdir()
    voc_aug = load(converters()["voc_aug"])
    begin = time.process_time()
    for name in names:
        voc_aug.convert_mat(f"{name}.mat", str(folder), str(target))
    return (time.process_time() - begin) / len(names) * 1e6


def memory(scratch: Path) -> Path:
    """A folder in memory where there is one, so that the disk is not measured."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else scratch))


def extracted(scratch: Path, archives: Path) -> Path:
    """SBD's annotations as files."""
    target = scratch / f"{archives.name}-cls"
    folder = target / "benchmark_RELEASE/dataset/cls"
    if not folder.exists():
        target.mkdir(exist_ok=True)
        pattern = "benchmark_RELEASE/dataset/cls"
        subprocess.run(["tar", "xzf", archives / sources.SBD.name, "-C", target, pattern], check=True)
    return folder


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- archives to dataset ---


def datasets(work: Path, archives: Path, lists: Lists, rounds: int) -> None:
    made: dict[str, Path] = {}

    def run_ours() -> float:
        made["ours"] = Path(tempfile.mkdtemp(dir=work))
        return prepared(made["ours"], archives)

    def run_theirs() -> float:
        made["peer"] = target = Path(tempfile.mkdtemp(dir=work))
        settle(work, archives)
        return harness.timed(lambda: guide(archives, target, len(lists.trainaug)))

    harness.compare(
        "prepare-dataset",
        f"two archives to verified dataset, wall ({len(lists.sbd):,} annotations, {workers.cores()} cores)",
        run_ours,
        run_theirs,
        against="md5sum, 2 × tar x, voc_aug.py",
        goal=0.25,
        unit="s",
        better="lower",
        rounds=rounds,
    )
    files = {side: count(folder) for side, folder in made.items()}
    harness.record(
        "prepare-files",
        "files that it leaves on disk",
        files["ours"] / files["peer"],
        against="the guide's way",
        goal=0.3,
        better="lower",
        raw=files,
    )
    check_equal(made["ours"], made["peer"], lists)
    begin = time.perf_counter()
    problems = verify.quick(made["ours"] / "VOCdevkit")
    harness.record(
        "prepare-verify",
        "prepare --verify of the whole dataset",
        time.perf_counter() - begin,
        against="",
        goal=5,
        unit="s",
        better="lower",
    )
    if problems:
        raise AssertionError(problems[0])


def as_one_file(work: Path, archives: Path, lists: Lists, rounds: int) -> None:
    def prepare(*options: str) -> float:
        target = Path(tempfile.mkdtemp(dir=work))
        try:
            return prepared(target, archives, *options)
        finally:
            shutil.rmtree(target)

    harness.compare(
        "prepare-packed",
        f"two archives to a dataset packed as one file, wall ({len(lists.sbd):,} annotations)",
        lambda: prepare("--pack"),
        prepare,
        against="to a tree of files",
        goal=1,
        unit="s",
        better="lower",
        rounds=rounds,
    )


def prepared(target: Path, archives: Path, *options: str) -> float:
    """Seconds of a preparation into an empty folder."""
    settle(target.parent, archives)
    ours = [*command(target, archives), *options]
    return harness.timed(lambda: subprocess.run(ours, cwd=ROOT, check=True))


def settle(scratch: Path, archives: Path) -> None:
    """The state in which every run begins."""
    os.sync()
    # What a file without content is read into is memory that the next run gets without asking the host.
    with tempfile.TemporaryFile(dir=scratch) as hollow:
        hollow.truncate(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        read(hollow.fileno(), until_free=SCARCE)
        for path in archives.iterdir():
            with open(path, "rb") as file:
                read(file.fileno())


def read(fd: int, until_free: int = 0) -> None:
    """Reads a file to its end, or until only so many bytes of memory are free."""
    buffer = bytearray(8 << 20)
    while os.readv(fd, [buffer]):
        if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < until_free:
            break


def command(data_root: Path, archives: Path) -> list[str]:
    options = ["--data-root", data_root, "--archives", archives, "--no-weights"]
    return [sys.executable, "-m", "jobs.prepare", *map(str, options)]


def peak_memory(scratch: Path, archives: Path) -> None:
    """All processes together with as many workers as there can be, in a run that is not timed: the most that
    their proportional set sizes (what several share counts once) came to, twenty times a second."""
    target = scratch / "ours"
    shutil.rmtree(target, ignore_errors=True)
    most: dict[int, int] = {}
    with subprocess.Popen(
        [*command(target, archives), "--processes", str(workers.MOST)], cwd=ROOT
    ) as process:
        while process.poll() is None:
            now = {pid: proportional(pid) for pid in family(process.pid)}
            if sum(now.values()) > sum(most.values()):
                most = now
            time.sleep(0.05)
    if process.returncode:
        raise AssertionError(f"the preparation ended with {process.returncode}")
    harness.record(
        "prepare-memory",
        f"peak memory of a preparation with {workers.MOST} workers, the most there are",
        sum(most.values()) / 2**20,
        against="",
        goal=1024,
        unit="MiB",
        better="lower",
        raw={"bytes": sorted(most.values(), reverse=True)},
    )


def family(pid: int) -> list[int]:
    """A process and its descendants, as far as they live."""
    found = [pid]
    for one in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def proportional(pid: int) -> int:
    """A process's proportional set size in bytes, 0 if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def guide(archives: Path, target: Path, trainaug: int) -> None:
    """The guide's steps. voc_aug.py insists on 10,582 ids, which is changed for smaller stand-ins only."""
    subprocess.run(["md5sum", "--quiet", "-c", "MD5SUMS"], cwd=archives, check=True)
    subprocess.run(["tar", "xf", archives / sources.VOC.name, "-C", target], check=True)
    subprocess.run(["tar", "xzf", archives / sources.SBD.name, "-C", target], check=True)
    program = f"import voc_aug; voc_aug.AUG_LEN = {trainaug}; voc_aug.main()"
    subprocess.run(
        [sys.executable, "-c", program, "VOCdevkit", "benchmark_RELEASE", "--nproc", str(workers.cores())],
        cwd=target,
        env={**os.environ, "PYTHONPATH": str(converters()["voc_aug"].parent)},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def count(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def check_equal(ours: Path, theirs: Path, lists: Lists) -> None:
    """Both ways give the same ids and, where the guide's makes a mask from SBD, the same pixels."""
    segmentation, aug = "VOCdevkit/VOC2012/ImageSets/Segmentation", "VOCdevkit/VOC2012/SegmentationClassAug"
    for name in ("trainaug.txt", "aug.txt"):
        one, other = ((root / segmentation / name).read_text().split() for root in (ours, theirs))
        if sorted(one) != sorted(other):
            raise AssertionError(f"{name} differs")
    for name in sorted(set(lists.sbd) - set(lists.voc))[::20]:
        with Image.open(ours / aug / f"{name}.png") as a, Image.open(theirs / aug / f"{name}.png") as b:
            if not np.array_equal(np.asarray(a), np.asarray(b)):
                raise AssertionError(f"{name}: the masks differ")


if __name__ == "__main__":
    run_command(main)
