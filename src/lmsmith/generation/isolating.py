"""What many requests do together, and who is to blame when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.generation.inference import InferenceDecoder, Span
from lmsmith.generation.kernels import Kernels
from lmsmith.generation.log_probs import TokenLogProb
from lmsmith.generation.prefix_cache import PrefixCache
from lmsmith.generation.sequences import RunningSequence, draw_tokens

Failures = dict[int, Exception]
"""Request → why it cannot go on."""

Choice = tuple[RunningSequence, int, TokenLogProb | None]


@dataclass
class Work:
    """What is read for one request in a step: one span of one row."""

    request: int
    span: Span


def read(
    model: InferenceDecoder, rows: PrefixCache, work: Sequence[Work], failures: Failures
) -> list[Tensor | None]:
    """Hidden states (tokens, width) of each piece of work; None where its request failed.

    What fails together is read again one by one, so that one request's failure is its own.
    """
    before = {each.span[0]: rows.read_tokens(each.span[0]) for each in work}
    try:
        hidden_nd = model.read([each.span for each in work], rows.cache)
        return list(torch.split(hidden_nd, [len(each.span[1]) for each in work]))
    except Exception as error:
        rows.forget(before)
        if len(work) == 1:
            failures[work[0].request] = error
            return [None]
    return [found for each in work for found in read(model, rows, [each], failures)]


def choose(
    logits_bv: Tensor, replies: Sequence[RunningSequence], failures: Failures, kernels: Kernels
) -> list[Choice]:
    """The next token of each reply, with its log-probability if that is asked for.

    Args:
        logits_bv: one row a reply.
        replies: those whose request is among the failures have no part.
        failures: gets those of requests whose token cannot be drawn.
        kernels: draw.
    """
    places = [n for n, reply in enumerate(replies) if reply.request not in failures]
    if len(places) < len(replies):
        replies = [replies[place] for place in places]
        logits_bv = logits_bv[places]
    if not replies:
        return []
    try:
        drawn = draw_tokens(logits_bv, replies, kernels)
        return [(reply, *found) for reply, found in zip(replies, drawn, strict=True)]
    except Exception as error:
        if len(replies) == 1:
            failures[replies[0].request] = error
            return []
    return [
        found
        for place, reply in enumerate(replies)
        for found in choose(logits_bv[place : place + 1], [reply], failures, kernels)
    ]
