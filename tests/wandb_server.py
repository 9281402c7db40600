"""A stand-in for W&B's server, as far as the real client needs one: it keeps what it is told of each run.

The requests are those of wandb 0.31 (core/pkg/server and core/internal/filestream in github.com/wandb/wandb):
GraphQL at /graphql, and the lines of a run's files, with the offset where they belong, at
/files/…/file_stream.
"""

from __future__ import annotations

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

ENTITY = {"id": "1", "name": "me"}
HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"


class WandbServer:
    """At `address`, until `close`. `runs`: id -> name of a file -> its lines."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, list[str]]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        """What was said of each run, the newest; what is null changes nothing."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Says nothing."""

            def do_POST(handler) -> None:
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                if handler.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = json.dumps(self.answer(handler.path, body)).encode()
                handler.send_response(200)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(answer)))
                handler.end_headers()
                handler.wfile.write(answer)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[run].get(HISTORY, [])]

    def summary(self, run: str) -> dict[str, Any]:
        return dict(json.loads((self.runs[run].get(SUMMARY) or ["{}"])[-1]))

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path != "/graphql" and not path.endswith("/file_stream"):
            return {}  # its own telemetry, which is no JSON
        message = json.loads(body)
        if path.endswith("/file_stream"):
            files = self.runs[path.split("/")[-2]]
            for name, part in (message.get("files") or {}).items():
                at, lines = part["offset"], part["content"]
                files.setdefault(name, [])[at : at + len(lines)] = lines
            return {}
        return {"data": self.graph(message["query"], message.get("variables") or {})}

    def graph(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        if "RunResumeStatus" in query:
            return {
                "model": {
                    "id": "1",
                    "name": asked["project"],
                    "entity": ENTITY,
                    "bucket": self.bucket(asked["name"]),
                }
            }
        if "UpsertBucket" in query:
            new = asked["name"] not in self.runs
            self.runs.setdefault(asked["name"], {})
            said = {key: value for key, value in asked.items() if value is not None}
            self.about.setdefault(asked["name"], {}).update(said)
            project = {"id": "1", "name": asked["project"], "entity": ENTITY}
            return {
                "upsertBucket": {
                    "bucket": {**self.bucket(asked["name"]), "project": project},
                    "inserted": new,
                }
            }
        if "CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        if "query ArtifactType" in query:
            return {"project": None}
        if "CreateArtifact" in query:  # a table's file: it need not be sent
            sequence = {"id": "1", "latestArtifact": None}
            return {
                "createArtifact": {
                    "artifact": {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}
                }
            }
        if "viewer" in query.lower():
            return {
                "viewer": {**ENTITY, "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            }
        return {}

    def bucket(self, run: str) -> Any:
        if run not in self.runs:
            return None
        files = self.runs[run]
        history, events = files.get(HISTORY, []), files.get(EVENTS, [])
        return {
            "id": "1", "name": run, "displayName": run, "description": "", "notes": "", "tags": [],
            "summaryMetrics": json.dumps(self.summary(run)), "config": "{}", "sweepName": None,
            "logLineCount": 0, "historyLineCount": len(history), "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]),
            "wandbConfig": '{"t": 1}',
        }  # fmt: skip
