"""The metrics log: one JSON row a step, appended as training goes, cut back on resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from lmsmith.core.files import atomic_write, cut_torn_line, growing_rows, storage_error


class MetricsLog:
    """A growing JSONL file of ``{"step", "seconds", **values}``.

    ``seconds`` is the time spent on the kept rows: it goes on from the last row's after a
    resume, and so never counts the pause between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._restart_clock(_parse(path))
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
        row: dict[str, object] = {"step": step, "seconds": round(seconds, 3)}
        row.update({name: _number(value) for name, value in values.items()})
        line = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._is_whole:
                cut_torn_line(self.path)
                self._is_whole = True
            with self.path.open("ab") as file:
                file.write(line.encode("utf-8"))
        except OSError as error:
            raise storage_error(self.path, error) from error

    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps than ``step`` and a torn last line, atomically."""
        if not self.path.exists():
            return
        rows = [row for row in _parse(self.path) if row["step"] <= step]
        lines = [json.dumps(_jsonable(row), ensure_ascii=False) + "\n" for row in rows]
        atomic_write(self.path, "".join(lines))
        self._restart_clock(rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole rows of a metrics log; none if it is missing. A null reads as NaN."""
    return _parse(path)


def _parse(path: Path) -> list[dict[str, float]]:
    return [
        {key: math.nan if item is None else item for key, item in row.items()}
        for row in growing_rows(path)
        if isinstance(row.get("step"), int)
    ]


def _number(value: SupportsFloat) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _jsonable(row: Mapping[str, float]) -> dict[str, int | float | None]:
    return {name: _number(value) for name, value in row.items()}
