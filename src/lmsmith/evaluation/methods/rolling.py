"""How well whole documents are foretold: perplexity a word, bits a byte and a character."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.model import EvaluatedModel, Pair
from lmsmith.evaluation.perplexity import document_windows
from lmsmith.evaluation.tasks.prompts import Question, item_fields
from lmsmith.evaluation.tasks.spec import TaskSpec
from lmsmith.training.losses import IGNORED


class Rolling:
    """Predicts every token of a document once, in windows that overlap.

    With N = −Σ log P(token | its window before it), in nats:

    - ``word_perplexity``: exp(N / words), words as the corpus counts them: what white space parts
      in the original, and each line's end;
    - ``token_perplexity``: exp(N / tokens), which compares models of one tokenizer only;
    - ``bits_per_byte``, ``bits_per_character``: N / (ln 2 · UTF-8 bytes or characters of the
      original).

    The original is the corpus as it stands in the file; the model reads it de-tokenised where the
    task says so (Radford et al. 2019, section 3.1).

    Attributes:
        on_tokens: told after every pass how many tokens have been read: a document may take long.
    """

    on_tokens: Callable[[int], None] | None = None

    def __init__(
        self, subject: EvaluatedModel, task: TaskSpec, questions: Sequence[Question], seed: int = 0
    ) -> None:
        self._subject = subject
        self._questions = questions
        window = min(task.data.window or subject.context, subject.context)
        start = subject.tokenizer.start_of_text
        encoded = subject.tokenizer.encode_batch([q.choices[0] for q in questions])
        self._windows = [
            window_pairs([start, *tokens], window, task.data.overlap) for tokens in encoded
        ]
        self._reader = LikelihoodReader(subject.model)

    @property
    def tokens(self) -> list[int]:
        """Of each document, what is read in all its windows."""
        return [sum(len(pair.tokens) - 1 for pair in pairs) for pairs in self._windows]

    def answer(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows of the documents of these numbers."""
        for number in numbers:
            question, pairs = self._questions[number], self._windows[number]
            found = self._reader.read(pairs, self.on_tokens)
            nats = -math.fsum(each.total for each in found)
            original = question.answers[0]
            bits = nats / math.log(2)
            tokens = sum(pair.scored for pair in pairs)
            yield {
                **item_fields(question),
                "log_prob": round(-nats, 4),
                "tokens": tokens,
                "windows": len(pairs),
                "truncated": 0,
                "metrics": {
                    "word_perplexity": [nats, count_words(original)],
                    "token_perplexity": [nats, tokens],
                    "bits_per_byte": [bits, len(original.encode())],
                    "bits_per_character": [bits, len(original)],
                },
            }


def count_words(original: str) -> int:
    """Words and line ends, as word-level language models count them."""
    return len(original.split()) + original.count("\n")


def window_pairs(tokens: Sequence[int], window: int, overlap: float) -> list[Pair]:
    """`document_windows` as pairs: what is read before, and what is predicted."""
    pairs = []
    for inputs, targets in document_windows(tokens, window, overlap):
        scored = sum(target != IGNORED for target in targets)
        pairs.append(Pair((*inputs, targets[-1]), scored))
    return pairs
