"""Downloads from a local HTTP server that behaves as badly as real ones do."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.catalog.sources import Source
from jobs.prepare import download
from jobs.prepare.download import Patience, fetch
from jobs.run.errors import UserError

CONTENT = hashlib.shake_128(b"archive").digest(3_000_000)
PATIENCE = Patience(attempts=3, backoff=0.01, connect=2, stall=0.3)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.seen.append((self.path, wanted))
        self.close_connection = True
        # As a proxy it is asked for whole URLs.
        getattr(self, re.sub(r"http://[^/]*", "", self.path).strip("/").replace("-", "_"))(wanted)

    def head(self, status: int, length: int, **fields: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, wanted: str | None, limit: int | None = None, content: bytes = CONTENT) -> None:
        begin = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        if begin >= len(content):
            self.head(416, 0)
            return
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.head(206 if wanted else 200, len(content) - begin, **({"Content_Range": span} if wanted else {}))
        self.wfile.write(content[begin : begin + limit if limit else None])
        self.wfile.flush()

    def good(self, wanted: str | None) -> None:
        self.send(wanted)

    def breaks(self, wanted: str | None) -> None:
        self.send(wanted, limit=1_000_000)

    def stalls(self, wanted: str | None) -> None:
        self.send(wanted, limit=1_200_000)
        self.server.over.wait(5)

    def silent(self, _: str | None) -> None:
        self.server.over.wait(5)

    def redirects(self, _: str | None) -> None:
        self.head(302, 0, Location="/good")

    def no_ranges(self, _: str | None) -> None:
        # Breaks off the first time, then sends everything from the beginning.
        first = len([1 for path, _ in self.server.seen if path == "/no-ranges"]) == 1
        self.head(200, len(CONTENT))
        self.wfile.write(CONTENT[: 500_000 if first else None])

    def alternates(self, _: str | None) -> None:
        # No ranges, and it breaks off late, early, late, …; in the end it would send all.
        self.head(200, len(CONTENT))
        limit = 1_000_000 if len(self.server.seen) % 2 else 500_000
        self.wfile.write(CONTENT[: limit if len(self.server.seen) < 30 else None])

    def flaky(self, wanted: str | None) -> None:
        self.busy(wanted) if len(self.server.seen) < 3 else self.send(wanted)

    def html(self, _: str | None) -> None:
        self.head(200, 26, Content_Type="text/html; charset=utf-8")
        self.wfile.write(b"<html>We have moved.</html"[:26])

    def disguised_html(self, _: str | None) -> None:
        page = (b"<!DOCTYPE html><title>Sorry</title>" + b" " * len(CONTENT))[: len(CONTENT)]
        self.head(200, len(page), Content_Type="application/x-tar")
        self.wfile.write(page)

    def short(self, wanted: str | None) -> None:
        self.send(wanted, content=CONTENT[:2_000_000])

    def long_without_length(self, _: str | None) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT + b"more")

    def other(self, _: str | None) -> None:
        self.send(None, content=bytes(len(CONTENT)))

    def absent(self, _: str | None) -> None:
        self.head(404, 0)

    def busy(self, _: str | None) -> None:
        self.head(503, 0)

    def wrong_range(self, _: str | None) -> None:
        self.head(206, 10, Content_Range=f"bytes 7-16/{len(CONTENT)}")
        self.wfile.write(bytes(10))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def source(server: Server, *paths: str) -> Source:
    digests = {"sha256": hashlib.sha256(CONTENT).hexdigest()}
    return Source("x.tar", len(CONTENT), digests, tuple(f"{server.url}/{path}" for path in paths))


def test_whole_file_arrives_and_nothing_else_stays(server: Server, tmp_path: Path) -> None:
    path = fetch(source(server, "good"), tmp_path, PATIENCE)
    assert path.read_bytes() == CONTENT
    assert not list(tmp_path.glob("*.part"))


def test_goes_on_where_the_server_broke_off(server: Server, tmp_path: Path) -> None:
    assert fetch(source(server, "breaks"), tmp_path, PATIENCE).read_bytes() == CONTENT
    begins = [int(wanted.removeprefix("bytes=").rstrip("-")) for _, wanted in server.seen[1:] if wanted]
    assert len(begins) == len(server.seen) - 1 >= 2
    assert begins[0] > 900_000
    assert begins[1] > begins[0] + 900_000


def test_a_stall_is_a_break(server: Server, tmp_path: Path) -> None:
    assert fetch(source(server, "stalls"), tmp_path, PATIENCE).read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_goes_on_after_being_killed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.tar.part").write_bytes(CONTENT[:2_345_678])
    assert fetch(source(server, "good"), tmp_path, PATIENCE).read_bytes() == CONTENT
    assert server.seen == [("/good", "bytes=2345678-")]


def test_killed_between_last_byte_and_rename(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.tar.part").write_bytes(CONTENT)
    assert fetch(source(server, "good"), tmp_path, PATIENCE).read_bytes() == CONTENT
    assert server.seen == []


def test_what_the_disk_has_spoilt_since_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(CONTENT[:-9] + bytes(9))
    assert fetch(source(server, "good"), tmp_path, PATIENCE).read_bytes() == CONTENT


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    assert fetch(source(server, "redirects"), tmp_path, PATIENCE).read_bytes() == CONTENT


def test_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    assert fetch(source(server, "no-ranges"), tmp_path, PATIENCE).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_server_that_comes_no_further_is_given_up(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2000000 more expected"):
        fetch(source(server, "alternates"), tmp_path, PATIENCE)
    assert len(server.seen) <= 4


def test_an_unknown_size_is_asked_for_as_patiently(server: Server, tmp_path: Path) -> None:
    """From a server that refuses HEAD, as this one does, and is busy at first."""
    unknown = replace(source(server, "absent", "flaky"), size=0)
    assert fetch(unknown, tmp_path, PATIENCE).read_bytes() == CONTENT
    assert len(server.seen) > 3
    with pytest.raises(UserError, match="tells no size"):
        fetch(replace(source(server, "long-without-length"), size=0), tmp_path / "..", PATIENCE)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("html", "HTML page"),
        ("disguised-html", "HTML page"),
        ("short", "2,000,000 bytes"),
        ("long-without-length", "3,000,004 bytes"),
        ("other", "damaged"),
        ("absent", "HTTP 404"),
        ("busy", "HTTP 503"),
        ("wrong-range", "from byte 7"),
        ("silent", "timed out"),
    ],
)
def test_next_mirror_when_one_is_useless(
    server: Server, tmp_path: Path, path: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(source(server, path, "good"), tmp_path, PATIENCE).read_bytes() == CONTENT
    assert reason in capsys.readouterr().out
    (tmp_path / "x.tar").unlink()
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        fetch(source(server, path), tmp_path, PATIENCE)
    assert "--archives" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.tar").exists()


def test_no_server_at_all(tmp_path: Path) -> None:
    gone = Source("x.tar", 10, {"md5": "0" * 32}, ("http://127.0.0.1:9/x",))
    with pytest.raises(UserError, match="refused"):
        fetch(gone, tmp_path, PATIENCE)


def test_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    digests = {"sha256": hashlib.sha256(CONTENT).hexdigest()}
    away = Source("x.tar", len(CONTENT), digests, ("http://mirror.invalid/good",))
    assert fetch(away, tmp_path, PATIENCE).read_bytes() == CONTENT
    assert server.seen[0][0] == "http://mirror.invalid/good"


def test_free_disk_is_looked_at_first(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="free"):
        fetch(source(server, "good"), tmp_path, PATIENCE, room=1 << 60)
    assert server.seen == []


def test_room_for_what_is_unpacked_is_looked_at_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(CONTENT) * 3 // 2))
    with pytest.raises(UserError, match="free and the download needs 6 MB"):
        fetch(source(server, "good"), tmp_path, PATIENCE, unpacked=True)
    assert server.seen == []
    fetch(source(server, "good"), tmp_path, PATIENCE)


def test_real_sources_are_complete() -> None:
    from jobs.catalog import sources

    for real in (sources.VOC, sources.SBD):
        assert len(real.urls) >= 2
        for algorithm, value in real.digests.items():
            assert len(value) == 2 * hashlib.new(algorithm).digest_size
    assert download.looks_like_html(b"\n<!DOCTYPE html>")
