"""From nothing to the dataset: archives downloaded or placed by hand, and a download that is killed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.catalog import sources
from jobs.catalog.sources import Source
from jobs.prepare.synthetic import SBD_ARCHIVE, VOC_ARCHIVE
from jobs.prepare.voc.pipeline import prepare
from jobs.run.errors import UserError
from tests.archive_edits import VOC, copy, edit
from tests.prepare.test_prepare_download import Handler, Server
from tests.support.datasets import contents

ROOT = Path(__file__).resolve().parents[2]


class Files(Handler):
    """Serves the archives; while `held` is there, only the first 100,000 bytes of the body."""

    server: FileServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.seen.append((self.path, wanted))
        self.close_connection = True
        content = (self.server.folder / self.path.strip("/")).read_bytes()
        if self.server.held.is_set():
            self.send(wanted, limit=100_000, content=content)
            self.server.over.wait(60)
        else:
            self.send(wanted, content=content)


class FileServer(Server):
    def __init__(self, folder: Path) -> None:
        super().__init__(Files)
        self.folder = folder
        self.held = threading.Event()


@pytest.fixture
def server(voc_archives: Path) -> Iterator[FileServer]:
    with FileServer(voc_archives) as server:
        threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def released(server: FileServer, name: str) -> Source:
    """The stand-in as if it were the published archive, at the local server."""
    content = (server.folder / name).read_bytes()
    digests = {"sha256": hashlib.sha256(content).hexdigest()}
    return Source(name, len(content), digests, (f"{server.url}/{name}",))


@pytest.fixture
def published(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the trainaug list of the real archives is not what these give."""
    monkeypatch.setattr(sources, "VOC", released(server, VOC_ARCHIVE))
    monkeypatch.setattr(sources, "SBD", released(server, SBD_ARCHIVE))
    monkeypatch.setattr("jobs.prepare.voc.lists.check_real", lambda _: None)


@pytest.mark.usefixtures("published")
def test_one_archive_is_placed_the_other_downloaded(
    server: FileServer, tmp_path: Path, voc_small: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    shutil.copy(server.folder / VOC_ARCHIVE, root)
    made = prepare(root, processes=1)
    assert [path for path, _ in server.seen] == [f"/{SBD_ARCHIVE}"]
    assert contents(root / "VOCdevkit") == contents(voc_small / "VOCdevkit")
    assert set(made.manifest.archives) == {VOC_ARCHIVE, SBD_ARCHIVE}
    # What was downloaded is not needed any more; what the user placed stays.
    assert sorted(path.name for path in root.iterdir()) == ["VOCdevkit", VOC_ARCHIVE]


@pytest.mark.usefixtures("published")
def test_a_placed_archive_of_ones_own_is_checked_by_a_list_beside_it(
    server: FileServer, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    own = copy(server.folder, tmp_path / "own")
    edit(own / VOC_ARCHIVE, {f"{VOC}Annotations/more.xml": b"more"})
    placed = Path(shutil.copy(own / VOC_ARCHIVE, root))
    with pytest.raises(UserError, match=f"list it in {root}/SHA256SUMS"):
        prepare(root, processes=1)
    content = placed.read_bytes()
    (root / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {VOC_ARCHIVE}\n")
    assert prepare(root, processes=1).manifest.archives[VOC_ARCHIVE]["bytes"] == len(content)
    shutil.rmtree(root / "VOCdevkit")
    placed.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged: its sha256"):
        prepare(root, processes=1)


PROGRAM = """
import sys
from pathlib import Path
from jobs.catalog import sources; from jobs.prepare.voc import lists as voc
from jobs.catalog.sources import Source
sources.VOC, sources.SBD = eval(sys.argv[1])
voc.check_real = lambda _: None
from jobs.prepare.voc.pipeline import prepare
prepare(Path(sys.argv[2]), processes=1)
"""


def test_killed_in_the_middle_of_a_download(server: FileServer, tmp_path: Path, voc_small: Path) -> None:
    root = tmp_path / "data"
    both = repr((released(server, VOC_ARCHIVE), released(server, SBD_ARCHIVE)))
    command = [sys.executable, "-c", PROGRAM, both, str(root)]
    server.held.set()
    part = root / ".prepare" / f"{VOC_ARCHIVE}.part"
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    # A block is written when it is whole.
    while not (part.exists() and part.stat().st_size >= 1 << 16):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    arrived = part.stat().st_size
    server.held.clear()
    server.seen.clear()
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert server.seen == [(f"/{VOC_ARCHIVE}", f"bytes={arrived}-"), (f"/{SBD_ARCHIVE}", None)]
    assert contents(root / "VOCdevkit") == contents(voc_small / "VOCdevkit")
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]
