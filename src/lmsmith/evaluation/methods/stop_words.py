"""Words that never end a LAMBADA passage (Radford et al. 2019, section 3.3)."""

from __future__ import annotations

import functools
import re

from lmsmith.tokenizers import Tokenizer

_WORDS = """
a about above after again against all am an and any are as at be because been before being below
between both but by can could did do does doing down during each few for from further had has have
having he her here hers herself him himself his how i if in into is it its itself just me more
most my myself no nor not now of off on once only or other our ours ourselves out over own same
she should so some such than that the their theirs them themselves then there these they this
those through to too under until up us very was we were what when where which while who whom why
will with would you your yours yourself yourselves
"""

STOP_WORDS = frozenset(_WORDS.split())
"""English function words."""


@functools.lru_cache(maxsize=4)
def stop_word_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that are a whole stop word after a space, or a mark, and so end no passage.

    A word that merely begins with such a token ("the" + "rapist") is lost to the filter with it.
    """
    found = []
    for token in range(tokenizer.vocabulary_size):
        text = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
        is_stop_word = text.startswith(" ") and text.strip().lower() in STOP_WORDS
        if is_stop_word or not re.search(r"\w", text):
            found.append(token)
    return tuple(found)
