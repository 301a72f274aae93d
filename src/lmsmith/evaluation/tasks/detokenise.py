"""Corpora whose words were parted from their marks, written as people write, and back again.

GPT-2 was measured on such corpora through "invertible de-tokenizers" (Radford et al. 2019, section
3.1): the text's probability is still that of the corpus, and its words are still counted as the
corpus counts them. Each de-tokeniser here has its inverse beside it; a line on which the inverse
would not give the original back is left as it is, so that nothing of the corpus is lost.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

_CLITICS = ("'s", "'t", "'re", "'ve", "'ll", "'d", "'m")
_LEFT = {",", ".", ";", ":", "!", "?", ")", "]", "%", "...", *_CLITICS}
"""Tokens without a space before them."""
_RIGHT = {"(", "[", "$", "£", "€"}
"""Tokens without a space after them."""

_WIKITEXT_PIECE = re.compile(
    r"<unk>|\.\.\."
    r"|(?P<inside>(?<=[\w>])[-,.](?=[\w<]))"
    r"|'\w*"
    r"|[A-Z]\.(?=$)"
    r"|[()\[\],.;:!?%$£€\"]"
    r"|[^\s()\[\],.;:!?%$£€\"<'-]+"
    r"|."
)


def tokenise_wikitext(line: str) -> str:
    """The line as WikiText has it: the inverse of `detokenise_wikitext`."""
    if not line.strip():
        return line
    heading = re.fullmatch(r"(=+) (.*) (=+)", line)
    if heading:
        marks = " ".join(heading[1])
        return f" {marks} {tokenise_wikitext(heading[2]).strip()} {marks} "
    tokens: list[str] = []
    for chunk in line.split(" "):
        for piece in _WIKITEXT_PIECE.finditer(chunk):
            tokens.append(f"@{piece[0]}@" if piece["inside"] else piece[0])
    return f" {' '.join(tokens)} "


def _join_wikitext(line: str) -> str:
    heading = re.fullmatch(r" ((?:= )+)(.*?)((?: =)+) ", line)
    if heading:
        marks = heading[1].replace(" ", "")
        return f"{marks} {_join_tokens(heading[2].split(' '))} {marks}"
    return _join_tokens(line.strip(" ").split(" "))


def _join_tokens(tokens: list[str]) -> str:
    written = ""
    glued, quoted = True, False
    for token in tokens:
        if token in ("@-@", "@,@", "@.@"):
            written, glued = written + token[1], True
        elif token == '"':
            space = "" if glued or quoted else " "
            written, glued, quoted = f"{written}{space}{token}", not quoted, not quoted
        else:
            space = "" if glued or token in _LEFT else " "
            written, glued = f"{written}{space}{token}", token in _RIGHT
    return written


def tokenise_penn(line: str) -> str:
    """The inverse of `detokenise_penn`."""
    line = re.sub(r"n't(?!\S)", " n't", line)
    line = re.sub(r"(?<=\S)('(?:s|re|ve|ll|d|m))(?!\S)", r" \1", line)
    line = re.sub(r"([$#])(?=N)", r"\1 ", line)
    return f" {line.replace('/', chr(92) + '/')} "


def _join_penn(line: str) -> str:
    line = line.strip(" ").replace("\\/", "/")
    line = re.sub(r"(?<=\S) (n't|'s|'re|'ve|'ll|'d|'m)(?!\S)", r"\1", line)
    return re.sub(r"(?<!\S)([$#]) N(?!\S)", r"\1N", line)


def tokenise_moses(line: str) -> str:
    """The inverse of `detokenise_moses`."""
    line = re.sub(r"([^\s\w.,'-]|(?<!\d),|,(?!\d))", r" \1 ", line)
    line = re.sub(r"(?<=[A-Za-z])'(?=[A-Za-z])", " '", line)
    line = re.sub(r"(?<=\d)'(?=s\b)", " '", line)
    line = re.sub(r"(?<!\.)(\.\.\.)(?!\.)", r" \1 ", line)
    return " ".join(re.sub(r"(?<=[^\s.])\.\s*$", " .", line).split())


def _join_moses(line: str) -> str:
    return re.sub(r"(?<=\S) ('(?:s|t|re|ve|ll|d|m)\b)", r"\1", _join_tokens(line.split(" ")))


def _by_line(join: Callable[[str], str], part: Callable[[str], str], text: str) -> str:
    def joined(line: str) -> str:
        whole = join(line)
        return whole if part(whole) == line else line

    return "\n".join(joined(line) if line.strip() else "" for line in text.split("\n"))


detokenise_wikitext = functools.partial(_by_line, _join_wikitext, tokenise_wikitext)
"""WikiText's text with its marks joined to their words."""

detokenise_penn = functools.partial(_by_line, _join_penn, tokenise_penn)
"""The Penn Treebank's text (no marks, lower case) with its clitics joined."""

detokenise_moses = functools.partial(_by_line, _join_moses, tokenise_moses)
"""The One Billion Words' text with its marks joined to their words, which Moses' tokenizer parted,
"don't" as "don 't" (Chelba et al. 2013, section 2)."""

DETOKENISERS: Mapping[str, Callable[[str], str]] = {
    "wikitext": detokenise_wikitext, "penn": detokenise_penn, "moses": detokenise_moses,
}  # fmt: skip
