"""Rankings for the reward model: a prompt and its K responses in one row, scored and trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.corpus.rows import Ranking
from lmsmith.device import HOST, device_of, moved
from lmsmith.models.batching import ACTIVATION_BYTES, length_batches, memory_groups
from lmsmith.models.config import ModelConfig
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import Message, encode_prompt
from lmsmith.rlhf.objective import correct_pairs, ranking_loss, thumb_loss
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.parallel import add_tables, add_up, highest, team

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
        places: places of these responses among all that were given.
        weight: of its loss.
    """

    prompt: list[int]
    responses: list[list[int]]
    ranks: list[int]
    places: list[int] = field(default_factory=list)
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the row that holds it."""
        return len(self.prompt) + sum(len(response) for response in self.responses)

    @property
    def best(self) -> list[int]:
        """Places of the responses of the first rank."""
        first = min(self.ranks)
        return [place for place, rank in enumerate(self.ranks) if rank == first]


@dataclass(frozen=True)
class EncodedThumb:
    """A response that somebody liked or disliked, as tokens."""

    prompt: list[int]
    response: list[int]
    liked: bool
    weight: float


def encode_responses(
    tokenizer: Tokenizer, prompt: Sequence[Message], responses: Sequence[str], context: int
) -> tuple[list[int], list[list[int]]]:
    """A prompt and texts that answer it, as the tokens a reward model reads.

    Every response ends with the end of turn, also one that was cut off: a reward model judges what
    a reader would see. All follow the same prompt, which is cut to fit beside the longest response.
    A response longer than three quarters of the context loses its end.

    Raises:
        UserError: the system message and the last one do not fit.
    """
    encoded, _ = _cut_responses(tokenizer, responses, context)
    return encode_prompt(tokenizer, prompt, context - max(map(len, encoded))).tokens, encoded


def longest_response(context: int) -> int:
    """Most tokens of a response that a reward model reads, its end of turn not counted."""
    return max(1, 3 * context // 4 - 1)


def _cut_responses(
    tokenizer: Tokenizer, responses: Sequence[str], context: int
) -> tuple[list[list[int]], list[bool]]:
    """Responses as tokens with their end of turn, and which of them lost their end."""
    most = longest_response(context)
    encoded = [tokenizer.encode(text) for text in responses]
    cut = [len(ids) > most for ids in encoded]
    return [[*ids[:most], tokenizer.end_of_turn] for ids in encoded], cut


LEFT_OUT = {
    "tied": "with all responses tied",
    "empty": "with an empty prompt, or fewer than two responses that are not empty",
    "equal": "whose responses are equal as far as they are read",
    "too_long": "whose last message does not fit the context",
    "contradicted": "whose order as many others reverse",
}
"""Reasons for which `encode_rankings` leaves a ranking out, in words."""


def encode_rankings(
    tokenizer: Tokenizer,
    rankings: Sequence[Ranking],
    context: int,
    counts: Counter[str] | None = None,
) -> tuple[list[EncodedRanking], list[int]]:
    """Rankings as tokens, and their places in ``rankings``.

    Left out are empty responses, and all but one of those that are equal as they are read (all of
    them where their ranks contradict each other); then the rankings that `LEFT_OUT` names.

    Args:
        counts: gets the numbers of ``rankings`` read and of those left out for each reason of
            `LEFT_OUT`; of ``responses`` of those that are kept, and how many of these are cut
            (``responses_cut``) or left out (``responses_empty``, ``responses_equal``); and of
            rankings that are kept though others contradict them (``disputed``).
    """
    counts = counts if counts is not None else Counter()
    counts["rankings"] += len(rankings)
    encoded: list[EncodedRanking] = []
    kept: list[int] = []
    for index, ranking in enumerate(rankings):
        found = _encode_ranking(tokenizer, ranking, context, counts)
        if isinstance(found, str):
            counts[found] += 1
        else:
            encoded.append(found)
            kept.append(index)
    cancelled, disputed = _contradicted(encoded)
    counts["contradicted"] += len(cancelled)
    counts["disputed"] += disputed
    return (
        [each for n, each in enumerate(encoded) if n not in cancelled],
        [index for n, index in enumerate(kept) if n not in cancelled],
    )


def rankings_warnings(counts: Mapping[str, int], context: int) -> list[str]:
    """Sentences that say what `encode_rankings` left out or cut, and why."""
    found, rankings = [], f"{counts['rankings']:,} rankings"
    if left_out := sum(counts[name] for name in LEFT_OUT):
        reasons = [f"{counts[name]:,} {words}" for name, words in LEFT_OUT.items() if counts[name]]
        found.append(f"{left_out:,} of {rankings} left out: {', '.join(reasons)}")
    if counts["disputed"]:
        found.append(
            f"{counts['disputed']:,} of {rankings} are learnt from though others reverse their "
            "order, more or less often"
        )
    for name, words in (
        ("responses_empty", "left out, being empty"),
        ("responses_equal", "left out, being equal to another of their ranking as they are read"),
        ("responses_cut", f"lose their end, being longer than {longest_response(context)} tokens"),
    ):
        if counts[name]:
            found.append(f"{counts[name]:,} of {counts['responses']:,} responses {words}")
    return found


def _encode_ranking(
    tokenizer: Tokenizer, ranking: Ranking, context: int, counts: Counter[str]
) -> EncodedRanking | str:
    """A ranking as tokens, or the reason for which it is left out."""
    if len(set(ranking.ranks)) < 2:
        return "tied"
    written = [place for place, text in enumerate(ranking.responses) if text.strip()]
    if len(written) < 2 or not ranking.prompt[-1]["content"].strip():
        return "empty"
    if len({ranking.ranks[place] for place in written}) < 2:
        return "tied"
    texts = [ranking.responses[place] for place in written]
    encoded, cut = _cut_responses(tokenizer, texts, context)
    distinct = _distinct(encoded, [ranking.ranks[place] for place in written])
    places = [written[n] for n in distinct]
    if len({ranking.ranks[place] for place in places}) < 2:
        return "equal"
    responses = [encoded[n] for n in distinct]
    try:
        room = context - max(map(len, responses))
        prompt = encode_prompt(tokenizer, ranking.prompt, room).tokens
    except UserError:
        return "too_long"
    counts["responses"] += len(ranking.responses)
    counts["responses_empty"] += len(ranking.responses) - len(written)
    counts["responses_equal"] += len(written) - len(places)
    counts["responses_cut"] += sum(cut[n] for n in distinct)
    ranks = [ranking.ranks[place] for place in places]
    return EncodedRanking(prompt, responses, ranks, places, ranking.weight)


def _distinct(responses: Sequence[Sequence[int]], ranks: Sequence[int]) -> list[int]:
    """Places of different responses; of equal ones the first, if all rank alike among the rest."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, response in enumerate(responses):
        groups.setdefault(tuple(response), []).append(place)
    kept = []
    for places in groups.values():
        others = [rank for place, rank in enumerate(ranks) if place not in places]
        compared = {
            tuple((ranks[place] > rank) - (ranks[place] < rank) for rank in others)
            for place in places
        }
        if len(compared) == 1:
            kept.append(places[0])
    return sorted(kept)


