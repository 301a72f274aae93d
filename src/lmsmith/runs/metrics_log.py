"""The metrics log: one JSON row a step, appended as training goes, cut back on resume."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from lmsmith.core.errors import UserError
from lmsmith.core.files import (
    atomic_write,
    cut_torn_line,
    damaged_line,
    growing_rows,
    require_file,
    storage_error,
)


class MetricsLog:
    """A growing JSONL file of ``{"step", "seconds", **values}``.

    ``seconds`` is the time spent on the kept rows: after a resume it goes on from the last row's,
    and so never counts the pause between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._restart_clock(read_metrics(path))
        self._is_whole = False

    def _restart_clock(self, rows: list[dict[str, float]]) -> None:
        self._seconds_before = rows[-1].get("seconds", 0.0) if rows else 0.0
        self._started = time.monotonic()

    def append(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Add the row of ``step`` and hand it to the operating system at once.

        Raises:
            UserError: the disk is full or writing is not allowed.
        """
        seconds = self._seconds_before + time.monotonic() - self._started
        row = _line({"step": step, "seconds": round(seconds, 3), **values})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._is_whole:
                _require_own(self.path)
                cut_torn_line(self.path)
                self._is_whole = True
            with self.path.open("ab") as file:
                file.write(row.encode("utf-8"))
        except OSError as error:
            raise storage_error(self.path, error) from error

    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps than ``step`` and a torn last line, atomically."""
        if self.path.exists():
            rows = [row for row in read_metrics(self.path) if row["step"] <= step]
            atomic_write(self.path, "".join(map(_line, rows)))
            self._restart_clock(rows)


def _require_own(path: Path) -> None:
    """Refuse to write to another file by a link."""
    require_file(path)
    if path.is_symlink():
        raise UserError(f"{path}: is a link to {path.readlink()}", "Take it away.")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole rows of a metrics log; none if it is missing. A null reads as NaN."""
    return [
        {key: math.nan if item is None else item for key, item in row.items()}
        for row in growing_rows(path)
        if _is_row(row)
    ]


def require_whole_metrics(path: Path, fix: str) -> None:
    """Refuse the log of a finished stage that has a line which is no row.

    Raises:
        UserError: naming the line.
    """
    found = damaged_line(path)
    if found is None and path.is_file():
        rows = enumerate(growing_rows(path), start=1)
        found = next((number for number, row in rows if not _is_row(row)), None)
    if found is not None:
        raise UserError(f"{path}, line {found}: damaged", fix)


def _is_row(row: Mapping[str, object]) -> bool:
    return type(row.get("step")) is int and all(
        value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)  # type: ignore[arg-type]
        for value in row.values()
    )


def _line(row: Mapping[str, SupportsFloat]) -> str:
    plain = {name: _number(value) for name, value in row.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


def _number(value: SupportsFloat) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
