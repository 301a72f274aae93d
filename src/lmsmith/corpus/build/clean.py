"""Cleaning: broken encodings repaired, one Unicode form, no control characters, no boilerplate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from lmsmith.core.config import PositiveInt, Problem
from lmsmith.core.errors import needs_extra
from lmsmith.corpus.build.document import Count, Document, Yielded, removed
from lmsmith.corpus.cleaning import UnicodeForm, clean_text

_SPACE_AT_END = re.compile(r"[ \t\u00a0\u3000]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{4,}")

_SUSPECT = re.compile("[\u0080-\u06ff\u0e00-\u0e7f\u2500-\u257f\ufffd]")
"""UTF-8 read as a one-byte encoding has such a letter, whichever encoding it was."""

_BOILERPLATE = (
    r"(we|this (web)?site) uses? cookies.{0,120}",
    r"(accept|manage|reject) (all )?cookies( settings)?",
    r"(please )?(enable|turn on|activate) java\s?script.{0,80}",
    r"java\s?script (is|must be) (disabled|enabled|required).{0,80}",
    r"(share|tweet|pin|like) (this|on|it|us|with)?.{0,12}"
    r"(facebook|twitter|linkedin|pinterest|email|reddit)",
    r"(read|learn|show|view|load) (more|less)( »| >>|…|\.\.\.)?",
    r"(skip|jump) to (main )?(content|navigation)",
    r"(©|\(c\)|copyright).{0,80}all rights reserved\.?",
    r"all rights reserved\.?",
    r"(privacy policy|terms (of (use|service)|and conditions))"
    r"([ |·•-]+(privacy policy|terms of (use|service)|contact( us)?|cookies?))*",
    r"(sign|log) (in|up|out)( or (sign|log) (in|up))?( to (comment|reply|continue))?",
    r"(subscribe|sign up) (to|for) (our|the|my) (newsletter|mailing list).{0,40}",
    r"(previous|next|older|newer) (post|page|article|entry|entries)s?( »| →)?",
    r"(click|tap) here to .{0,60}",
    r"advertisements?|sponsored( content)?",
    r"(网站地图|返回顶部|上一篇|下一篇|分享到|登录|注册|版权所有).{0,40}",
)
"""Lines that belong to a page and not to its text; a whole line must match, whatever its case."""


@dataclass(frozen=True)
class CleanConfig:
    """What is cleaned."""

    enabled: bool = True
    """Whether texts are cleaned at all."""
    fix_encoding: bool = True
    """Mend text that was decoded wrongly (ftfy): ``â€™`` becomes ``’``."""
    unicode_form: UnicodeForm = "NFC"
    """``NFC`` or ``NFKC`` rewrite characters to that form."""
    boilerplate: bool = True
    """Remove lines of pages such as cookie notices, share buttons and copyright lines."""
    boilerplate_lines: tuple[str, ...] = ()
    """More such lines, each a regular expression that a whole line must match."""
    min_characters: PositiveInt = 1
    """A document that is shorter afterwards is removed."""

    def check(self) -> list[Problem]:
        """Expressions that cannot be read."""
        found = []
        for number, pattern in enumerate(self.boilerplate_lines):
            try:
                re.compile(pattern)
            except re.error as error:
                key = f"boilerplate_lines.{number}"
                found.append(Problem(key, pattern, f"no regular expression: {error}"))
        return found


def clean(
    documents: Iterable[Document], _broadcast: Any, *, config: CleanConfig
) -> Iterator[Yielded]:
    """Clean each text; remove those of which too little is left."""
    for each in documents:
        text = fixed_encoding(each.text) if config.fix_encoding else each.text
        if text != each.text:
            yield Count(each.source, "texts_mended")
        text = clean_text(text, config.unicode_form)
        text = _EMPTY_LINES.sub("\n\n\n", _SPACE_AT_END.sub("", text))
        if config.boilerplate:
            text, lines = without_boilerplate(text, config.boilerplate_lines)
            if lines:
                yield Count(each.source, "boilerplate_lines", lines)
        if len(text) < config.min_characters:
            yield removed(each, "too short after cleaning")
        else:
            yield msgspec.structs.replace(each, text=text)


def fixed_encoding(text: str) -> str:
    """The text as ftfy repairs it; a text without any letter of wrong decoding is left at once."""
    if text.isascii() or not _SUSPECT.search(text):
        return text
    with needs_extra("corpus"):
        import ftfy
    # Entities, quotes and widths are the author's; line breaks and controls are cleaned later.
    return ftfy.fix_text(
        text,
        unescape_html=False,
        uncurl_quotes=False,
        fix_character_width=False,
        fix_line_breaks=False,
        fix_latin_ligatures=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


def without_boilerplate(text: str, more: tuple[str, ...] = ()) -> tuple[str, int]:
    """The text without lines that match, and how many they were."""
    patterns = _boilerplate(more)
    lines = text.split("\n")
    kept = [
        line
        for line in lines
        if len(line) > 200 or not any(each.fullmatch(line.strip()) for each in patterns)
    ]
    if len(kept) == len(lines):
        return text, 0
    return _EMPTY_LINES.sub("\n\n\n", "\n".join(kept)).strip(), len(lines) - len(kept)


@lru_cache(maxsize=4)
def _boilerplate(more: tuple[str, ...]) -> list[re.Pattern[str]]:
    own = "|".join(f"(?:{each})" for each in _BOILERPLATE)
    return [re.compile(each, re.IGNORECASE) for each in (own, *more)]
