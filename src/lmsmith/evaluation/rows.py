"""The row kept of each item, and the JSONL file of rows, which grows batch by batch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from lmsmith.core.files import (
    cut_torn_line,
    finite,
    growing_rows,
    read_json,
    storage_error,
    write_json,
)
from lmsmith.core.progress import Progress
from lmsmith.core.text import encodable
from lmsmith.runs.signals import stop_if_requested

Numbers = float | list[float | None] | None
"""Value of an item's measure, or the numbers to add up; None is NaN or infinite."""


class Row(msgspec.Struct, kw_only=True):
    """A line of a log; ``id`` is the item's."""

    id: str


class ItemRow(Row, tag_field="kind", kw_only=True):
    """The fields of every item's row.

    Attributes:
        shots: ids of the examples before it.
        prompt: the item alone, without instruction and examples.
        truncated: tokens that the prompt lost to fit the context.
        metrics: the numbers of each measure.
    """

    shots: list[str] = []
    prompt: str = ""
    truncated: int = 0
    metrics: dict[str, Numbers]

    @property
    def right(self) -> str:
        """The right answer; empty if there is none."""
        return ""

    def value(self, measure: str) -> float:
        """A measure of this item alone; NaN where it is not finite."""
        found = self.metrics[measure]
        if isinstance(found, list):
            top, bottom = found[0], found[1]
            return float("nan") if top is None or not bottom else top / bottom
        return float("nan") if found is None else found


class Choice(msgspec.Struct):
    """An answer to choose from.

    Attributes:
        text: its own, or its context's where the choices are contexts.
        log_prob: log P(text | context), in nats.
        tokens: of the text.
        alone: log P(text | answer context), where the task's headline asks for it.
    """

    text: str
    log_prob: float | None
    tokens: int
    alone: float | None = None


class ChoiceRow(ItemRow, tag="multiple_choice", kw_only=True):
    """``scores`` of each choice by each measure; ``chosen``, the choice with the highest."""

    gold: int
    chosen: dict[str, int]
    choices: list[Choice]
    scores: dict[str, list[float | None]]

    @property
    def right(self) -> str:
        return self.choices[self.gold].text


class ClozeRow(ItemRow, tag="cloze", kw_only=True):
    gold: str
    log_prob: float | None
    tokens: int

    @property
    def right(self) -> str:
        return self.gold


class DocumentRow(ItemRow, tag="perplexity", kw_only=True):
    log_prob: float | None
    tokens: int
    windows: int


class WrittenRow(ItemRow, kw_only=True):
    """The fields of rows of written texts; ``gold`` is empty if nothing is right."""

    gold: str = ""
    texts: list[str]

    @property
    def right(self) -> str:
        return self.gold


class AnswerRow(WrittenRow, tag="free_form", kw_only=True):
    """``answers`` are read from the texts, of which ``answer`` is the commonest."""

    reasoning: list[str] = []
    answers: list[str]
    answer: str


class ProgramRow(WrittenRow, tag="code", kw_only=True):
    verdicts: list[str]


class RatedRow(WrittenRow, tag="rated", kw_only=True):
    ratings: list[dict[str, float]]
    verdicts: list[str]


AnyRow = ChoiceRow | ClozeRow | DocumentRow | AnswerRow | ProgramRow | RatedRow

R = TypeVar("R", bound=Row)


class HasId(Protocol):
    @property
    def id(self) -> str: ...


Asked = TypeVar("Asked", bound=HasId)


class ItemLog(Generic[R]):
    """The rows of one task with one number of shots, read back after a kill.

    Beside the rows' JSONL file a JSON file holds their identity; rows of another are discarded.

    Args:
        kind: a row's type, or several in a tagged union.

    Attributes:
        rows: by item's id.
        seconds: time spent on them, in all sittings.
    """

    def __init__(self, path: Path, identity: Mapping[str, object], kind: Any) -> None:
        self.path = path
        self._about = path.with_suffix(".json")
        self._identity = dict(identity)
        self.rows: dict[str, R] = {}
        self.seconds = 0.0
        record = read_json(self._about) if self._about.is_file() else None
        if isinstance(record, dict) and record.get("fingerprint") == identity["fingerprint"]:
            self.seconds = float(record.get("seconds") or 0.0)
            try:
                cut_torn_line(path)
                read: list[R] = msgspec.convert(growing_rows(path), list[kind])
            except OSError as error:
                raise storage_error(path, error) from error
            self.rows = {row.id: row for row in read}
        else:
            path.unlink(missing_ok=True)
            self._write_about()

    def append(self, rows: Sequence[R], seconds: float) -> None:
        """Keep rows, on the disk before this returns.

        Raises:
            UserError: the disk is full, or writing is not allowed.
        """
        plain = [finite(msgspec.to_builtins(row, enc_hook=float)) for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in plain]
        try:
            with self.path.open("ab") as file:
                file.write(encodable("".join(lines)).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(self.path, error) from error
        self.rows |= {row.id: row for row in rows}
        self.seconds += seconds
        self._write_about()

    def fill(
        self,
        asked: Sequence[Asked],
        answer: Callable[[Sequence[Asked]], Sequence[R]],
        batch: int,
        title: str,
        unit: str,
        progress: Progress,
    ) -> None:
        """Append the rows that are missing, a batch at a time."""
        left = [each for each in asked if each.id not in self.rows]
        done = len(asked) - len(left)
        progress.begin(title, len(asked), unit, done)
        for start in range(0, len(left), batch):
            began = time.monotonic()
            part = left[start : start + batch]
            self.append(answer(part), time.monotonic() - began)
            progress.update(done + start + len(part))
            stop_if_requested()
        progress.end()

    def _write_about(self) -> None:
        write_json(self._about, self._identity | {"seconds": round(self.seconds, 3)})
