"""The main text of HTML pages, without menus, forms and scripts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import BinaryIO

from lmsmith.core.errors import needs_extra
from lmsmith.corpus.build.reading.opening import Unreadable
from lmsmith.corpus.build.reading.text import declared_text

MOST_BYTES = 1 << 24
"""Largest page whose tree is built: larger ones take gigabytes."""

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.I)


def read_html_file(file: BinaryIO, main_text: bool) -> Iterator[str]:
    """The text of an HTML file.

    Raises:
        Unreadable: there is no text in it, or it is too large.
    """
    content = file.read(MOST_BYTES + 1)
    if not content:
        raise Unreadable("an empty file")
    yield html_text(content, main_text)


def html_text(content: bytes, main_text: bool, declared: str = "") -> str:
    """The text of a page, its main text or all of it.

    Args:
        content: bytes, in the encoding that HTTP or the page's head declares, or in a detected one.
        declared: the encoding in HTTP's header.

    Raises:
        Unreadable: there is no text in it, or it is too large.
    """
    if len(content) > MOST_BYTES:
        raise Unreadable(f"an HTML page larger than {MOST_BYTES >> 20} MiB")
    found = _CHARSET.search(content[:4096])
    page = declared_text(content, declared, found[1].decode("ascii") if found else "")
    with needs_extra("corpus"):
        import trafilatura
        from lxml import etree
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    try:
        if main_text:
            text = trafilatura.extract(page, fast=True, include_comments=False) or ""
        else:
            tree = trafilatura.load_html(page)
            etree.strip_elements(tree, "script", "style", "noscript", "template", with_tail=False)
            text = trafilatura.html2txt(tree, clean=False)
    except Exception as error:  # a page may break any parser
        raise Unreadable(f"HTML that cannot be parsed: {type(error).__name__}") from error
    if not text.strip():
        raise Unreadable(f"an HTML page without {'main text' if main_text else 'text'}")
    return text
