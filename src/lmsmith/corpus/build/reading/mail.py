"""E-mails: their subjects and texts, one by one or in mbox files."""

from __future__ import annotations

import email
import email.errors
import email.header
import re
from collections.abc import Iterator
from email.message import Message
from typing import BinaryIO

from lmsmith.corpus.build.reading.html import html_text
from lmsmith.corpus.build.reading.opening import Limits, Unreadable
from lmsmith.corpus.build.reading.rows import Row
from lmsmith.corpus.build.reading.text import declared_text

_BEGIN = re.compile(rb"From [^\r\n]*\d\d:\d\d")
"""The line that begins a message of an mbox file."""


def read_mail(file: BinaryIO, limits: Limits, main_text: bool) -> Iterator[Row]:
    """The messages of an mbox file, or the one of a file: number, text, Message-ID."""
    for number, content in enumerate(_messages(file, limits.row_bytes), start=1):
        if isinstance(content, Unreadable):
            yield number, content
            continue
        try:
            text, name = mail_text(content, main_text)
        except Unreadable as error:
            yield number, error
        else:
            yield number, text, name


def _messages(file: BinaryIO, most: int) -> Iterator[bytes | Unreadable]:
    """The messages of a file one by one; a line ``From …`` after an empty one begins the next."""
    lines: list[bytes] = []
    size, empty = 0, True
    while line := file.readline(most):
        if empty and lines and _BEGIN.match(line):
            yield _joined(lines, size, most)
            lines, size = [], 0
        size += len(line)
        if size <= most:
            lines.append(line)
        empty = not line.strip()
    if not lines:
        raise Unreadable("an empty file")
    yield _joined(lines, size, most)


def _joined(lines: list[bytes], size: int, most: int) -> bytes | Unreadable:
    if size > most:
        return Unreadable(f"an e-mail larger than {most >> 20} MiB")
    start = 1 if lines[0].startswith(b"From ") else 0
    return b"".join(lines[start:])


def mail_text(content: bytes, main_text: bool) -> tuple[str, str]:
    """Subject and text of a message, and its Message-ID. Attachments and addresses are left out.

    Raises:
        Unreadable: there is no text in it.
    """
    try:
        message = email.message_from_bytes(content)
        body = "\n\n".join(_texts(message, main_text)).strip()
        subject, name = _header(message, "Subject"), _header(message, "Message-ID")
    except Unreadable:
        raise
    except Exception as error:  # headers and nested parts break the parser in many ways
        raise Unreadable(f"an e-mail that cannot be parsed: {type(error).__name__}") from error
    if not body:
        raise Unreadable("an e-mail without text")
    return (f"{subject}\n\n{body}" if subject else body), name


def _texts(message: Message, main_text: bool) -> Iterator[str]:
    if message.is_multipart():
        parts = [part for part in message.get_payload() if isinstance(part, Message)]
        if message.get_content_subtype() == "alternative":
            plain = [part for part in parts if part.get_content_type() == "text/plain"]
            parts = (plain or parts)[:1]
        for part in parts:
            yield from _texts(part, main_text)
        return
    if (
        message.get_content_maintype() != "text"
        or message.get_content_disposition() == "attachment"
    ):
        return
    content = message.get_payload(decode=True)
    if not isinstance(content, bytes) or not content.strip():
        return
    charset = str(message.get_content_charset() or "")
    if message.get_content_subtype() == "html":
        yield html_text(content, main_text, charset)
        return
    yield declared_text(content, charset or "ascii")


def _header(message: Message, name: str) -> str:
    """A header's words in one line, whatever their encodings are."""
    written = message.get(name, "")
    try:
        parts = email.header.decode_header(written)
    except (email.errors.HeaderParseError, ValueError):
        return " ".join(str(written).split())
    found = ""
    for part, charset in parts:
        if isinstance(part, str):
            found += part
            continue
        try:
            found += declared_text(part, charset or "ascii")
        except Unreadable:
            found += part.decode("utf-8", "replace")
    return " ".join(found.split())
