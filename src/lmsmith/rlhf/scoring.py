"""Numbers for whole sequences: rewards by a reward model, log-probabilities by a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.models.batching import length_batches, pad_batch
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.rollout import sampled_log_probs
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, evaluation_mode

TOKENS_AT_ONCE = 16_384


def score_sequences(
    model: ScalarModel, sequences: Sequence[Sequence[int]], machine: ResolvedMachine
) -> Tensor:
    """The reward of each sequence, read at its last token: (sequences,), float32."""
    scores_n = torch.zeros(len(sequences))
    with evaluation_mode(model), machine.autocast():
        for group in length_batches([len(s) for s in sequences], TOKENS_AT_ONCE):
            batch = pad_batch([sequences[i] for i in group])
            values_bt = model(batch.left_aligned())
            scores_n[group] = values_bt.gather(1, batch.lengths_b[:, None] - 1)[:, 0]
    return scores_n


def response_log_likelihoods(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    machine: ResolvedMachine,
    temperature: float = 1.0,
    tokenizer: Tokenizer | None = None,
) -> Tensor:
    """Σ log π(token | before) over each response, in nats: (sequences,), float32.

    Args:
        decoder: π.
        prompts, responses: token ids.
        machine: precision of matrix products.
        temperature: the one that the responses were sampled with; logits are divided by it.
        tokenizer: the one that they were sampled with, which says what could follow; everything
            if None.
    """
    vocabulary = vocabulary_of(tokenizer, decoder.config.vocabulary_size)
    totals_n = torch.zeros(len(prompts))
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    with evaluation_mode(decoder), machine.autocast():
        for group in length_batches(lengths, TOKENS_AT_ONCE // 4):
            batch = pad_batch([prompts[i] for i in group], [responses[i] for i in group])
            log_probs_br, _ = sampled_log_probs(decoder, batch, temperature, vocabulary)
            totals_n[group] = log_probs_br.sum(dim=1)
    return totals_n
