"""Rows of CSV, TSV, Parquet and JSON lists as texts and their names."""

from __future__ import annotations

import csv
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


def read_csv(
    file: BinaryIO, limits: Limits, text_field: str, id_field: str, delimiter: str
) -> Iterator[Row]:
    """The rows of a table whose first line has the names of its columns.

    Raises:
        Unreadable: there is no such column, or the rest is no table.
    """
    csv.field_size_limit(limits.row_bytes)
    reader = csv.reader(_lines(decoded(file), limits.row_bytes), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
        if text_field not in names:
            shown = ", ".join(names[:8])
            raise Unreadable(f"a table without the column {text_field}: its columns are {shown}")
        for number, row in enumerate(reader, start=2):
            if row:
                found = dict(zip(names, row, strict=False))
                yield text_of(found, number, text_field, id_field)
    except csv.Error as error:
        raise Unreadable(f"a damaged table: {error}") from error


def _lines(blocks: Iterator[str], most: int) -> Iterator[str]:
    """The lines of a text with their ends, no longer than ``most`` characters."""
    held = ""
    for block in blocks:
        *lines, held = (held + block).split("\n")
        for line in lines:
            yield f"{line}\n"
        if len(held) > most:
            raise Unreadable(f"a row longer than {most >> 20} MiB")
    if held:
        yield held


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
        with pq.ParquetFile(file) as table:
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
    except (pa.ArrowException, OSError, ValueError) as error:
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
