"""What W&B's offline folders hold: the records of `run-ID.wandb`, as `wandb sync` would send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
"""Bytes; the file is LevelDB's log format (github.com/google/leveldb/blob/main/doc/log_format.md) behind a
header of seven bytes."""


def records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class Told:
    """All folders of a run together, in the order in which they were begun."""

    def __init__(self, folder: Path) -> None:
        self.ids: set[str] = set()
        self.run: Any = None
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.files = sorted(folder.glob("offline-run-*/*.wandb"))
        for file in self.files:
            for record in records(file):
                self.take(record)

    def take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self.ids.add(record.run.run_id)
            self.config |= {key(item): json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {key(item): json.loads(item.value_json) for item in record.history.item}
            self.rows.append(row | {"_step": record.history.step.num})
        elif kind == "summary":
            self.summary |= {key(item): json.loads(item.value_json) for item in record.summary.update}


def key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
