"""Rows of CSV, TSV, Parquet and JSON lists as texts and their names."""

from __future__ import annotations

import contextlib
import csv
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from lmsmith.core.errors import needs_extra
from lmsmith.core.json_text import decode_json, list_items
from lmsmith.corpus.build.reading.opening import Limits, Unreadable
from lmsmith.corpus.build.reading.rows import Row, text_of
from lmsmith.corpus.build.reading.text import decoded, decoded_bytes

MOST_JSON = 1 << 28
"""Bytes of a JSON list, which is read whole."""

MOST_DAMAGED = 20
"""Damaged rows of a table after which the rest is not read."""


def read_csv(
    file: BinaryIO, limits: Limits, text_field: str, id_field: str, delimiter: str
) -> Iterator[Row]:
    """The rows of a table whose first line has the names of its columns.

    Raises:
        Unreadable: there is no such column, or the rest is no table.
    """
    csv.field_size_limit(limits.row_bytes)
    lines = _Lines(decoded(file), limits.row_bytes)
    reader = csv.reader(lines, delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    if text_field not in names:
        shown = ", ".join(names[:8])
        raise Unreadable(f"a table without the column {text_field}: its columns are {shown}")
    number, damaged = 1, 0
    while True:
        number += 1
        lines.mark()
        try:
            row = next(reader, None)
        except csv.Error as error:
            fault = f"a damaged row: {error}"
        else:
            if row is None:
                return
            fault = "a row whose quote is never closed" if lines.has_an_open_quote() else ""
        if fault:
            # What it took for its text are rows, as a rule: they are read again without it.
            yield number, Unreadable(fault)
            damaged += 1
            if damaged >= MOST_DAMAGED:
                raise Unreadable("a damaged table: the rest is not read")
            lines.back_to_the_second()
            reader = csv.reader(lines, delimiter=delimiter)
        elif row:
            found = dict(zip(names, row, strict=False))
            yield text_of(found, number, text_field, id_field)


class _Lines:
    """The lines of a text with their ends, no longer than ``most`` characters, and those of the
    row that is read once more."""

    def __init__(self, blocks: Iterator[str], most: int) -> None:
        self._lines = _lines(blocks, most)
        self._again: deque[str] = deque()
        self._row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        return line

    def mark(self) -> None:
        """The next line begins a row."""
        self._row = []

    def has_an_open_quote(self) -> bool:
        """Whether a quote of the row, which has several lines, has no partner."""
        return len(self._row) > 1 and sum(line.count('"') for line in self._row) % 2 == 1

    def back_to_the_second(self) -> None:
        """Give the row's lines again, but for its first."""
        self._again.extendleft(reversed(self._row[1:]))


def _lines(blocks: Iterator[str], most: int) -> Iterator[str]:
    """Lines that end in a line feed; a carriage return alone is a space, or the end of each line
    where there is no line feed (as on old Macs)."""
    held, ends = "", "\n"
    for number, block in enumerate(blocks):
        if number == 0 and "\n" not in block and "\r" in block:
            ends = "\r"
        *lines, held = (held + block).split(ends)
        for line in lines:
            yield line.removesuffix("\r").replace("\r", " ") + "\n"
        if len(held) > most:
            raise Unreadable(f"a row longer than {most >> 20} MiB")
    if held:
        yield held.replace("\r", " ")


def read_parquet(file: BinaryIO, text_field: str, id_field: str) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        Unreadable: there is no such column, or the file is damaged.
    """
    with needs_extra("corpus"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            if not file.seekable():  # it is packed; the columns' places are at the end
                copy = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, copy)
                file = copy
            table = stack.enter_context(pq.ParquetFile(file))
            names = table.schema_arrow.names
            if text_field not in names:
                shown = ", ".join(names[:8])
                raise Unreadable(
                    f"a table without the column {text_field}: its columns are {shown}"
                )
            columns = [name for name in (text_field, id_field) if name in names]
            for batch in table.iter_batches(256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield text_of(row, number, text_field, id_field)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Unreadable(f"a damaged Parquet file: {str(error).splitlines()[0]}") from error


def read_json_list(file: BinaryIO, text_field: str, id_field: str) -> Iterator[Row]:
    """The objects of a JSON list, or one object.

    Raises:
        Unreadable: it is no JSON, or too large.
    """
    content = file.read(MOST_JSON + 1)
    if len(content) > MOST_JSON:
        raise Unreadable(f"a JSON list larger than {MOST_JSON >> 20} MiB: write it as JSONL")
    if not content.strip():
        raise Unreadable("an empty file")
    text = decoded_bytes(content).strip().encode()
    decoder = msgspec.json.Decoder()
    try:
        items = [text] if text.startswith(b"{") else list_items(text)
        for number, item in enumerate(items, start=1):
            row = decode_json(item, decoder)
            if isinstance(row, dict):
                yield text_of(row, number, text_field, id_field)
            else:
                yield number, Unreadable("a row that is no object")
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Unreadable(f"no valid JSON: {error}") from error
