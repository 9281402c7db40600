"""Notifies the user of how a run, or one of its jobs, has ended: by a webhook or mail command in the profile.

    notify:
      webhook_file: ~/.config/baton-webhook         an address that gets a JSON object by POST; its `text` is
                                                    what chats show. Or webhook: $VARIABLE, or the address
      mail: [mail, -s, "{subject}", me@example.org] a command; the text comes on its standard input
      on: [finished, failed, stopped, evaluated]    default: the first three

Whatever goes wrong here is only printed to the job's log: no notification is worth a job.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.run import files, secrets
from jobs.run.directory import Run
from jobs.run.errors import in_a_line
from jobs.run.task import job_id

SECONDS = 15.0
DEFAULT_EVENTS = ("finished", "failed", "stopped")


def about(run: Run, event: str, message: str) -> None:
    """Sends what the run's profile asks for about `event`. Never raises, never takes long."""
    try:
        wish = run.request().cluster.notify
    except Exception as error:
        print(f"baton: no notification: {error}", file=sys.stderr, flush=True)
        return
    if wish is None or event not in (wish.on or DEFAULT_EVENTS):
        return
    subject = f"{run.name}: {event}"
    text = f"{subject}\n{message}\n{run.path}\nstatus: python launch/status.py {run.name}\n"
    ways: tuple[tuple[str, Any], ...] = (("webhook_file", _post), ("webhook", _post), ("mail", _mail))
    for key, send in ways:
        if not (value := getattr(wish, key)):
            continue
        try:
            send(
                secrets.read(value, key) if key == "webhook_file" else value,
                subject,
                text,
                {"run": run.name, "event": event, "path": str(run.path)},
            )
        except Exception as error:  # by design: see above
            print(f"baton: notification failed: {error}", file=sys.stderr, flush=True)


@contextmanager
def failures_of(run: Run | None, stage: str) -> Iterator[None]:
    """Notifies of an error that ends a job (`stage`) of the run; only the first task to fail does."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if run is not None and _first(run, stage):
            about(run, "failed", f"{stage}: {in_a_line(error)}")
        raise


def _first(run: Run, stage: str) -> bool:
    job = job_id()
    mark = run.job / files.TOLD(STAGE=stage, JOB=job, RESTART=os.environ.get("SLURM_RESTART_COUNT") or 0)
    try:
        if job:
            mark.open("x").close()
    except FileExistsError:
        return False
    except OSError:
        pass  # better twice than never
    return True


def _post(url: str, subject: str, text: str, facts: dict[str, Any]) -> None:
    """Raises RuntimeError without the address in its message, since that lets anybody post there."""
    if url.startswith("$"):
        url = os.environ.get(name := url[1:], "")
        if not url:
            raise RuntimeError(f"the webhook's variable {name} is not set in the job")
    if not url.startswith(("https://", "http://")):
        raise RuntimeError("the webhook is no web address")
    body = json.dumps({"text": text, "subject": subject, "host": socket.gethostname()} | facts).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    failed: list[Exception | None] = []
    # In a thread: the timeout applies to each call, so a server that sends a byte now and then, or a slow
    # name lookup, could block without end.
    thread = threading.Thread(target=_send, args=(request, failed), daemon=True)
    thread.start()
    thread.join(SECONDS)
    error = failed[0] if failed else TimeoutError()
    code = getattr(error, "code", 0)
    if error is None or code == 303:  # See Other: where to read the result
        return
    if code:  # without the server's own words, which may hold the address
        # Google's scripts use 302, too, to say where to read the result.
        to = "; if nothing has arrived, put the address that it leads to" if 300 <= code < 400 else ""
        raise RuntimeError(f"the webhook: HTTP {code} {http.client.responses.get(code, '')}{to}") from None
    raise RuntimeError(f"the webhook: {getattr(error, 'reason', '') or type(error).__name__}") from None


def _send(request: urllib.request.Request, failed: list[Exception | None]) -> None:
    """Appends the error, or None if it was accepted."""
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=SECONDS) as answer:
            answer.read(1)
        failed.append(None)
    except Exception as error:
        failed.append(error)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would do so without the message, and nobody would know."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _mail(command: list[str], subject: str, text: str, _: dict[str, Any]) -> None:
    argv = [word.replace("{subject}", subject) for word in command]
    done = subprocess.run(  # in UTF-8 whatever the locale, even with undecodable file names
        argv, input=text, capture_output=True, timeout=SECONDS, check=False,
        encoding="utf-8", errors="backslashreplace",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {' '.join(done.stderr.split())}")
