"""Notifications reach a real web server and a real command, and harm nothing when they fail."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.run import notify
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import profiles
from tests.unit.made_runs import made_run


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == "/ok" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


def run_with(path: Path, **wish: Any) -> Run:
    return made_run(path, cluster={"notify": wish})


def test_a_webhook_gets_what_happened(tmp_path: Path, hook: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = hook
    run = run_with(tmp_path / "first", webhook=f"{url}/ok")
    notify.about(run, "finished", "training is finished")
    assert got[0]["run"] == "first"
    assert got[0]["event"] == "finished"
    assert "training is finished" in got[0]["text"]
    notify.about(run, "evaluated", "mIoU 50")  # not asked for
    assert len(got) == 1


def test_a_mail_command_gets_subject_and_text(tmp_path: Path) -> None:
    out = tmp_path / "mail.txt"
    program = "import sys; open(sys.argv[1], 'w').write(sys.argv[2] + '\\n' + sys.stdin.read())"
    run = run_with(tmp_path / "it's", mail=[sys.executable, "-c", program, str(out), "{subject}; touch x"])
    notify.about(run, "stopped", "3 starts in a row")
    assert out.read_text().startswith("it's: stopped; touch x\nit's: stopped\n3 starts in a row\n")


def test_whatever_fails_is_only_said(
    tmp_path: Path, hook: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = hook
    notify.about(run_with(tmp_path / "a", webhook=f"{url}/broken", mail=["/nonexistent"]), "failed", "x")
    notify.about(run_with(tmp_path / "b", webhook="file:///etc/passwd", mail=["false"]), "failed", "x")
    notify.about(Run(tmp_path / "none"), "failed", "x")
    said = capsys.readouterr().err
    assert said.count("notification") == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
            "HTTP 302 Found; if nothing has arrived, put",
        ),
        (b"HTTP/1.1 303 See Other\r\nLocation: http://127.0.0.1:1/\r\n\r\n", ""),
        (b"HTTP/1.1 404 no such hook: /key\r\n\r\n", "HTTP 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 99, "TimeoutError"),
    ],
)
def test_a_server_neither_leads_away_nor_tells_the_address_nor_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    answer: bytes, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(notify, "SECONDS", 0.2 if said == "TimeoutError" else 60.0)
    over = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            # All of it: to close on something unread resets the connection.
            with connection.makefile("rb") as request:
                head = list(iter(request.readline, b"\r\n"))
                request.read(
                    next(int(line.split()[1]) for line in head if line.startswith(b"Content-Length"))
                )
            for at in range(len(answer)):  # each byte in time, all of them not
                connection.sendall(answer[at : at + 1])
                over.wait(0.05 if said == "TimeoutError" else 0)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(serve)
        run = run_with(tmp_path / "first", webhook=f"http://127.0.0.1:{server.getsockname()[1]}/key")
        began = time.monotonic()
        notify.about(run, "finished", "training is finished")
        assert time.monotonic() - began < 20
        over.set()
    told = capsys.readouterr().err
    assert (f"notification failed: the webhook: {said}" in told) if said else not told
    assert "key" not in told


def test_a_mail_tells_of_any_file(tmp_path: Path) -> None:
    run, mail = run_that_mails(tmp_path, "first")
    notify.about(run, "failed", "é … a\udcff.png cannot be read")
    assert "é … a\\udcff.png cannot be read\n" in mail.read_text(encoding="utf-8")


def run_that_mails(folder: Path, name: str) -> tuple[Run, Path]:
    out = folder / "mail.txt"
    program = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + sys.stdin.read())"
    run = run_with(folder / name, mail=[sys.executable, "-c", program, str(out), "{subject}\n"])
    run.job.mkdir(exist_ok=True)
    return run, out


def test_a_failed_preparation_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.prepare.__main__ import main

    run, mail = run_that_mails(tmp_path, "prepare-1")
    places = ["--data-root", str(tmp_path / "data"), "--archives", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["prepare", "--run", str(run.path), *places])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    with pytest.raises(UserError):
        main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert mail.read_text().startswith("prepare-1: failed\nprepare-1: failed\nprepare: ")
    assert str(tmp_path / "none") in mail.read_text()


def test_a_failed_evaluation_tells_once_whatever_the_number_of_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.evaluate.__main__ import main

    run, mail = run_that_mails(tmp_path, "first")
    monkeypatch.setattr(sys, "argv", ["evaluate", str(run.path), "--checkpoint", "none.pth"])
    monkeypatch.setenv("BATON_JOB", "12")
    for restart in ("", "", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        with pytest.raises(UserError):
            main()
    assert mail.read_text().count("first: failed\nevaluate: there is no checkpoint none.pth") == 2


def test_the_profile_knows_it() -> None:
    raw = {"notify": {"webhook": "https://a.example/b", "on": ["finished"]}}
    settings = profiles.resolve(profiles.parse(raw, "x.yaml", "x"), "train", {}).settings
    assert settings.notify is not None
    assert settings.notify.on == ["finished"]
    with pytest.raises(Exception, match="webhok"):
        profiles.parse({"notify": {"webhok": "https://a.example/b"}}, "x.yaml", "x")
