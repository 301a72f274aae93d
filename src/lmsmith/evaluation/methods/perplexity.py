"""Perplexity of text: documents, replies, and tasks of the kind ``perplexity``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.messages import Message
from lmsmith.device import device_of, moved
from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.model import Continuation, EvaluatedModel
from lmsmith.evaluation.rows import DocumentRow
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.models.batching import length_batches
from lmsmith.models.decoder import Decoder
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.losses import linear_cross_entropy_sum
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.parallel import add_up, team

TOKENS_AT_ONCE = 8_192

Window = tuple[list[int], list[int]]
"""Input tokens, and for each the token to predict or `NO_TARGET`."""


@dataclass(frozen=True)
class ReplyPrediction:
    """How well replies were predicted.

    Attributes:
        perplexity: exp of the mean nats per target token; compare within one tokenizer only.
        bits_per_byte: bits per UTF-8 byte of the replies; compares any two models.
        tokens: target tokens, the ends of turn included.
        bytes: of the replies, in UTF-8.
    """

    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int = 0


@dataclass(frozen=True)
class TextBits:
    """Bits that a model needs for each of some texts, and their UTF-8 bytes."""

    bits: list[float]
    bytes: list[int]

    @property
    def per_byte(self) -> float:
        """NaN when there is no text."""
        total = sum(self.bytes)
        return math.fsum(self.bits) / total if total else math.nan


def document_windows(tokens: Sequence[int], context: int, overlap: float = 0.5) -> Iterator[Window]:
    """Windows of at most ``context`` in which every token but the first is predicted once.

    A window begins ``overlap`` of a context before the tokens it predicts, so that those have at
    least that much before them; the last one reaches as far back as it can.
    """
    inputs = len(tokens) - 1
    stride = max(1, context - int(context * overlap))
    predicted = 0
    start = 0
    while predicted < inputs:
        end = min(start + context, inputs)
        start = max(0, end - context)
        targets = [NO_TARGET] * (predicted - start) + list(tokens[predicted + 1 : end + 1])
        yield list(tokens[start:end]), targets
        predicted = end
        start += stride


def bits_per_byte(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    machine: ResolvedMachine,
    overlap: float = 0.5,
    on_tokens: Callable[[int], None] | None = None,
    context: int = 0,
) -> float:
    """Total nats / (ln 2 · total UTF-8 bytes) of documents; NaN when there is no text.

    It does not depend on the tokenizer. A document begins as those that the model learns from; its
    end is not predicted.

    Args:
        texts: documents; longer than the context is fine.
        overlap: share of the context that a window repeats of the one before.
        on_tokens: is called with the tokens read so far.
        context: longest window; the model's context if 0.
    """
    encoded = tokenizer.encode_batch(list(texts))
    byte_count = sum(len(tokenizer.token_bytes(token)) for tokens in encoded for token in tokens)
    start, context = tokenizer.document_start[-1], context or decoder.config.context
    windows = [
        window
        for tokens in encoded
        for window in document_windows([start, *tokens], context, overlap)
    ]
    if not byte_count:
        return math.nan
    return total_nats(decoder, windows, machine, on_tokens) / (math.log(2) * byte_count)


def predict_replies(
    decoder: Decoder,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    machine: ResolvedMachine,
    on_tokens: Callable[[int], None] | None = None,
    context: int = 0,
) -> ReplyPrediction:
    """How well the assistant's messages are predicted, each once, from the messages before.

    The oldest history is left out if it does not fit the context, or ``context`` if it is not 0
    (`prompts.sft_rows.conversation_windows`, with half a context of history).
    """
    context = context or decoder.config.context
    windows: list[Window] = []
    tokens, byte_count = 0, 0
    for messages in conversations:
        for ids, is_target in conversation_windows(tokenizer, messages, context, context // 2):
            wanted = list(zip(ids[1:], is_target[1:], strict=True))
            targets = [token if is_wanted else NO_TARGET for token, is_wanted in wanted]
            known = [token for token in targets if token != NO_TARGET]
            tokens += len(known)
            byte_count += sum(len(tokenizer.token_bytes(token)) for token in known)
            windows.append((ids[:-1], targets))
    if not tokens:
        return ReplyPrediction(math.nan, math.nan, 0)
    nats = total_nats(decoder, windows, machine, on_tokens)
    bits = nats / (math.log(2) * max(1, byte_count))
    return ReplyPrediction(math.exp(nats / tokens), bits, tokens, byte_count)


def bits_of_documents(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    machine: ResolvedMachine,
    context: int = 0,
) -> TextBits:
    """`bits_per_byte` of each document, as sums that can be drawn again."""
    found = TextBits([], [])
    for text in texts:
        size = sum(len(tokenizer.token_bytes(token)) for token in tokenizer.encode(text))
        if size:
            per_byte = bits_per_byte(decoder, tokenizer, [text], machine, context=context)
            found.bits.append(per_byte * size)
            found.bytes.append(size)
    return found


def bits_of_replies(
    decoder: Decoder,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    machine: ResolvedMachine,
    context: int = 0,
) -> TextBits:
    """`predict_replies` of each conversation, as sums that can be drawn again."""
    found = TextBits([], [])
    for messages in conversations:
        each = predict_replies(decoder, tokenizer, [messages], machine, context=context)
        if each.bytes:
            found.bits.append(each.bits_per_byte * each.bytes)
            found.bytes.append(each.bytes)
    return found


def reply_bits_per_byte(
    decoder: Decoder,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    machine: ResolvedMachine,
) -> float:
    return predict_replies(decoder, tokenizer, conversations, machine).bits_per_byte


def total_nats(
    decoder: Decoder,
    windows: Sequence[Window],
    machine: ResolvedMachine,
    on_tokens: Callable[[int], None] | None = None,
) -> float:
    """Sum of −log π(target | window before it) over the targets of all windows.

    Processes that train together share the windows.
    """
    total, read = 0.0, 0
    with machine.reading(decoder):
        groups = length_batches([len(inputs) for inputs, _ in windows], TOKENS_AT_ONCE)
        for group, share in team().parts(lambda rank: groups[rank :: team().count]):
            length = max(len(windows[index][0]) for index in group)
            tokens_bt = torch.zeros(len(group), length, dtype=torch.long)
            targets_bt = torch.full_like(tokens_bt, NO_TARGET)
            for row, index in enumerate(group):
                inputs, targets = windows[index]
                tokens_bt[row, : len(inputs)] = torch.tensor(inputs, dtype=torch.long)
                targets_bt[row, : len(targets)] = torch.tensor(targets, dtype=torch.long)
            # Padding stands on the right, where no token before it attends to it.
            device = device_of(decoder)
            hidden_btd, weight = decoder(moved(tokens_bt, device)), decoder.unembedding_weight
            targets_bt = moved(targets_bt, device)
            total += share * float(linear_cross_entropy_sum(hidden_btd, weight, targets_bt))
            read += tokens_bt.numel()
            if on_tokens is not None:
                on_tokens(read)
    return add_up(total)[0]


class Rolling:
    """Predicts every token of a document once, in windows that overlap.

    With N = −Σ log P(token | its window before it), in nats:

    - ``word_perplexity``: exp(N / words), words as the corpus counts them: the original parted at
      white space, and each line's end;
    - ``token_perplexity``: exp(N / tokens), which compares models of one tokenizer only;
    - ``bits_per_byte``, ``bits_per_character``: N / (ln 2 · UTF-8 bytes or characters of the
      original).

    The original is the corpus's file; the model reads it de-tokenised if the task says so (Radford
    et al. 2019, section 3.1).

    Args:
        window: most tokens read at once; the model's context if 0.
        overlap: share of a window that repeats the one before.

    Attributes:
        on_tokens: is called after every pass with the tokens read, since a document may take long.
    """

    on_tokens: Callable[[int], None] | None = None

    def __init__(
        self,
        model: EvaluatedModel,
        questions: Sequence[Question],
        window: int = 0,
        overlap: float = 0.5,
    ) -> None:
        self._questions = questions
        window = min(window or model.context, model.context)
        start = model.tokenizer.start_of_text
        encoded = model.tokenizer.encode_batch([q.choices[0] for q in questions])
        self._windows = [window_pairs([start, *tokens], window, overlap) for tokens in encoded]
        self._reader = LikelihoodReader(model.decoder)

    @property
    def tokens(self) -> list[int]:
        """Tokens read in all windows of each document."""
        return [sum(len(pair.tokens) - 1 for pair in pairs) for pairs in self._windows]

    def answer(self, numbers: Sequence[int]) -> Iterator[DocumentRow]:
        """The rows of the documents of these numbers."""
        for number in numbers:
            question, pairs = self._questions[number], self._windows[number]
            found = self._reader.read(pairs, self.on_tokens)
            nats = -math.fsum(each.total for each in found)
            original = question.answers[0]
            bits = nats / math.log(2)
            tokens = sum(pair.scored for pair in pairs)
            yield DocumentRow(
                id=question.id,
                prompt=question.plain,
                log_prob=round(-nats, 4),
                tokens=tokens,
                windows=len(pairs),
                metrics={
                    "word_perplexity": [nats, count_words(original)],
                    "token_perplexity": [nats, tokens],
                    "bits_per_byte": [bits, len(original.encode())],
                    "bits_per_character": [bits, len(original)],
                },
            )


def count_words(original: str) -> int:
    """Words and line ends, as word-level language models count them."""
    return len(original.split()) + original.count("\n")


def window_pairs(tokens: Sequence[int], window: int, overlap: float) -> list[Continuation]:
    """`document_windows` as contexts and their continuations."""
    pairs = []
    for inputs, targets in document_windows(tokens, window, overlap):
        scored = sum(target != NO_TARGET for target in targets)
        pairs.append(Continuation((*inputs, targets[-1]), scored))
    return pairs
