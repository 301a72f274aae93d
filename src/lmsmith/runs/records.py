"""stage.json and started.json: what is written about a stage, sealed against flipped bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, finite, read_json, write_json


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write ``record`` with a checksum of itself, atomically."""
    plain: dict[str, object] = encode(dict(record))
    write_json(path, {**plain, "checksum": _checksum(plain)})


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError:
        return None
    if not isinstance(record, dict) or record.get("checksum") != _checksum(record):
        return None
    return record


def recorded_seconds(record: Mapping[str, Any] | None) -> float:
    """Wall time a record tells of; 0 without one."""
    return float((record or {}).get("wall_seconds") or 0.0)


def recorded_outputs(folder: Path) -> dict[str, str]:
    """File → SHA-256 of the outputs of the stage that is done in ``folder``; empty if none is."""
    record = read_record(folder / "stage.json")
    return {} if record is None else record["outputs"]


def _checksum(record: Mapping[str, object]) -> str:
    return fingerprint(finite({key: item for key, item in record.items() if key != "checksum"}))
