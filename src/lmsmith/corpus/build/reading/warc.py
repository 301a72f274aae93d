"""Pages in WARC files, as crawlers write them, and texts in WET files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from lmsmith.core.errors import needs_extra
from lmsmith.corpus.build.reading.html import MOST_BYTES, html_text
from lmsmith.corpus.build.reading.opening import Limits, Unreadable
from lmsmith.corpus.build.reading.rows import Row
from lmsmith.corpus.build.reading.text import decoded_bytes

_KINDS = ("response", "conversion", "resource")
_HTML = ("text/html", "application/xhtml+xml")


def read_warc(file: BinaryIO, limits: Limits, main_text: bool) -> Iterator[Row]:
    """The pages of a WARC file: number of the record, text, URL.

    Records that are no page, or of which HTTP reports an error, are skipped.

    Raises:
        Unreadable: after the pages before it, where the file is damaged or cut off.
    """
    with needs_extra("corpus"):
        from warcio.archiveiterator import ArchiveIterator
    number, pages = 0, 0
    last: Any = None
    archive = ArchiveIterator(file)
    try:
        while True:
            with contextlib.redirect_stderr(io.StringIO()):  # warcio writes of faults there
                if (record := next(archive, None)) is None:
                    break
                number, last = number + 1, record
                row = _page(record, number, main_text) if _is_page(record) else None
            if row is not None:
                pages += 1
                yield row
    except Unreadable:
        raise
    except Exception as error:  # damaged headers break the parser in many ways
        raise Unreadable(f"the WARC file is damaged after record {number}") from error
    if not pages:
        raise Unreadable("a WARC file without pages")
    if getattr(last.raw_stream, "limit", 0) > 0:
        raise Unreadable(f"the WARC file is cut off in record {number}")
    if archive.err_count:
        raise Unreadable(f"a WARC file with records of wrong lengths: {archive.err_count}")


def _is_page(record: Any) -> bool:
    headers = record.http_headers
    good = headers is None or headers.get_statuscode() in ("", "200")
    return good and record.rec_type in _KINDS


def _page(record: Any, number: int, main_text: bool) -> Row | None:
    headers = record.http_headers or record.rec_headers
    kind = str(headers.get_header("Content-Type") or "")
    medium, _, rest = kind.partition(";")
    medium = medium.strip().lower()
    if medium not in (*_HTML, "text/plain"):
        return None
    content, stream = b"", record.content_stream()
    while len(content) <= MOST_BYTES and (block := stream.read(1 << 16)):
        content += block
    if len(content) <= MOST_BYTES and getattr(record.raw_stream, "limit", 0) > 0:
        raise Unreadable(f"the WARC file is cut off in record {number}")
    name = str(record.rec_headers.get_header("WARC-Target-URI") or "")
    declared = rest.partition("charset=")[2].strip(" \"'")
    try:
        if medium in _HTML:
            return number, html_text(content, main_text, declared), name
        return number, decoded_bytes(content), name
    except Unreadable as error:
        return number, error