def _contradicted(rankings: Sequence[EncodedRanking]) -> tuple[set[int], int]:
    """Numbers of rankings whose every pair is contradicted as often as stated; they teach nothing.

    Also, how many others are contradicted in part; these are kept.
    """
    votes: Counter[tuple[int, int]] = Counter()
    pairs: list[list[tuple[int, int]]] = []
    for ranking in rankings:
        keys = [hash((tuple(ranking.prompt), tuple(each))) for each in ranking.responses]
        ranked = permutations(zip(ranking.ranks, keys, strict=True), 2)
        pairs.append([(better, worse) for (rank, better), (other, worse) in ranked if rank < other])
        votes.update(pairs[-1])
    cancelled = {
        number
        for number, each in enumerate(pairs)
        if all(votes[better, worse] == votes[worse, better] for better, worse in each)
    }
    contradicted = sum(any(votes[worse, better] for better, worse in each) for each in pairs)
    return cancelled, contradicted - len(cancelled)


@dataclass(frozen=True)
class CandidateBatch:
    """Rows ``[prompt, response 1, …, response K, padding]``.

    A response's positions continue the prompt's, and it attends to the prompt and to itself: its
    hidden states are those of a row of its own, and the prompt is computed once.

    Attributes:
        tokens_bt: padding is 0.
        positions_bt: of each token in its own sequence.
        segments_bt: 0 for the prompt, k for the k-th response, −1 for padding.
        ends_bk: the column of each response's last token.
        ranks_bk: 0, as ``ends_bk``, where there is no response.
    """

    tokens_bt: Tensor
    positions_bt: Tensor
    segments_bt: Tensor
    ends_bk: Tensor
    ranks_bk: Tensor

    @property
    def mask_bts(self) -> Tensor:
        """Causal attention to the prompt and the own response; padding attends to itself."""
        length = self.tokens_bt.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        own = self.segments_bt[:, :, None] == self.segments_bt[:, None, :]
        prompt = (self.segments_bt == _PROMPT)[:, None, :]
        used = (self.segments_bt != _PADDING)[:, None, :]
        itself = torch.eye(length, dtype=torch.bool)
        return (causal & (own | prompt) & used) | itself


