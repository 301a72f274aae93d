"""The label that a written answer gives: read where the answer is plain, and never guessed.

"Compared with 1, 2 is better" names 1 first and means 2. So a sentence counts only if all of it
is an answer: a label alone, or with words around it whose meaning is known. Sentences that say
anything else are not read, and two different answers are none.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence

_THING = "(?:reply|response|answer|option|choice|label|verdict|candidate|assistant|judgement|one)"
_GOOD = (
    "(?:better|best|correct|right|preferable|preferred|superior|truer|clearer|the winner|"
    "more (?:helpful|accurate|truthful|honest|informative|useful|relevant|complete|appropriate))"
)
_BEFORE = (
    r"(?:(?:so|thus|therefore|hence|overall|finally|in conclusion)[,:]? )?"
    rf"(?:(?:(?:the|this|that|my|final|correct|better|best|right|preferred) )*(?:{_THING} ?)?"
    rf"(?:is|would be)? ?[:=–—-]? ?(?:(?:the )?{_THING} )?|it is |"
    rf"i (?:would )?(?:choose|prefer|pick|select) (?:{_THING} )?)"
)
_AFTER = (
    r"(?: (?:is|seems|looks)(?: (?:the|much|clearly|slightly|a bit|overall))* "
    rf"{_GOOD}(?:,? and {_GOOD})*(?: {_THING})?(?: overall)?"
    rf"(?: than (?:(?:the )?other(?: {_THING})?|(?:{_THING} )?(?:LABEL)))?)?"
)
_MARKS = re.compile(r"""[*`#"“”()\[\]{}<>]|(?<!\w)['‘’]|['‘’](?!\w)""")
_END = " .!。"
_CUT = re.compile(r"[^.!?。\n]*\Z")
_SENTENCES = re.compile(r"(?<=[.!?;。])\s+")


def named_label(text: str, labels: Sequence[str], *, is_cut: bool = False) -> Mapping[str, float]:
    """Probability 1 of the label that a text gives as its answer; else all are equal.

    Read are "2", "**Reply 2.**", "The better reply is 2", "2 is better than 1", and "Yes, it is"
    where the label is a word. A number before a sentence ("1. The second is better") may number a
    list: it is no answer, but contradicts another.

    Args:
        is_cut: whether the text ends where it reached its greatest length. Its last sentence, which
            may go on, is not read then.
    """
    words = {_plain(label).rstrip(_END): label for label in labels}
    answer, opening, anywhere = _patterns(tuple(words))
    plain = _plain(text)
    named = {found[0] for found in anywhere.finditer(plain)}
    given, numbered = set[str](), set[str]()
    for line in (_CUT.sub("", plain) if is_cut else plain).split("\n"):
        *before, last = _SENTENCES.split(line)
        for sentence in (*before, last):
            said = sentence.rstrip(_END)
            if said in words and not _is_word(said) and sentence is not last:
                numbered.add(said)
                continue
            found = answer.fullmatch(said)
            if found is None and len(named) == 1:
                found = opening.match(sentence)
            if found is not None:
                given.add(found["label"])
    if len(given) != 1 or not numbered <= given or len(words) < len(labels):
        return dict.fromkeys(labels, 1 / len(labels))
    return {label: float(plainly in given) for plainly, label in words.items()}


@functools.cache
def _patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """An answer as a whole sentence; a label that is a word, before a comma; a label anywhere."""
    every = sorted(labels, key=len, reverse=True)
    choice = "|".join(map(re.escape, every))
    words = "|".join(re.escape(each) for each in every if _is_word(each)) or r"(?!)"
    label = rf"(?<!\w)(?P<label>{choice})(?!\w)"
    return (
        re.compile(_BEFORE + label + _AFTER.replace("LABEL", choice)),
        re.compile(rf"(?P<label>{words})[,;:.!–—]"),
        re.compile(rf"(?<!\w)(?:{choice})(?!\w)"),
    )


def _is_word(label: str) -> bool:
    """Whether a label cannot number a list, as 1 and A do."""
    return len(label) > 1 and not label.isdecimal()


def _plain(text: str) -> str:
    """Without case, marks of emphasis, brackets, and more than one space; lines stay."""
    plain = _MARKS.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return "\n".join(" ".join(line.split()) for line in plain.splitlines() if line.strip())
