"""The regular expressions of a tokenizer from outside, which cut texts within a limit of time.

Published tokenizers share a few expressions, which are fast on every text. Texts for a tokenizer
with another one are first cut in a process that can be ended.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.worker import Worker
from lmsmith.tokenizers import pattern_worker
from lmsmith.tokenizers.bpe import PATTERN

SECONDS = 1.0
"""Longest time of the processor for texts, besides `SECONDS_A_MILLION`."""

SECONDS_A_MILLION = 2.0
"""For a million characters; what is published takes a tenth."""

WAITED = 15
"""How many times as long the wall clock may take, since the machine may be busy."""

BATCH = 1 << 20
"""Characters that are cut together, about."""

WORKER = Worker(Path(pattern_worker.__file__), "tokenizers")

_LETTERS = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_CONTRACTED = f"(?i:{_SHORT})"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4 = rf"{_CONTRACTED}|{_LETTERS}\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_GPT4O = (
    rf"{_LETTERS}{_UPPER}*{_LOWER}+%s|{_LETTERS}{_UPPER}+{_LOWER}*%s|\p{{N}}%s"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

FAST = frozenset(
    [
        PATTERN,
        rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
        rf"{_SHORT}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",  # CLIP
        _GPT4 % "{1,3}",  # GPT-4, Llama 3
        _GPT4 % "",  # Qwen 2 and 3
        (_GPT4 % "").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}"),
        _GPT4O % (f"{_CONTRACTED}?", f"{_CONTRACTED}?", "{1,3}"),  # GPT-4o
        _GPT4O % ("", "", ""),  # Mistral
        _GPT4O % ("", "", "{1,3}"),
    ]
)
"""Expressions of published tokenizers. Some branch matches wherever another gives up, so that no
character is read more than a few times."""

_ONE_ATOM = re.compile(
    r"(?: \?)?(?:\[[^\[\]&]*\]|\\[pP]\{\^?\w+\}|\\[a-zA-Z]|\\\W|[^\\\[\](){}|*+?.^$])"
    r"(?:[*+?]|\{\d{1,2}(?:,\d{0,2})?\})?"
)
"""One character or class, perhaps several times or after a space: that is fast, too."""


class PatternGuard:
    """Cuts texts by the regular expressions of a description before they are encoded.

    Args:
        description: contents of a ``tokenizer.json``, with the added tokens that texts may hold.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        kept = ("normalizer", "pre_tokenizer", "added_tokens")
        parts = {key: description.get(key) for key in kept}
        self._steps = ""
        if any(not is_fast(each) for each in _expressions([parts[key] for key in kept[:2]])):
            parts["added_tokens"] = parts["added_tokens"] or []
            self._steps = json.dumps(parts)
        self._refused: UserError | None = None

    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts for which the expressions take too long, and every text after that.

        Raises:
            UserError: they do, or did so before.
        """
        if not self._steps:
            return
        part: list[str] = []
        size = 0
        for text in texts:
            part.append(text)
            size += len(text)
            if size > BATCH:
                self._cut(part, size)
                part, size = [], 0
        if part:
            self._cut(part, size)

    def _cut(self, texts: list[str], size: int) -> None:
        if self._refused is not None:
            raise self._refused
        seconds = SECONDS + SECONDS_A_MILLION * size / 1e6
        packed = pickle.dumps({"steps": self._steps, "texts": texts, "seconds": seconds})
        request = len(packed).to_bytes(8, "big") + packed
        # A second time, since somebody else may have ended the process while it had nothing to do.
        if not any(WORKER.ask(request, WAITED * seconds) for _ in range(2)):
            self._refused = UserError(
                f"this tokenizer's regular expressions need more than {seconds:.2g} seconds of the "
                f"processor for {size:,} characters",
                "use a model with another tokenizer",
            )
            raise self._refused


def is_fast(expression: str) -> bool:
    """Whether a regular expression is known to be fast on every text."""
    return expression in FAST or _ONE_ATOM.fullmatch(expression) is not None


def _expressions(value: object) -> Iterator[str]:
    """All regular expressions in a part of a description."""
    if isinstance(value, Mapping):
        if isinstance(regex := value.get("Regex"), str):
            yield regex
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _expressions(each)
