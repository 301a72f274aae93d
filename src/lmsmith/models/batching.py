"""Sequences of different lengths as one padded batch, and the one definition of their log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.models.attention import padded_mask, padded_positions
from lmsmith.models.decoder import Decoder


@dataclass(frozen=True)
class PaddedBatch:
    """Rows ``[padding, prompt, response, padding]``: prompts end, and responses begin, together.

    Attributes:
        tokens_bt: token ids (batch, prompt_length + response_length); padding is 0.
        valid_bt: False on padding.
        prompt_length: columns before the first response token.
    """

    tokens_bt: Tensor
    valid_bt: Tensor
    prompt_length: int

    @property
    def response_br(self) -> Tensor:
        """Response tokens (batch, response_length)."""
        return self.tokens_bt[:, self.prompt_length :]

    @property
    def response_mask_br(self) -> Tensor:
        """True where a response token stands."""
        return self.valid_bt[:, self.prompt_length :]

    @property
    def positions_bt(self) -> Tensor:
        return padded_positions(self.valid_bt)

    @property
    def mask_bts(self) -> Tensor:
        return padded_mask(self.valid_bt)

    def rows(self, index: Tensor) -> PaddedBatch:
        """Some rows, in the order of ``index``, with the same padding."""
        return PaddedBatch(self.tokens_bt[index], self.valid_bt[index], self.prompt_length)


def pad_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]] | None = None
) -> PaddedBatch:
    """Pad prompts on the left and responses on the right.

    Args:
        prompts: token ids; without ``responses`` whole sequences, aligned at their ends.
        responses: token ids, one a prompt.
    """
    if responses is None:
        responses = [()] * len(prompts)
    prompt_length = max(len(prompt) for prompt in prompts)
    length = prompt_length + max(len(response) for response in responses)
    tokens_bt = torch.zeros(len(prompts), length, dtype=torch.long)
    valid_bt = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = prompt_length - len(prompt), prompt_length + len(response)
        tokens_bt[row, start:end] = torch.tensor([*prompt, *response], dtype=torch.long)
        valid_bt[row, start:end] = True
    return PaddedBatch(tokens_bt, valid_bt, prompt_length)


def length_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Group indices so that a group's rows × longest length stay within ``tokens``.

    Longest first, so that little is padding and memory is found wanting at once if it is.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def response_log_probs(
    decoder: Decoder, batch: PaddedBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the response tokens, the one definition for rollout and update.

    Args:
        decoder: called on the whole batch; gradients flow if they are on.
        batch: prompts and responses.
        temperature: logits are divided by it, as they were when the response was sampled.

    Returns:
        log_probs_br: log π(token | what is before it), 0 on padding.
        entropy_br: entropy in nats of the distribution each token was drawn from, 0 on padding.
    """
    hidden_btd = decoder(batch.tokens_bt, batch.positions_bt, batch.mask_bts)
    before_response = hidden_btd[:, batch.prompt_length - 1 : -1]
    logits_brv = decoder.logits(before_response).float() / temperature
    all_log_probs = F.log_softmax(logits_brv, dim=-1)
    mask = batch.response_mask_br
    log_probs_br = all_log_probs.gather(2, batch.response_br[..., None])[..., 0]
    entropy_br = -(all_log_probs.exp() * all_log_probs).sum(dim=-1)
    return log_probs_br.masked_fill(~mask, 0.0), entropy_br.masked_fill(~mask, 0.0)
