"""What a W&B run wrote, read back from the file that ``wandb sync`` would send."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from wandb.proto.wandb_internal_pb2 import Record


def sent(run_directory: Path) -> list[Any]:
    """All records of a finished run."""
    (path,) = run_directory.glob("*.wandb")
    for _ in range(300):  # W&B's own process may write the end of it after `finish` has returned
        try:
            records = parse(path.read_bytes())
        except DecodeError:  # the last record is being written
            records = []
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    pytest.fail(f"{path} has no end after 30 s")


def parse(content: bytes) -> list[Any]:
    """The records of a LevelDB log: blocks of 32 kB, each piece with checksum, length and kind."""
    records, piece, place = [], b"", 7
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        chunk = content[place + 7 : place + 7 + length]
        piece = chunk if kind in (1, 2) else piece + chunk
        if kind in (1, 4):
            records.append(Record.FromString(piece))
        place += 7 + length
    return records


def rows_of(records: list[Any]) -> list[dict[str, Any]]:
    """The run's history; nested values as ``key/part``, W&B's own keys left out."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {"\0".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