def candidate_batch(rankings: Sequence[EncodedRanking]) -> CandidateBatch:
    """Rankings as rows, padded to the longest."""
    length = max(ranking.length for ranking in rankings)
    most = max(len(ranking.responses) for ranking in rankings)
    tokens_bt = torch.zeros(len(rankings), length, dtype=torch.long)
    positions_bt = torch.zeros_like(tokens_bt)
    segments_bt = torch.full_like(tokens_bt, _PADDING)
    ends_bk = torch.zeros(len(rankings), most, dtype=torch.long)
    ranks_bk = torch.zeros_like(ends_bk)
    for row, ranking in enumerate(rankings):
        start = 0
        for segment, piece in enumerate([ranking.prompt, *ranking.responses]):
            end = start + len(piece)
            first = 0 if segment == _PROMPT else len(ranking.prompt)
            tokens_bt[row, start:end] = torch.tensor(piece)
            positions_bt[row, start:end] = torch.arange(first, first + len(piece))
            segments_bt[row, start:end] = segment
            if segment != _PROMPT:
                ends_bk[row, segment - 1] = end - 1
                ranks_bk[row, segment - 1] = ranking.ranks[segment - 1]
            start = end
    return CandidateBatch(tokens_bt, positions_bt, segments_bt, ends_bk, ranks_bk)


def candidate_scores(model: ScalarModel, batch: CandidateBatch) -> Tensor:
    """The reward of each response, read at its last token: (batch, K), 0 where there is none.

    On the processor, wherever the model is: they are few, and compared there.
    """
    parts, device = (batch.tokens_bt, batch.positions_bt, batch.mask_bts), device_of(model)
    values_bt: Tensor = model(*(moved(each, device) for each in parts)).to(HOST)
    return values_bt.gather(1, batch.ends_bk).masked_fill(batch.ranks_bk == 0, 0.0)


