"""C4's rules on lines and documents, by name (Raffel et al. 2020, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from lmsmith.corpus.build.document import Count, Document, Yielded, removed
from lmsmith.corpus.words import UNSPACED

_UNSPACED = re.compile(f"[{UNSPACED}]")
TERMINALS = (".", "!", "?", '"', "”", "。", "！", "？", "」", "…”")
"""Marks that end a sentence; C4 has the first four."""
_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
_SENTENCE_END = re.compile(r"[.!?。！？]+")
_POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


@dataclass(frozen=True)
class C4Config:
    """C4's rules. They remove lines; documents with what no text should have; and short ones."""

    enabled: bool = False
    """Apply the rules."""
    terminal_mark: bool = True
    """Remove lines that do not end with a mark that ends a sentence."""
    least_line_words: Annotated[int, Meta(ge=0)] = 5
    """Remove lines of fewer words; characters in scripts without spaces."""
    least_sentences: Annotated[int, Meta(ge=0)] = 3
    """Remove documents that then have fewer sentences."""
    javascript: bool = True
    """Remove lines with the word JavaScript."""
    policies: bool = True
    """Remove lines about terms of use, privacy and cookies."""
    citations: bool = True
    """Remove marks such as [1], [edit] and [citation needed]."""
    lorem_ipsum: bool = True
    """Remove documents with this filler."""
    curly_bracket: bool = True
    """Remove documents with "{", which are mostly code."""


def c4_line(line: str, config: C4Config) -> str:
    """The rule that a line breaks; empty if none does."""
    small = line.lower()
    if config.terminal_mark and not line.endswith(TERMINALS):
        return "terminal mark"
    if len(line.split()) < config.least_line_words:
        unspaced = 0 if line.isascii() else len(_UNSPACED.findall(line))
        if unspaced < config.least_line_words:
            return "line words"
    if config.javascript and "javascript" in small:
        return "javascript"
    if config.policies and any(phrase in small for phrase in _POLICIES):
        return "policies"
    return ""


def c4_text(text: str, config: C4Config) -> tuple[str, dict[str, int], str]:
    """A text by C4's rules.

    Returns:
        The lines that stay; the characters that each rule of lines removed; and the rule for which
        the whole document goes, or nothing.
    """
    if config.lorem_ipsum and "lorem ipsum" in text.lower():
        return "", {}, "lorem ipsum"
    if config.curly_bracket and "{" in text:
        return "", {}, "curly bracket"
    if config.citations:
        text = _CITATION.sub("", text)
    gone: dict[str, int] = {}
    kept = []
    for line in map(str.strip, text.split("\n")):
        if not line or not (rule := c4_line(line, config)):
            kept.append(line)
        else:
            gone[rule] = gone.get(rule, 0) + len(line)
    joined = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    if len(_SENTENCE_END.findall(joined)) < config.least_sentences:
        return "", gone, "sentences"
    return joined, gone, ""


def apply_c4(
    documents: Iterable[Document], curated: Sequence[str], config: C4Config
) -> Iterator[Yielded]:
    """The documents with the lines that break no rule; characters by rule are counted."""
    for document in documents:
        if document.source in curated:
            yield document
            continue
        text, gone, rule = c4_text(document.text, config)
        for name, characters in gone.items():
            yield Count(document.source, f"characters removed by {name}", characters)
        if rule:
            yield removed(document, rule)
        else:
            yield msgspec.structs.replace(document, text=text)
