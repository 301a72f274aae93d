"""Text of PDFs, read in a process of its own that is ended when a file takes too long."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import msgspec

from lmsmith.core.worker import Worker
from lmsmith.corpus.build.reading.opening import Unreadable

_HYPHEN = re.compile("(?<=[a-zß-ÿ])[\u00ad\ufffe\x02-]\n(?=[a-zß-ÿ])")
"""A word divided at the end of a line."""


@lru_cache(maxsize=1)
def _worker() -> Worker:
    return Worker(Path(__file__).with_name("pdf_worker.py"), "pypdfium2")


def read_pdf(file: BinaryIO, seconds: float) -> Iterator[str]:
    """The text of a PDF, a blank line between pages; divided words are joined.

    Raises:
        Unreadable: it has no text, is damaged or encrypted, or takes longer than ``seconds``.
    """
    if not (content := file.read()):
        raise Unreadable("an empty file")
    with tempfile.NamedTemporaryFile(suffix=".pdf") as copy:
        copy.write(content)
        copy.flush()
        request = json.dumps([copy.name, seconds]).encode() + b"\n"
        answer = _worker().ask(request, seconds)
    if not answer:
        raise Unreadable(f"a PDF that crashes its reader or takes longer than {seconds:g} s")
    found = msgspec.json.decode(answer)
    if "error" in found:
        raise Unreadable(f"a PDF that cannot be read: {found['error']}")
    pages = (_HYPHEN.sub("", page.replace("\r\n", "\n")).strip() for page in found["pages"])
    text = "\n\n".join(filter(None, pages))
    if not text:
        raise Unreadable("a PDF without text: its pages are images")
    yield text
    if found["cut"]:
        raise Unreadable("the rest of a very long PDF")
