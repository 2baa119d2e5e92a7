"""Reads a `.wandb` file: LevelDB's log framing around protobuf records."""

import json
import struct
from pathlib import Path

BLOCK = 32768
HEADER = 7


def read(path: Path) -> dict:
    """Config, summary, history rows, tags and so on of one offline run; a cut-off tail is left out."""
    from wandb.proto import wandb_internal_pb2 as protocol

    found = {"config": {}, "summary": {}, "history": [], "exit_code": None, "preempted": False}
    for chunk in _chunks(path.read_bytes()):
        record = protocol.Record()
        record.ParseFromString(chunk)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "project": run.project, "group": run.run_group, "tags": list(run.tags)}
            found["job_type"] = run.job_type
            found["config"] |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "summary":
            found["summary"] |= {_name(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "history":
            found["history"].append({_name(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "preempting":
            found["preempted"] = True
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
    return found


def _name(item) -> str:
    return item.key or ".".join(item.nested_key)


def _chunks(data: bytes):
    assert data[:4] == b":W&B", data[:8]
    position, partial = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0 and length == 0:
            position += left
            continue
        piece = data[position + HEADER : position + HEADER + length]
        if len(piece) < length:
            return
        position += HEADER + length
        if kind in (1, 2):
            partial = b""
        partial += piece
        if kind in (1, 4):
            yield partial
