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

    @property
    def lengths_b(self) -> Tensor:
        """Tokens of each row that are no padding."""
        return self.valid_bt.sum(dim=1)

    @property
    def prompt_lengths_b(self) -> Tensor:
        """Tokens of each row's prompt."""
        return self.valid_bt[:, : self.prompt_length].sum(dim=1)

    def rows(self, index: Tensor) -> PaddedBatch:
        """Some rows, in the order of ``index``, with the same padding."""
        return PaddedBatch(self.tokens_bt[index], self.valid_bt[index], self.prompt_length)

    def left_aligned(self) -> Tensor:
        """The tokens moved to the left, (batch, longest row): all padding stands behind them.

        A causal model's states are then those of each row alone, with no mask and with positions
        that count from 0, and the columns that are padding in every row are not computed.
        """
        first_b = self.prompt_length - self.prompt_lengths_b
        columns_bt = torch.arange(int(self.lengths_b.max()))[None] + first_b[:, None]
        inside_bt = columns_bt < (first_b + self.lengths_b)[:, None]
        moved_bt = self.tokens_bt.gather(1, columns_bt.clamp(max=self.tokens_bt.shape[1] - 1))
        return moved_bt.masked_fill(~inside_bt, 0)


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


IMPOSSIBLE = -1e9
"""Logit in place of −∞: its probability is exactly 0, and 0 times it is a number."""


def response_log_probs(
    decoder: Decoder,
    batch: PaddedBatch,
    temperature: float = 1.0,
    forbidden_nv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the response tokens, the one definition for rollout and update.

    Args:
        decoder: called on the whole batch; gradients flow if they are on.
        batch: prompts and responses.
        temperature: logits are divided by it, as they were when the response was sampled.
        forbidden_nv: what could not be drawn in the place of each response token, row after row;
            nothing if None.

    Returns:
        log_probs_br: log π(token | what is before it), 0 on padding.
        entropy_br: entropy in nats of the distribution each token was drawn from, 0 on padding.
    """
    hidden_btd = decoder(batch.left_aligned())
    mask_br = batch.response_mask_br
    rows_n, places_n = mask_br.nonzero(as_tuple=True)
    # Each token was drawn from the state of the token before it.
    before_n = batch.prompt_lengths_b[rows_n] - 1 + places_n
    flat_n = rows_n * hidden_btd.shape[1] + before_n
    before_nd = hidden_btd.flatten(0, 1).index_select(0, flat_n)
    logits_nv = decoder.logits(before_nd).float() / temperature
    if forbidden_nv is not None:
        logits_nv = logits_nv.masked_fill(forbidden_nv, IMPOSSIBLE)
    all_log_probs_nv = F.log_softmax(logits_nv, dim=-1)
    log_probs_n = all_log_probs_nv.gather(1, batch.response_br[mask_br][:, None])[:, 0]
    entropy_n = -(all_log_probs_nv.exp() * all_log_probs_nv).sum(dim=-1)
    zeros_br = torch.zeros(mask_br.shape)
    return (
        zeros_br.masked_scatter(mask_br, log_probs_n),
        zeros_br.masked_scatter(mask_br, entropy_n),
    )


def length_groups(lengths_b: Tensor, rows: int) -> list[Tensor]:
    """Indices in groups of at most so many rows of like length, the longest first."""
    return list(torch.split(lengths_b.argsort(descending=True, stable=True), rows))
