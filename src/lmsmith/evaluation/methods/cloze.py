"""The rest of a text, word for word: LAMBADA (Paperno et al. 2016)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from lmsmith.evaluation.methods.likelihood import LikelihoodReader, shared_prefix
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import ClozeRow
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.tokenizers import Tokenizer


class Cloze:
    """Measures how well a target is predicted.

    - ``accuracy``: each token of the target is the likeliest at its place (the whole word);
    - ``accuracy_without_stop_words``: the same where the word may begin with no token that is a
      stop word or no word at all (GPT-2's stop-word filter, section 3.3);
    - ``perplexity``: exp of the mean −log P(target | context), a target counting once.
    """

    def __init__(self, model: EvaluatedModel, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._pairs = model.encode_pairs([pair for each in questions for pair in each.pairs])
        self._reader = LikelihoodReader(model.model, stop_word_tokens(model.tokenizer))
        self._reader.cache_prefix(shared_prefix(self._pairs))

    @property
    def tokens(self) -> list[int]:
        """Approximate cost of each question, in tokens."""
        return [len(pair.tokens) for pair in self._pairs]

    def answer(self, numbers: Sequence[int]) -> Iterator[ClozeRow]:
        """The rows of the questions of these numbers."""
        pairs = [self._pairs[number] for number in numbers]
        for number, pair, found in zip(numbers, pairs, self._reader.read(pairs), strict=True):
            question = self._questions[number]
            yield ClozeRow(
                id=question.id,
                shots=list(question.shots),
                prompt=question.plain,
                gold=question.choices[0],
                log_prob=round(found.total, 6),
                tokens=pair.scored,
                truncated=pair.truncated,
                metrics={
                    "accuracy": float(found.greedy),
                    "accuracy_without_stop_words": float(found.greedy_allowed),
                    "perplexity": -found.total,
                },
            )


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
