"""How well a decoder predicts text: bits per byte of documents, perplexity of replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lmsmith.corpus.messages import Message
from lmsmith.models.batching import length_batches
from lmsmith.models.decoder import Decoder
from lmsmith.prompts.windows import conversation_windows
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.losses import IGNORED, linear_cross_entropy_sum
from lmsmith.training.machine import ResolvedMachine, evaluation_mode

TOKENS_AT_ONCE = 8_192

Window = tuple[list[int], list[int]]
"""Input tokens, and for each the token to predict or `IGNORED`."""


@dataclass(frozen=True)
class ReplyPrediction:
    """How well replies were predicted.

    Attributes:
        perplexity: exp of the mean nats per target token; compare within one tokenizer only.
        bits_per_byte: bits per UTF-8 byte of the replies; compares any two models.
        tokens: target tokens, the ends of turn included.
    """

    perplexity: float
    bits_per_byte: float
    tokens: int


def document_windows(tokens: Sequence[int], context: int, overlap: float = 0.5) -> Iterator[Window]:
    """Windows of at most ``context`` in which every token but the first is predicted once.

    A window begins ``overlap`` of a context before the tokens it is there for, so that those
    have at least that much before them; the last one reaches as far back as it can.
    """
    inputs = len(tokens) - 1
    stride = max(1, context - int(context * overlap))
    predicted = 0
    start = 0
    while predicted < inputs:
        end = min(start + context, inputs)
        start = max(0, end - context)
        targets = [IGNORED] * (predicted - start) + list(tokens[predicted + 1 : end + 1])
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
) -> float:
    """Total nats / (ln 2 · total UTF-8 bytes) of documents.

    Each is begun as those that the model learns from.
    It does not depend on how many tokens a tokenizer makes of a byte. The document's end is not
    predicted.

    Args:
        texts: documents; longer than the context is fine.
        overlap: share of the context that a window repeats of the one before.
        on_tokens: told the tokens read so far.

    Returns:
        Bits per byte; NaN when there is no text.
    """
    encoded = tokenizer.encode_batch(list(texts))
    byte_count = sum(len(tokenizer.token_bytes(token)) for tokens in encoded for token in tokens)
    windows = [
        window
        for tokens in encoded
        for window in document_windows(
            [tokenizer.document_start[-1], *tokens], decoder.config.context, overlap
        )
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
) -> ReplyPrediction:
    """How well the assistant's messages are predicted, each once, from what was said before.

    What does not fit the context is left out of the history, oldest first
    (`prompts.windows.conversation_windows`, with half a context of history).
    """
    context = decoder.config.context
    windows: list[Window] = []
    tokens, byte_count = 0, 0
    for messages in conversations:
        for ids, is_target in conversation_windows(tokenizer, messages, context, context // 2):
            targets = [
                token if wanted else IGNORED
                for token, wanted in zip(ids[1:], is_target[1:], strict=True)
            ]
            known = [token for token in targets if token != IGNORED]
            tokens += len(known)
            byte_count += sum(len(tokenizer.token_bytes(token)) for token in known)
            windows.append((ids[:-1], targets))
    if not tokens:
        return ReplyPrediction(math.nan, math.nan, 0)
    nats = total_nats(decoder, windows, machine, on_tokens)
    return ReplyPrediction(
        math.exp(nats / tokens), nats / (math.log(2) * max(1, byte_count)), tokens
    )


def reply_bits_per_byte(
    decoder: Decoder,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    machine: ResolvedMachine,
) -> float:
    """`predict_replies` in bits per byte alone."""
    return predict_replies(decoder, tokenizer, conversations, machine).bits_per_byte


def total_nats(
    decoder: Decoder,
    windows: Sequence[Window],
    machine: ResolvedMachine,
    on_tokens: Callable[[int], None] | None = None,
) -> float:
    """Sum of −log π(target | window before it) over the targets of all windows."""
    total, read = 0.0, 0
    with evaluation_mode(decoder), machine.autocast():
        for group in length_batches([len(inputs) for inputs, _ in windows], TOKENS_AT_ONCE):
            length = max(len(windows[index][0]) for index in group)
            tokens_bt = torch.zeros(len(group), length, dtype=torch.long)
            targets_bt = torch.full_like(tokens_bt, IGNORED)
            for row, index in enumerate(group):
                inputs, targets = windows[index]
                tokens_bt[row, : len(inputs)] = torch.tensor(inputs, dtype=torch.long)
                targets_bt[row, : len(targets)] = torch.tensor(targets, dtype=torch.long)
            # Padding stands on the right, where no token before it attends to it.
            hidden_btd = decoder(tokens_bt)
            total += float(
                linear_cross_entropy_sum(hidden_btd, decoder.unembedding_weight, targets_bt)
            )
            read += tokens_bt.numel()
            if on_tokens is not None:
                on_tokens(read)
    return total