@dataclass(frozen=True)
class JoinedRankings:
    """Rankings of which those of one prompt share a row, so that nothing is computed twice.

    Attributes:
        rows: a prompt and all its different responses, without an order (all ranks are 1).
        row_of: the row of each ranking.
        columns: where each ranking's responses stand among those of its row.
    """

    rows: list[EncodedRanking]
    row_of: list[int]
    columns: list[list[int]]

    def scores(self, numbers: Sequence[int], places: Sequence[int], scores_rk: Tensor) -> Tensor:
        """The scores of rankings, (rankings, K), 0 where there is no response.

        Args:
            numbers: of the rankings.
            places: of each one's row in ``scores_rk``.
        """
        most = max(len(self.columns[number]) for number in numbers)
        columns = [self.columns[number] for number in numbers]
        present_bk = torch.tensor([[k < len(row) for k in range(most)] for row in columns])
        columns_bk = torch.tensor([[*row, *[0] * (most - len(row))] for row in columns])
        rows_b1 = torch.tensor(places)[:, None]
        return scores_rk[rows_b1, columns_bk].masked_fill(~present_bk, 0.0)


def join_rankings(rankings: Sequence[EncodedRanking]) -> JoinedRankings:
    """Give the rankings of one prompt a row together, in the order of their first."""
    rows: dict[tuple[int, ...], tuple[int, dict[tuple[int, ...], int]]] = {}
    row_of, columns = [], []
    for each in rankings:
        number, known = rows.setdefault(tuple(each.prompt), (len(rows), {}))
        row_of.append(number)
        # A response that stands twice in one ranking is one column too.
        columns.append([known.setdefault(tuple(each), len(known)) for each in each.responses])
    joined = [
        EncodedRanking(list(prompt), [list(each) for each in known], [1] * len(known))
        for prompt, (_, known) in rows.items()
    ]
    return JoinedRankings(joined, row_of, columns)


