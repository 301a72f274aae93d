"""A prompt and its K responses as one row: the prompt once, then responses unseen by each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.corpus.rows import Ranking
from lmsmith.models.batching import length_batches
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import Message, encode_prompt
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, evaluation_mode

TOKENS_AT_ONCE = 8_192

_PADDING = -1
_PROMPT = 0


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking as tokens.

    Attributes:
        prompt: ends with the assistant's role token.
        responses: each ends with the end of turn.
        ranks: 1 is best, equal numbers are ties.
    """

    prompt: list[int]
    responses: list[list[int]]
    ranks: list[int]

    @property
    def length(self) -> int:
        """Tokens of the row that holds it."""
        return len(self.prompt) + sum(len(response) for response in self.responses)

    @property
    def best(self) -> list[int]:
        """Places of the responses of the first rank."""
        first = min(self.ranks)
        return [place for place, rank in enumerate(self.ranks) if rank == first]


def encode_responses(
    tokenizer: Tokenizer, prompt: Sequence[Message], responses: Sequence[str], context: int
) -> tuple[list[int], list[list[int]]]:
    """A prompt and texts that answer it, each as the tokens a reward model reads.

    Every response is given its end of turn, also one that was cut off, so that a reward model
    judges what a reader would see. All of them follow the same prompt: what is left of it beside
    the longest response. A response longer than three quarters of the context loses its end.

    Raises:
        UserError: the system message and the last one do not fit.
    """
    most = max(1, 3 * context // 4 - 1)
    encoded = [[*tokenizer.encode(text)[:most], tokenizer.end_of_turn] for text in responses]
    room = context - max(len(tokens) for tokens in encoded)
    return encode_prompt(tokenizer, prompt, room).tokens, encoded


def encode_rankings(
    tokenizer: Tokenizer, rankings: Sequence[Ranking], context: int
) -> tuple[list[EncodedRanking], list[int]]:
    """Rankings as tokens, and which of ``rankings`` they are.

    Left out are those without a pair that is not tied, and those whose last message alone is
    too long for the context.
    """
    encoded, kept = [], []
    for index, ranking in enumerate(rankings):
        if len(set(ranking.ranks)) < 2:
            continue
        try:
            prompt, responses = encode_responses(
                tokenizer, ranking.prompt, ranking.responses, context
            )
        except UserError:
            continue
        encoded.append(EncodedRanking(prompt, responses, list(ranking.ranks)))
        kept.append(index)
    return encoded, kept


@dataclass(frozen=True)
class CandidateBatch:
    """Rows ``[prompt, response 1, …, response K, padding]``.

    A response's positions go on from the prompt's end and it attends to the prompt and to
    itself, so its hidden states are those it would have in a row of its own, and the prompt is
    computed once instead of K times.

    Attributes:
        tokens_bt: padding is 0.
        positions_bt: of each token in its own sequence.
        segments_bt: 0 for the prompt, k for the k-th response, −1 for padding.
        ends_bk: the column of each response's last token; 0 where there is no response.
        ranks_bk: 0 where there is no response.
        present_bk: False where there is no response.
    """

    tokens_bt: Tensor
    positions_bt: Tensor
    segments_bt: Tensor
    ends_bk: Tensor
    ranks_bk: Tensor
    present_bk: Tensor

    @property
    def mask_bts(self) -> Tensor:
        """Causal, to the prompt and to one's own response; padding attends to itself."""
        length = self.tokens_bt.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        own = self.segments_bt[:, :, None] == self.segments_bt[:, None, :]
        prompt = (self.segments_bt == _PROMPT)[:, None, :]
        used = (self.segments_bt != _PADDING)[:, None, :]
        itself = torch.eye(length, dtype=torch.bool)
        return (causal & (own | prompt) & used) | itself


def candidate_batch(rankings: Sequence[EncodedRanking]) -> CandidateBatch:
    """Lay rankings out as rows, padded to the longest."""
    length = max(ranking.length for ranking in rankings)
    most = max(len(ranking.responses) for ranking in rankings)
    tokens_bt = torch.zeros(len(rankings), length, dtype=torch.long)
    positions_bt = torch.zeros_like(tokens_bt)
    segments_bt = torch.full_like(tokens_bt, _PADDING)
    ends_bk = torch.zeros(len(rankings), most, dtype=torch.long)
    ranks_bk = torch.zeros_like(ends_bk)
    for row, ranking in enumerate(rankings):
        start = 0
        opening = len(ranking.prompt)
        for segment, piece in enumerate([ranking.prompt, *ranking.responses]):
            end = start + len(piece)
            first = 0 if segment == _PROMPT else opening
            tokens_bt[row, start:end] = torch.tensor(piece)
            positions_bt[row, start:end] = torch.arange(first, first + len(piece))
            segments_bt[row, start:end] = segment
            if segment != _PROMPT:
                ends_bk[row, segment - 1] = end - 1
                ranks_bk[row, segment - 1] = ranking.ranks[segment - 1]
            start = end
    return CandidateBatch(tokens_bt, positions_bt, segments_bt, ends_bk, ranks_bk, ranks_bk > 0)


def candidate_scores(model: ScalarModel, batch: CandidateBatch) -> Tensor:
    """The reward of each response, read at its last token: (batch, K), 0 where there is none."""
    values_bt: Tensor = model(batch.tokens_bt, batch.positions_bt, batch.mask_bts)
    return values_bt.gather(1, batch.ends_bk).masked_fill(~batch.present_bk, 0.0)


def score_rankings(
    model: ScalarModel, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> list[list[float]]:
    """The reward of every response of every ranking."""
    scores: list[list[float]] = [[] for _ in rankings]
    with evaluation_mode(model), machine.autocast():
        for group in length_batches([ranking.length for ranking in rankings], TOKENS_AT_ONCE):
            found_bk = candidate_scores(model, candidate_batch([rankings[i] for i in group]))
            for index, row in zip(group, found_bk.tolist(), strict=True):
                scores[index] = row[: len(rankings[index].responses)]
    return scores


def likelihoods(
    decoder: Decoder, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> list[list[float]]:
    """Σ log π(token | what is before it), in nats, over every response of every ranking."""
    found: list[list[float]] = [[] for _ in rankings]
    with evaluation_mode(decoder), machine.autocast():
        for group in length_batches([ranking.length for ranking in rankings], TOKENS_AT_ONCE):
            batch = candidate_batch([rankings[i] for i in group])
            hidden_btd = decoder(batch.tokens_bt, batch.positions_bt, batch.mask_bts)
            for row, index in enumerate(group):
                ranking = rankings[index]
                columns = torch.tensor(
                    [
                        len(ranking.prompt) - 1 if place == 0 else int(end) - len(response) + place
                        for response, end in zip(
                            ranking.responses, batch.ends_bk[row].tolist(), strict=False
                        )
                        for place in range(len(response))
                    ]
                )
                tokens_n = torch.tensor([token for tokens in ranking.responses for token in tokens])
                log_probs_nv = decoder.logits(hidden_btd[row, columns]).float().log_softmax(dim=-1)
                each_n = log_probs_nv.gather(1, tokens_n[:, None])[:, 0]
                pieces = torch.split(each_n, [len(response) for response in ranking.responses])
                found[index] = [float(piece.sum()) for piece in pieces]
    return found


def score_table(
    rankings: Sequence[EncodedRanking], scores: Sequence[Sequence[float]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, ranks and presence as (rankings, K) tensors, for `lmsmith.rlhf.ranking`."""
    most = max((len(row) for row in scores), default=2)
    scores_bk = torch.zeros(len(scores), most)
    ranks_bk = torch.zeros(len(scores), most, dtype=torch.long)
    for index, (ranking, row) in enumerate(zip(rankings, scores, strict=True)):
        scores_bk[index, : len(row)] = torch.tensor(row)
        ranks_bk[index, : len(row)] = torch.tensor(ranking.ranks)
    return scores_bk, ranks_bk, ranks_bk > 0
