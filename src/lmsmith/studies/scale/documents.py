"""Generated documents as batches to train on and to measure the loss on, by step number."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmsmith.corpus.batches import NO_TARGET, Batch, generator
from lmsmith.studies.scale import texts
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.chat_format import SPECIAL_TOKENS

CONTEXT = 208
"""Tokens of a row: the longest document of `LINES` lines fits."""

LINES = 17
"""Lines of a pattern's document: sixteen examples and one to answer."""

DIGITS = 4
"""Most digits of a number to be added."""

TRAINED, HELD_OUT = 0, 1
"""Streams of random numbers: documents to train on, and documents to measure on."""

SHARES: Mapping[str, float] = {"patterns": 0.5, "sums": 0.35, "sentences": 0.15}
"""Share of each family in the rows of a batch."""

PATTERN_SHARES: Mapping[str, float] = {"noisy_copies": 0.5, "remove_symbols": 0.25, "reorder": 0.25}
"""Share of each pattern in the rows of patterns."""


@dataclass(frozen=True)
class Document:
    """Tokens, the first of them the end of text, and for each whether it is to be predicted.

    Random numbers and words that follow from nothing are no targets: they cannot be learnt.
    """

    tokens: NDArray[np.int64]
    is_target: NDArray[np.bool_]

    def __len__(self) -> int:
        """Positions it takes in a row: one less than its tokens."""
        return len(self.tokens) - 1


class Writer:
    """Documents as tokens: a byte is a token."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        signs = [chr(byte) for byte in range(128)]
        self._ids = np.array([self.tokenizer.encode(sign)[0] for sign in signs], np.int64)
        self.end_of_text = self.tokenizer.end_of_text

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids of ASCII text; the same as the tokenizer's, and faster."""
        return self._ids[np.frombuffer(text.encode("ascii"), np.uint8)]

    def prompt(self, text: str) -> list[int]:
        """A prompt as a document begins."""
        return [self.end_of_text, *self.encode(text).tolist()]

    def pattern(self, examples: Sequence[texts.Example]) -> Document:
        """Lines, of which the answers and their line ends are targets.

        Those of noisy copies are noisy too: the likeliest next letter is the same with noise as
        without, and every line teaches, not the last alone.
        """
        is_target = np.zeros(sum(len(example.line) for example in examples), np.bool_)
        end = 0
        for example in examples:
            end += len(example.line)
            is_target[end - len(example.answer) - 1 : end] = True
        return self._framed("".join(example.line for example in examples), is_target)

    def sum(self, asked: texts.Sum, style: str) -> Document:
        """A question, and its reply as the target, with the end of the text."""
        prompt, reply = asked.prompt(style), asked.reply(style)
        is_target = np.arange(len(prompt) + len(reply) + 1) >= len(prompt)
        return self._framed(prompt + reply, is_target, self.end_of_text)

    def sentence(self, text: str) -> Document:
        """Every character is a target."""
        return self._framed(text, np.ones(len(text), np.bool_))

    def _framed(self, text: str, is_target: NDArray[np.bool_], *end: int) -> Document:
        tokens = np.concatenate([[self.end_of_text], self.encode(text), np.array(end, np.int64)])
        return Document(tokens, np.append(False, is_target))


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """lmsmith's byte-level tokenizer with no merges, so that the models are folders like others."""
    return Tokenizer.train([], 256 + len(SPECIAL_TOKENS))


def pack(rows: Sequence[Sequence[Document]], context: int, end_of_text: int) -> Batch:
    """Rows of documents side by side; the rest of a row is padding, a document of its own."""
    shape = (len(rows), context)
    tokens, targets = np.full(shape, end_of_text, np.int64), np.full(shape, NO_TARGET, np.int64)
    numbers, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents):
            size = min(len(document), context - at)
            place = slice(at, at + size)
            tokens[row, place] = document.tokens[:size]
            following, wanted = document.tokens[1 : size + 1], document.is_target[1 : size + 1]
            targets[row, place] = np.where(wanted, following, NO_TARGET)
            numbers[row, place], positions[row, place] = number, np.arange(size)
            at += size
        numbers[row, at:], positions[row, at:] = len(documents), np.arange(context - at)
    return Batch(tokens, targets, numbers, positions)


class StudyBatches:
    """Batches of all families, a pure function of the seed, the stream and the step.

    The streams share no pair of numbers; both draw new rules of patterns and new sentences.
    """

    def __init__(self, rows: int, seed: int, stream: int = TRAINED) -> None:
        self.writer = Writer()
        self.rows, self.seed, self.stream = rows, seed, stream
        self._makers: dict[str, Callable[[np.random.Generator], list[Document]]] = {
            "patterns": self._patterns,
            "sums": self._sums,
            "sentences": self._sentences,
        }

    def batch(self, step: int) -> Batch:
        """Rows of the families by their shares."""
        chance = generator(self.seed, self.stream, step)
        bounds = np.round(np.cumsum([0.0, *SHARES.values()]) * self.rows).astype(int)
        names = np.repeat(list(SHARES), np.diff(bounds)).tolist()
        return self._pack([self._makers[name](chance) for name in names])

    def batch_of(self, family: str, step: int) -> Batch:
        """Rows of one family, to measure its loss."""
        chance = generator(self.seed, self.stream, step, 1 + list(SHARES).index(family))
        return self._pack([self._makers[family](chance) for _ in range(self.rows)])

    def _pack(self, rows: Sequence[Sequence[Document]]) -> Batch:
        return pack(rows, CONTEXT, self.writer.end_of_text)

    def _patterns(self, chance: np.random.Generator) -> list[Document]:
        kind = str(chance.choice(list(PATTERN_SHARES), p=list(PATTERN_SHARES.values())))
        return _filled(lambda: self.writer.pattern(texts.draw_document(kind, LINES, chance)))

    def _sums(self, chance: np.random.Generator) -> list[Document]:
        def draw() -> Document:
            digits = int(chance.integers(1, DIGITS + 1))
            style = (texts.DIRECT, texts.CHAIN)[int(chance.integers(2))]
            asked = texts.draw_sum(digits, chance, held_out=self.stream == HELD_OUT)
            return self.writer.sum(asked, style)

        return _filled(draw)

    def _sentences(self, chance: np.random.Generator) -> list[Document]:
        return [self.writer.sentence(texts.draw_sentence(CONTEXT, chance))]


def _filled(draw: Callable[[], Document]) -> list[Document]:
    """Documents for one row, until the next has no room."""
    documents, room = [], CONTEXT
    while len(document := draw()) <= room:
        documents.append(document)
        room -= len(document)
    return documents