def score_rankings(
    model: ScalarModel, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> list[list[float]]:
    """The reward of every response of every ranking; what stands in several is computed once."""
    joined = join_rankings(rankings)
    scores: list[list[float]] = [[] for _ in joined.rows]
    with machine.reading(model):
        groups = length_batches([row.length for row in joined.rows], TOKENS_AT_ONCE)
        for group, share in team().parts(lambda rank: groups[rank :: team().count]):
            found_bk = candidate_scores(model, candidate_batch([joined.rows[i] for i in group]))
            for index, row in zip(group, found_bk.tolist(), strict=True):
                scores[index] = row if share else scores[index]
    scores = shared_scores(scores)
    places = zip(joined.row_of, joined.columns, strict=True)
    return [[scores[row][column] for column in columns] for row, columns in places]


def shared_scores(scores: list[list[float]]) -> list[list[float]]:
    """Every process's rows; one that this process has not filled is empty."""
    if team().count == 1:
        return scores
    longest = highest(max(map(len, scores), default=0))[0]
    table = torch.zeros(len(scores), longest, dtype=torch.float64)
    for row, found in zip(table, scores, strict=True):
        row[: len(found)] = torch.tensor(found)
    add_tables(table)
    shared: list[list[float]] = table.tolist()
    return shared


def score_table(
    rankings: Sequence[EncodedRanking], scores: Sequence[Sequence[float]]
) -> tuple[Tensor, Tensor]:
    """Scores and ranks as (rankings, K) tensors, for `lmsmith.rlhf.objective`."""
    most = max((len(row) for row in scores), default=2)
    scores_bk = torch.zeros(len(scores), most)
    ranks_bk = torch.zeros(len(scores), most, dtype=torch.long)
    for index, (ranking, row) in enumerate(zip(rankings, scores, strict=True)):
        scores_bk[index, : len(row)] = torch.tensor(row)
        ranks_bk[index, : len(row)] = torch.tensor(ranking.ranks)
    return scores_bk, ranks_bk


def sums_by_prompt(rankings: Sequence[EncodedRanking], values_b: Tensor) -> Tensor:
    """Sums of a value of each ranking over the rankings of each prompt: (prompts,).

    Pairs of one prompt are not independent, however many rankings they stand in, so a bootstrap
    draws prompts.
    """
    rows: dict[tuple[int, ...], int] = {}
    place_b = torch.tensor([rows.setdefault(tuple(each.prompt), len(rows)) for each in rankings])
    return torch.zeros(len(rows), dtype=values_b.dtype).index_add_(0, place_b, values_b)


def accumulate_ranking_gradients(
    model: ScalarModel,
    rankings: Sequence[EncodedRanking],
    machine: ResolvedMachine,
    most: int = ACTIVATION_BYTES,
    thumbs: Sequence[EncodedThumb] = (),
    thumbs_weight: float = 0.0,
) -> tuple[float, float, int]:
    """Add the gradient of the rankings' mean loss to the parameters'.

    Args:
        rankings: each with a pair that is not tied, as `encode_rankings` leaves them.
        most: as in `memory_groups`.
        thumbs: learnt beside them, against the mean reward of the rankings' responses.
        thumbs_weight: of their mean loss.

    Returns:
        The loss, the share of pairs ordered rightly, and the tokens computed, padding included.
    """
    loss = correct = pairs = tokens = total = responses = 0.0
    joined = join_rankings(rankings)
    for group, share in parts([row.length for row in joined.rows], model.decoder.config, most):
        batch = candidate_batch([joined.rows[index] for index in group])
        with machine.autocast():
            scores_rk = candidate_scores(model, batch)
        place = {row: number for number, row in enumerate(group)}
        numbers = [number for number, row in enumerate(joined.row_of) if row in place]
        scores_bk = joined.scores(numbers, [place[joined.row_of[n]] for n in numbers], scores_rk)
        _, ranks_bk = score_table(
            [rankings[n] for n in numbers], [rankings[n].ranks for n in numbers]
        )
        weights = [rankings[n].weight for n in numbers]
        weights_b = None if set(weights) == {1.0} else torch.tensor(weights)
        part = ranking_loss(scores_bk, ranks_bk, weights_b)
        part = part * (share * len(numbers) / len(rankings))
        part.backward()  # type: ignore[no-untyped-call]
        correct_b, pairs_b = correct_pairs(scores_bk.detach(), ranks_bk)
        loss += part.item()
        correct += share * float(correct_b.sum())
        pairs += share * float(pairs_b.sum())
        tokens += batch.tokens_bt.numel()
        total += share * float(scores_bk.detach().sum())
        responses += share * int((ranks_bk > 0).sum())
    sums = add_up(loss, correct, pairs, tokens, total, responses)
    loss, correct, pairs, tokens, total, responses = sums
    if thumbs:
        thumbs_loss = 0.0
        as_rankings = [EncodedRanking(each.prompt, [each.response], [1]) for each in thumbs]
        lengths = [each.length for each in as_rankings]
        for group, share in parts(lengths, model.decoder.config, most):
            batch = candidate_batch([as_rankings[index] for index in group])
            with machine.autocast():
                scores_b = candidate_scores(model, batch)[:, 0]
            liked_b = torch.tensor([thumbs[index].liked for index in group])
            weights_b = torch.tensor([thumbs[index].weight for index in group])
            part = thumb_loss(scores_b, liked_b, total / responses, weights_b)
            part = part * (share * thumbs_weight * len(group) / len(thumbs))
            part.backward()  # type: ignore[no-untyped-call]
            thumbs_loss += part.item()
            tokens += batch.tokens_bt.numel()
        loss += add_up(thumbs_loss)[0]
    return loss, correct / max(1.0, pairs), int(tokens)


def parts(lengths: Sequence[int], config: ModelConfig, most: int) -> list[tuple[list[int], float]]:
    """This process's rows in groups that fit the memory, each with its weight."""

    def of(rank: int) -> list[list[int]]:
        own = list(range(rank, len(lengths), team().count))
        groups = memory_groups([lengths[i] for i in own], config, most) if own else []
        return [[own[place] for place in group] for group in groups]

    return team().parts(of)
