"""One item read: each file by its format, what cannot be read recorded and skipped."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from lmsmith.core.errors import UserError
from lmsmith.core.files import is_remote
from lmsmith.core.text import encodable
from lmsmith.corpus.build.document import Count, Document, Removed, Unread, Yielded
from lmsmith.corpus.build.reading.html import read_html_file
from lmsmith.corpus.build.reading.mail import read_mail
from lmsmith.corpus.build.reading.opening import Limits, Unreadable, beginning, open_file
from lmsmith.corpus.build.reading.pdf import read_pdf
from lmsmith.corpus.build.reading.plan import Item, Part
from lmsmith.corpus.build.reading.rows import Row, read_jsonl
from lmsmith.corpus.build.reading.tables import read_csv, read_json_list, read_parquet
from lmsmith.corpus.build.reading.text import decoded, pieces
from lmsmith.corpus.build.reading.warc import read_warc
from lmsmith.corpus.build.recipe import CorpusRecipe, ReadConfig, SourceConfig

_MAIL = re.compile(
    rb"(Return-Path|Received|Delivered-To|Message-ID|From|Date|MIME-Version): ", re.I
)
_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*((<!--((?!-->).){0,400}-->|<\?xml[^>]{0,200}>)\s*){0,20}"
    rb"<(!doctype html|html)",
    re.I | re.S,
)


def read_items(
    items: Iterable[Item],
    _broadcast: Any,
    *,
    sources: Mapping[str, SourceConfig],
    config: ReadConfig,
) -> Iterator[Yielded]:
    """The documents of items; a file that cannot be read is recorded."""
    for item in items:
        yield from item.problems
        for part in item.parts:
            yield Count(part.source, "files")
            yield Count(part.source, "bytes_read", part.size)
            yield from read_part(part, sources[part.source], config)


def reader(recipe: CorpusRecipe) -> partial[Iterator[Yielded]]:
    """`read_items` for the sources of a recipe, with what decides how they are read alone."""
    sources = {
        name: replace(source, paths=(), weight=None, epochs=None, curated=False)
        for name, source in recipe.sources.items()
    }
    return partial(read_items, sources=sources, config=recipe.read)


def read_part(part: Part, source: SourceConfig, config: ReadConfig) -> Iterator[Yielded]:
    """The documents of one file; after a fault, those that came before it."""
    limits = Limits(config.max_characters, config.max_row_mib << 20, config.max_unpacked_times)
    try:
        with open_file(part.place, limits) as file:
            kind = part.format if part.format != "auto" else sniffed(beginning(file))
            if (rows := _rows(kind, file, part, source, config, limits)) is None:
                texts = pieces(_texts(kind, file, config), limits.characters)
                yield from _numbered(part, part.id, "", texts)
                return
            for number, *rest in rows:
                yield from _of_row(part, f"{part.id}:{number}", rest, limits)
    except Unreadable as error:
        record = Unread if _may_pass(part, error) else Removed
        yield record(part.id, part.source, "", encodable(str(error)))
    except UserError:  # a package that is not installed
        raise
    except Exception as error:  # a parser that a file breaks in a way of its own
        record = Unread if _may_pass(part, error) else Removed
        reason = f"it breaks its reader: {type(error).__name__}: {error}"[:200]
        yield record(part.id, part.source, "", encodable(reason))


def _may_pass(part: Part, error: Exception) -> bool:
    """Whether the system or a storage failed, rather than what the file holds.

    Raises:
        OSError: the disk is full, which ends the build: no file is left out for that.
    """
    cause = error.__cause__ if isinstance(error, Unreadable) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        raise cause
    if isinstance(cause, OSError):
        return cause.errno is not None or str(error).startswith("cannot be read")
    return cause is error and is_remote(part.place)  # each storage's package has errors of its own


def sniffed(begin: bytes) -> str:
    """The format of a file by its first bytes."""
    for magic, kind in ((b"%PDF-", "pdf"), (b"PAR1", "parquet"), (b"WARC/", "warc")):
        if begin.startswith(magic):
            return kind
    if _HTML.match(begin):
        return "html"
    if _MAIL.match(begin) or re.match(rb"From \S+ .*\d\d:\d\d", begin):
        return "mail"
    return "text"


def _rows(
    kind: str,
    file: BinaryIO,
    part: Part,
    source: SourceConfig,
    config: ReadConfig,
    limits: Limits,
) -> Iterator[Row] | None:
    """The rows of a file of several texts; None for a file that is one text."""
    fields = source.text_field, source.id_field
    if kind == "jsonl":
        if part.start:
            file.seek(part.start)
        return read_jsonl(file, limits, *fields, part.line, part.stop)
    if kind in ("csv", "tsv"):
        return read_csv(file, limits, *fields, "\t" if kind == "tsv" else ",")
    if kind == "parquet":
        return read_parquet(file, *fields)
    if kind == "json":
        return read_json_list(file, *fields)
    if kind == "warc":
        return read_warc(file, limits, config.main_text)
    if kind == "mail":
        return read_mail(file, limits, config.main_text)
    return None


def _texts(kind: str, file: BinaryIO, config: ReadConfig) -> Iterator[str]:
    if kind == "html":
        return read_html_file(file, config.main_text)
    if kind == "pdf":
        return read_pdf(file, config.pdf_seconds)
    return decoded(file)


def _of_row(part: Part, id: str, row: list[Any], limits: Limits) -> Iterator[Yielded]:
    if isinstance(row[0], Unreadable):
        yield Removed(id, part.source, "", encodable(str(row[0])))
        return
    text, name = map(encodable, row)
    yield from _numbered(part, id, name, pieces(iter((text,)), limits.characters))


def _numbered(part: Part, id: str, name: str, texts: Iterable[str]) -> Iterator[Yielded]:
    """Documents of one text: the second and later pieces have their number in the id."""
    number = 0
    for text in map(encodable, texts):
        if text.strip():
            yield Document(f"{id}#{number}" if number else id, part.source, text, name)
            number += 1
    if not number:
        yield Removed(id, part.source, "", "a file without text")
