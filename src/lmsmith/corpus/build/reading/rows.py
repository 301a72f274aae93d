"""Rows of JSONL as texts and their names."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

import msgspec

from lmsmith.core.json_text import decode_json
from lmsmith.corpus.build.reading.opening import Limits, Unreadable, beginning
from lmsmith.corpus.build.reading.text import decoded_bytes, encoding_of, is_wide

_MARK = b"\xef\xbb\xbf"

Row: TypeAlias = tuple[int, str, str] | tuple[int, Unreadable]
"""(number from 1, text, name), or (number, why it is not read)."""


def read_jsonl(
    file: BinaryIO, limits: Limits, text_field: str, id_field: str, first: int, stop: int | None
) -> Iterator[Row]:
    """The rows of a JSONL file from where it stands, up to the byte ``stop``.

    Args:
        first: number of the first line.
        stop: where to end, a line's begin; None for the end of the file.
    """
    decoder = msgspec.json.Decoder()
    number = first
    lines: Any = file
    if number == 1 and (begin := beginning(file)).strip():
        encoding = encoding_of(begin)  # refuses what is no text
        if is_wide(encoding):
            lines = _Narrowed(file, encoding)
    while stop is None or file.tell() < stop:
        line = lines.readline(limits.row_bytes + 1)
        if not line:
            return
        if number == 1:
            line = line.removeprefix(_MARK)
        if len(line) > limits.row_bytes:
            _skip_line(lines, line)
            yield number, Unreadable(f"a row longer than {limits.row_bytes >> 20} MiB")
        elif line := line.strip():
            yield _row(decoder, line, number, text_field, id_field)
        number += 1


class _Narrowed:
    """The lines in UTF-8 of a file in UTF-16 or UTF-32."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)("replace")
        self._text, self._at = "", 0

    def readline(self, size: int) -> bytes:
        """A line, or its first ``size`` characters."""
        while (end := self._text.find("\n", self._at, self._at + size)) < 0:
            if len(self._text) - self._at >= size or not (block := self._file.read(1 << 16)):
                end = self._at + size - 1
                break
            self._text = self._text[self._at :] + self._decoder.decode(block)
            self._at = 0
        line, self._at = self._text[self._at : end + 1], end + 1
        return line.encode("utf-8", "replace")


def _skip_line(file: Any, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(1 << 20)


def _row(
    decoder: msgspec.json.Decoder[object], line: bytes, number: int, text_field: str, id_field: str
) -> Row:
    try:
        row = decode_json(line, decoder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            row = decode_json(decoded_bytes(line).encode(), decoder)
        except (msgspec.DecodeError, UnicodeError, RecursionError, Unreadable):
            return number, Unreadable("a row that is not JSON")
    if not isinstance(row, dict):
        return number, Unreadable("a row that is no object")
    return text_of(row, number, text_field, id_field)


def text_of(row: Mapping[str, Any], number: int, text_field: str, id_field: str) -> Row:
    """The text and the name of a row."""
    value = row.get(text_field)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        return number, Unreadable(f"a row without text in the field {text_field}")
    if not value.strip():
        return number, Unreadable("a row with an empty text")
    name = row.get(id_field)
    return number, value, str(name) if isinstance(name, str | int) else ""
