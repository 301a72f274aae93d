"""Items' rows on disk: appended batch by batch, read back after a kill, and what they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.core.files import (
    cut_torn_line,
    finite,
    growing_rows,
    read_json,
    storage_error,
    write_json,
)
from lmsmith.core.text import encodable


class ItemLog:
    """The rows of one task with one number of shots.

    Beside the rows' JSONL file stands a JSON file that says what they are of; rows of anything
    else are made again.

    Attributes:
        rows: by item's id, those that are there.
        seconds: time spent on them, in all sittings.
    """

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        self.path = path
        self._about = path.with_suffix(".json")
        self._identity = dict(identity)
        self.rows: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        record = read_json(self._about) if self._about.is_file() else None
        if isinstance(record, dict) and record.get("fingerprint") == identity["fingerprint"]:
            self.seconds = float(record.get("seconds") or 0.0)
            try:
                cut_torn_line(path)
                self.rows = {row["id"]: row for row in growing_rows(path)}
            except OSError as error:
                raise storage_error(path, error) from error
        else:
            path.unlink(missing_ok=True)
            self._write_about()

    def append(self, rows: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Keep rows, on the disk before this returns.

        Raises:
            UserError: the disk is full, or writing is not allowed.
        """
        lines = [json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows]
        try:
            with self.path.open("ab") as file:
                file.write(encodable("".join(lines)).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(self.path, error) from error
        self.rows |= {row["id"]: dict(row) for row in rows}
        self.seconds += seconds
        self._write_about()

    def _write_about(self) -> None:
        write_json(self._about, self._identity | {"seconds": round(self.seconds, 3)})
