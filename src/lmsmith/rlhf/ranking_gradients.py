"""Gradients of the ranking loss, a part of a batch at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.models.config import ModelConfig
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.candidates import EncodedRanking, candidate_batch, candidate_scores
from lmsmith.rlhf.ranking import correct_pairs, ranking_loss
from lmsmith.training.machine import ResolvedMachine

ACTIVATION_BYTES = 4_000_000_000
"""What rows computed together may keep for the backward pass, by `activation_bytes`."""


def activation_bytes(config: ModelConfig, rows: int, length: int) -> int:
    """About what a forward pass over so many rows keeps for its backward pass, from above.

    In float32: twelve times the width (norms, queries, keys, values, what is mixed and added),
    four times the feed-forward layer's inner width, and attention scores and probabilities.
    """
    numbers = 12 * config.width + 4 * config.resolved_ffn_width + 2 * config.heads * length
    return 4 * config.layers * rows * length * numbers


def memory_groups(
    lengths: Sequence[int], config: ModelConfig, most: int = ACTIVATION_BYTES
) -> list[list[int]]:
    """Indices in groups of like length, the longest first, each within ``most`` bytes.

    All of them, in their own order, where they fit together; a row that is too long by itself is
    a group by itself.
    """
    if activation_bytes(config, len(lengths), max(lengths)) <= most:
        return [list(range(len(lengths)))]
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and activation_bytes(config, len(groups[-1]) + 1, longest) <= most:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def accumulate_ranking_gradients(
    model: ScalarModel,
    rankings: Sequence[EncodedRanking],
    machine: ResolvedMachine,
    most: int = ACTIVATION_BYTES,
) -> tuple[float, float, int]:
    """Add the gradient of the rankings' mean loss to the parameters'.

    Args:
        rankings: each with a pair that is not tied, as `encode_rankings` leaves them.
        most: bytes that rows computed together may keep.

    Returns:
        The loss, the share of pairs ordered rightly, and the tokens computed, padding included.
    """
    loss = correct = pairs = 0.0
    tokens = 0
    groups = memory_groups([ranking.length for ranking in rankings], model.decoder.config, most)
    for group in groups:
        batch = candidate_batch([rankings[index] for index in group])
        with machine.autocast():
            scores_bk = candidate_scores(model, batch)
        part = ranking_loss(scores_bk, batch.ranks_bk, batch.present_bk)
        part = part * (len(group) / len(rankings))
        part.backward()  # type: ignore[no-untyped-call]
        correct_b, pairs_b = correct_pairs(scores_bk.detach(), batch.ranks_bk, batch.present_bk)
        loss += part.item()
        correct += float(correct_b.sum())
        pairs += float(pairs_b.sum())
        tokens += batch.tokens_bt.numel()
    return loss, correct / max(1.0, pairs), tokens
